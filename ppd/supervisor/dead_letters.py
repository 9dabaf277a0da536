"""Hand-overs that central does not take: set aside with the reason, until a person decides.

A dead letter is the hand-over's folder, whole, with a ``reason.json`` in it.
Setting aside, sending again and dropping are each one rename.
"""

from __future__ import annotations

__all__ = [
    "DeadLetter",
    "DeadLetterError",
    "Kind",
    "drop",
    "entry_names",
    "find_letter",
    "list_letters",
    "names_visit",
    "read_letter",
    "retry",
    "set_aside",
]

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Literal

import pydantic

from ..crash_points import here
from ..durably import sync
from ..errors import PpdError
from ..messages import DetectorKey
from .spool import read_manifest

Kind = Literal["corrupt", "conflict", "refused", "unknown"]
"""``corrupt``: it is not what was handed over; ``conflict``: central has another dataset in
its place; ``refused``: central does not take it; ``unknown``: set aside by an older ppd."""

_FOLDER = "dead-letters"
_REASON = "reason.json"
_OLD_REASON = "reason.txt"
# What tells a second dead letter of the same name; no hand-over's name has it.
_COPY = "~"
_MAX_COPIES = 1000


class DeadLetterError(PpdError):
    """Raised when there is no such dead letter, or it can't be sent again."""


class DeadLetter(pydantic.BaseModel):
    """What is known of a hand-over that was set aside."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    entry: str
    """Its name in the folder of dead letters."""
    reason: str
    kind: Kind = "unknown"
    time: float
    """When it was set aside, Unix seconds."""
    key: DetectorKey | None = None
    """Whose outputs it has; `None`: its manifest can't be read."""
    datasets: int = 0
    bytes: int = 0
    success: bool = True
    """Whether its pipeline ran to its end."""

    @property
    def name(self) -> str:
        """The hand-over's own name, whatever number this letter has."""
        return self.entry.partition(_COPY)[0]


