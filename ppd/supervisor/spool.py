"""The spool as the supervisor sees it: hand-overs that wait for export."""

from __future__ import annotations

__all__ = [
    "Manifest",
    "discard",
    "find_ready",
    "prepare",
    "read_manifest",
    "ready_entries",
    "used_bytes",
]

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pydantic

from ..messages import DetectorKey


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


def prepare(spool: Path) -> None:
    """Make the spool's folders, and drop what a killed child left half-built."""
    shutil.rmtree(spool / "building", ignore_errors=True)
    for name in ("building", "ready", "dead-letters"):
        (spool / name).mkdir(parents=True, exist_ok=True)


def ready_entries(spool: Path) -> list[Path]:
    """List the hand-overs that wait, oldest first."""
    found = []
    for path in (spool / "ready").iterdir():
        with contextlib.suppress(FileNotFoundError):  # exported meanwhile
            found.append(((path / "manifest.json").stat().st_mtime, path.name, path))
    return [path for _, _, path in sorted(found)]


def read_manifest(entry: Path) -> Manifest:
    """Read the manifest of a hand-over.

    Raises
    ------
    ValueError
        Raised if it is not a manifest.
    OSError
        Raised if it can't be read.
    """
    return Manifest.model_validate(json.loads((entry / "manifest.json").read_text()))


def find_ready(spool: Path, key: DetectorKey) -> Manifest | None:
    """Find the hand-over of an attempt, if it waits for export."""
    try:
        return read_manifest(spool / "ready" / key.file_name)
    except (ValueError, OSError):
        return None


def discard(entry: Path) -> None:
    """Remove a hand-over that central has.

    One rename makes it no longer a hand-over, whatever happens to the rest.
    """
    grave = entry.parent.parent / "building" / f"done-{entry.name}"
    entry.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def used_bytes(spool: Path) -> int:
    """Bytes of all hand-overs that wait or were set aside."""
    total = 0
    for folder in ("ready", "dead-letters"):
        for parent, _, names in os.walk(spool / folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # exported meanwhile
                    total += (Path(parent) / name).stat().st_size
    return total
