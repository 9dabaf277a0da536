"""The spool as supervisor and exporter see it: hand-overs that wait for export.

A hand-over is a folder in ``ready``.  One rename makes it one (from
``building``, by a child), and one makes it none (to ``building`` again, when
central has it, or to ``dead-letters``).
"""

from __future__ import annotations

__all__ = [
    "Backlog",
    "CorruptHandOverError",
    "HandOver",
    "Manifest",
    "Waiting",
    "clear_building",
    "discard",
    "find_ready",
    "has_ready",
    "is_ready",
    "make_folders",
    "read_manifest",
    "ready_entries",
    "verify",
]

import contextlib
import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pydantic

from ..checksums import checksum_of, checksum_of_file
from ..crash_points import here
from ..messages import DetectorKey

# A file system's clock is not finer than its kernel's ticks, of 10 ms at most.
_TICK_SECONDS = 0.2


class CorruptHandOverError(ValueError):
    """Raised when a hand-over is not what its child made."""


class Manifest(pydantic.BaseModel):
    """What a hand-over holds, in the form of Rubin's ``pp-output`` message."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    type: str
    key: DetectorKey
    dimension_records: list[dict[str, Any]]
    dataset_types: list[dict[str, Any]]
    datasets: list[dict[str, Any]]
    runs: list[str]
    bytes: int
    success: bool = True
    """Whether these are the outputs of a pipeline that ran to its end."""
    reason: str = ""
    """Why it did not."""
    checksums: dict[str, str] = pydantic.Field(default_factory=dict)
    """Checksum of each file by name, as `ppd.checksums` makes them."""


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A hand-over that waits for export."""

    path: Path
    since: float
    """When it was handed over, Unix seconds."""
    bytes: int
    """Of all its files."""


@dataclasses.dataclass(frozen=True)
class HandOver:
    """A hand-over with its manifest."""

    path: Path
    manifest: Manifest


class Backlog:
    """The hand-overs in the spool; each is looked at once, however often the whole is asked for.

    Parameters
    ----------
    spool : `pathlib.Path`
        Root of the spool.
    folder : `str`, optional
        Which hand-overs: ``ready`` or ``dead-letters``.
    """

    def __init__(self, spool: Path, folder: str = "ready"):
        self._ready = spool / folder
        self._known: dict[str, Waiting] = {}
        self._waiting: list[Waiting] = []
        self._changed = -1
        self._rests_since = 0.0
        self.bytes = 0
        """Bytes of all hand-overs when they were last looked at."""

    def look(self) -> list[Waiting]:
        """List the hand-overs, oldest first; the same list as long as nothing has changed."""
        now = time.monotonic()
        changed = self._ready.stat().st_mtime_ns
        if changed != self._changed:
            self._changed, self._rests_since = changed, now
        elif self._rests_since < 0.0:
            return self._waiting
        names = {entry.name for entry in os.scandir(self._ready)}
        for gone in self._known.keys() - names:
            del self._known[gone]
        new = names - self._known.keys()
        for name in new:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # exported meanwhile
                path = self._ready / name
                size = sum(f.stat().st_size for f in os.scandir(path))
                manifest = path / "manifest.json"
                since = (manifest if manifest.exists() else path).stat().st_mtime
                self._known[name] = Waiting(path, since, size)
        if new:
            self._known = dict(sorted(self._known.items(), key=lambda item: (item[1].since, item[0])))
        self._waiting = list(self._known.values())
        self.bytes = sum(w.bytes for w in self._waiting)
        if now > self._rests_since + _TICK_SECONDS:
            # What changes from here on changes the folder's time.
            self._rests_since = -1.0
        return self._waiting

    def __contains__(self, name: object) -> bool:
        """Whether a hand-over was there when they were last looked at."""
        return name in self._known


def clear_building(spool: Path) -> None:
    """Drop what killed children left half-built; none of them may live any more."""
    for path in (spool / "building").iterdir():
        shutil.rmtree(path, ignore_errors=True)


def make_folders(spool: Path) -> None:
    """Make the spool's folders."""
    for name in ("building", "ready", "dead-letters"):
        (spool / name).mkdir(parents=True, exist_ok=True)


def ready_entries(spool: Path) -> list[Path]:
    """List the hand-overs that wait, oldest first."""
    return [waiting.path for waiting in Backlog(spool).look()]


def has_ready(spool: Path) -> bool:
    """Whether any hand-over waits."""
    with os.scandir(spool / "ready") as found:
        return any(True for _ in found)


def read_manifest(entry: Path) -> Manifest:
    """Read the manifest of a hand-over.

    Raises
    ------
    ValueError
        Raised if it is not the manifest that was written.
    OSError
        Raised if it can't be read.
    """
    data = (entry / "manifest.json").read_bytes()
    with contextlib.suppress(FileNotFoundError):  # of an earlier version of ppd
        if (entry / "manifest.sum").read_text().strip() != checksum_of(data):
            raise CorruptHandOverError("manifest.json is not what was written: its checksum differs")
    return Manifest.model_validate(json.loads(data))


def verify(entry: Path, manifest: Manifest) -> None:
    """See that the files of a hand-over are what its child wrote.

    Raises
    ------
    CorruptHandOverError
        Raised if one is missing or has another content.
    OSError
        Raised if one can't be read now.
    """
    for name, expected in manifest.checksums.items():
        try:
            found = checksum_of_file(entry / name)
        except FileNotFoundError:
            raise CorruptHandOverError(f"{name} is missing") from None
        if found != expected:
            raise CorruptHandOverError(f"{name} is not what was written: its checksum differs")


def find_ready(spool: Path, key: DetectorKey) -> Manifest | None:
    """Find the hand-over of an attempt, if it waits for export."""
    try:
        return read_manifest(spool / "ready" / key.file_name)
    except (ValueError, OSError):
        return None


def is_ready(spool: Path, key: DetectorKey) -> bool:
    """Whether an attempt has handed over, and it waits for export."""
    return (spool / "ready" / key.file_name).is_dir()


def discard(entry: Path) -> None:
    """Remove a hand-over that central has.

    One rename makes it no longer a hand-over, whatever happens to the rest.
    """
    grave = entry.parent.parent / "building" / f"done-{entry.name}"
    shutil.rmtree(grave, ignore_errors=True)
    here("exporter.hand-over-not-removed")
    entry.rename(grave)
    here("exporter.hand-over-removed")
    shutil.rmtree(grave, ignore_errors=True)