class _Reason(pydantic.BaseModel):
    """What ``reason.json`` holds."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    reason: str
    kind: Kind
    time: float
    key: DetectorKey | None = None
    datasets: int = 0
    bytes: int = 0


def set_aside(entry: Path, reason: str, kind: Kind) -> Path:
    """Make a hand-over a dead letter.

    Parameters
    ----------
    entry : `pathlib.Path`
        The hand-over, in ``ready`` of the spool.
    reason : `str`
        Why it can't be exported.
    kind : `str`
        See `Kind`.

    Returns
    -------
    target : `pathlib.Path`
        Where it is now.

    Raises
    ------
    OSError
        Raised if the reason can't be written; the hand-over is where it was.
    """
    key, datasets, _ = _contents(entry)
    noted = _Reason(
        reason=reason, kind=kind, time=time.time(), key=key, datasets=datasets, bytes=_size(entry)
    )
    # Before the rename: it is never among the dead letters without its reason.
    _write_durably(entry / _REASON, noted.model_dump_json())
    folder = _folder(entry.parent.parent)
    folder.mkdir(exist_ok=True)
    target = _free_name(folder, entry.name)
    here("exporter.dead-letter-not-moved")
    entry.rename(target)
    here("exporter.dead-letter-moved")
    sync(folder)
    sync(entry.parent)
    return target


def entry_names(spool: Path) -> list[str]:
    """List the names of the dead letters, sorted; cheap enough to be asked for each second."""
    with contextlib.suppress(FileNotFoundError), os.scandir(_folder(spool)) as found:
        return sorted(e.name for e in found if e.is_dir(follow_symlinks=False))
    return []


def list_letters(spool: Path) -> list[DeadLetter]:
    """Read all dead letters, the oldest first."""
    found = []
    for name in entry_names(spool):
        with contextlib.suppress(DeadLetterError):  # gone meanwhile
            found.append(read_letter(spool, name))
    return sorted(found, key=lambda letter: (letter.time, letter.entry))


def read_letter(spool: Path, name: str) -> DeadLetter:
    """Read a dead letter.

    Parameters
    ----------
    spool : `pathlib.Path`
        Root of the spool.
    name : `str`
        Its name, as somebody gave it.

    Raises
    ------
    DeadLetterError
        Raised if there is none of this name.
    """
    entry = _find(spool, name)
    # As it is now: somebody may have mended it.
    key, datasets, success = _contents(entry)
    try:
        noted = _Reason.model_validate_json((entry / _REASON).read_bytes())
    except (OSError, ValueError):
        noted = _Reason(reason=_old_reason(entry), kind="unknown", time=_changed(entry))
    return DeadLetter(
        entry=name,
        reason=noted.reason,
        kind=noted.kind,
        time=noted.time,
        key=key or noted.key,
        datasets=datasets or noted.datasets,
        bytes=noted.bytes or _size(entry),
        success=success,
    )


def retry(spool: Path, name: str) -> DetectorKey:
    """Put a dead letter back among what waits for export, by one rename.

    Parameters
    ----------
    spool : `pathlib.Path`
        Root of the spool.
    name : `str`
        Its name.

    Returns
    -------
    key : `ppd.messages.DetectorKey`
        Whose outputs will be exported.

    Raises
    ------
    DeadLetterError
        Raised if there is none of this name, if its manifest can't be read,
        or if another hand-over of the same name waits.
    """
    entry = _find(spool, name)
    try:
        key = read_manifest(entry).key
    except (OSError, ValueError) as e:
        raise DeadLetterError(f"Dead letter {name}: its manifest can't be read: {e}. Mend it first.") from e
    target = spool / "ready" / name.partition(_COPY)[0]
    try:
        entry.rename(target)
    except OSError as e:
        raise DeadLetterError(f"Dead letter {name} can't be put back: {e}.") from e
    # What is said of the next try is written anew.
    for path in (target / _REASON, target / _OLD_REASON):
        with contextlib.suppress(OSError):
            path.unlink()
    sync(target.parent)
    sync(entry.parent)
    return key


def drop(spool: Path, name: str) -> None:
    """Delete a dead letter: one rename takes it away, whatever happens to the rest.

    Raises
    ------
    DeadLetterError
        Raised if there is none of this name, or it can't be taken away.
    """
    entry = _find(spool, name)
    grave = spool / "building" / f"dropped-{name}"
    shutil.rmtree(grave, ignore_errors=True)
    try:
        entry.rename(grave)
    except OSError as e:
        raise DeadLetterError(f"Dead letter {name} can't be dropped: {e}.") from e
    shutil.rmtree(grave, ignore_errors=True)


def names_visit(name: str, instrument: str, group: str) -> bool:
    """Whether a dead letter of this name is of a visit."""
    visit = DetectorKey(instrument=instrument, group=group, detector=0).file_name.removesuffix("-0-1")
    return re.fullmatch(rf"{re.escape(visit)}-\d+-\d+", name.partition(_COPY)[0]) is not None


def find_letter(spool: Path, key: DetectorKey) -> DeadLetter | None:
    """Find the dead letter of an attempt, by its name: its manifest may be beyond reading."""
    for name in entry_names(spool):
        if name.partition(_COPY)[0] == key.file_name:
            with contextlib.suppress(DeadLetterError):
                return read_letter(spool, name)
    return None


def _folder(spool: Path) -> Path:
    return spool / _FOLDER


def _find(spool: Path, name: str) -> Path:
    # From users: it may not lead anywhere else.
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise DeadLetterError(f"{name!r} is no name of a dead letter.")
    entry = _folder(spool) / name
    with contextlib.suppress(OSError):  # a name may be longer than any can be
        if not entry.is_symlink() and entry.is_dir():
            return entry
    raise DeadLetterError(f"There is no dead letter {name:.300}.")


def _free_name(folder: Path, name: str) -> Path:
    """Return a name that nothing has: an older dead letter is not written over."""
    for number in range(1, _MAX_COPIES):
        target = folder / (name if number == 1 else f"{name}{_COPY}{number}")
        if not target.exists():
            return target
    raise FileExistsError(f"{folder / name} is there {_MAX_COPIES} times")


def _contents(entry: Path) -> tuple[DetectorKey | None, int, bool]:
    try:
        manifest = read_manifest(entry)
    except (OSError, ValueError):
        return None, 0, True
    return manifest.key, len(manifest.datasets), manifest.success


def _old_reason(entry: Path) -> str:
    try:
        return (entry / _OLD_REASON).read_text(errors="replace").strip()
    except OSError:
        return "nobody wrote down why"


def _changed(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


def _size(entry: Path) -> int:
    total = 0
    for path in entry.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)
    sync(path.parent)
