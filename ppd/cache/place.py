"""Where the cache lives: shared memory, or the configured fall-back."""

from __future__ import annotations

__all__ = ["choose_place", "remove_place"]

import hashlib
import logging
import os
import shutil
from pathlib import Path

from ..errors import SharedMemoryError

_LOG = logging.getLogger(__name__)


def choose_place(
    shm_dir: Path, fallback: Path | None, min_free: int, instrument: str, state_dir: Path
) -> Path:
    """Make an empty folder for the cache and say where it is.

    What an earlier supervisor of the same state directory left there is
    removed first: the caller holds that directory's lock.

    Parameters
    ----------
    shm_dir : `pathlib.Path`
        Mount point of the shared memory, usually ``/dev/shm``.
    fallback : `pathlib.Path` or `None`
        Folder to use when shared memory won't do.
    min_free : `int`
        Bytes that must be free.
    instrument : `str`
        Instrument name, for the folder's name.
    state_dir : `pathlib.Path`
        State directory of this supervisor; its hash keeps two supervisors
        on one machine apart.

    Returns
    -------
    place : `pathlib.Path`
        The folder, mode 0700, empty.

    Raises
    ------
    SharedMemoryError
        Raised if no candidate can be used; the message says why for each.
    """
    digest = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:8]
    name = f"ppd-{instrument}-{digest}"
    faults: list[str] = []
    for parent in (shm_dir, fallback):
        if parent is None:
            faults.append("no fall-back directory is configured (shm_fallback)")
            continue
        fault = _fault(parent, min_free, create=parent is fallback)
        if fault:
            faults.append(fault)
            continue
        if parent is not shm_dir:
            _LOG.warning("Shared memory can't be used (%s); the cache goes to %s.", "; ".join(faults), parent)
        place = parent / name
        remove_place(place)
        place.mkdir(mode=0o700)
        return place
    raise SharedMemoryError("No place for the cache: " + "; ".join(faults) + ".")


def remove_place(place: Path) -> None:
    """Remove the cache's folder and all that is in it."""
    shutil.rmtree(place, ignore_errors=True)


def _fault(parent: Path, min_free: int, create: bool) -> str | None:
    if create:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            return f"{parent} can't be made: {e.strerror}"
    if not parent.is_dir():
        return f"{parent} does not exist"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is not writable"
    free = shutil.disk_usage(parent).free
    if free < min_free:
        return f"{parent} has {free / 2**20:.0f} MiB free, {min_free / 2**20:.0f} MiB are needed"
    return None
