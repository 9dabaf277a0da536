"""Where the cache lives: shared memory, or the configured fall-back."""

from __future__ import annotations

__all__ = ["choose_place", "place_fault", "place_name", "remove_place"]

import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path

from ..errors import SharedMemoryError

_LOG = logging.getLogger(__name__)

# What Docker gives a container that was not asked for more is 64 MiB.
_SMALL = 2**30
_MORE = (
    "a container gets more by docker run --shm-size=8g, shm_size: 8g in compose.yaml, "
    "or a memory-backed volume in Kubernetes"
)


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
    name = place_name(instrument, state_dir)
    parents = [parent for parent in (shm_dir, fallback) if parent is not None]
    # Before free bytes are counted: a cache that a crash has left takes room,
    # also where the new one does not go.
    for parent in parents:
        remove_place(parent / name)
    faults: list[str] = []
    for parent in parents:
        fault = place_fault(parent, min_free, create=parent is not shm_dir) or _make(parent / name)
        if fault is None:
            if faults:
                _LOG.warning(
                    "Shared memory can't be used (%s); the cache goes to %s.", "; ".join(faults), parent
                )
            return parent / name
        faults.append(fault)
    if fallback is None:
        faults.append("no fall-back directory is configured (shm_fallback)")
    if _is_small(shm_dir):
        faults.append(_MORE)
    raise SharedMemoryError("No place for the cache: " + "; ".join(faults) + ".")


def place_name(instrument: str, state_dir: Path) -> str:
    """Name of the cache's folder; no other supervisor's on this machine has it."""
    digest = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:8]
    return f"ppd-{instrument}-{digest}"


def remove_place(place: Path) -> None:
    """Remove the cache's folder and all that is in it."""
    with contextlib.suppress(OSError):
        if place.is_symlink() or place.is_file():
            place.unlink()
    shutil.rmtree(place, ignore_errors=True)


def place_fault(parent: Path, min_free: int, create: bool) -> str | None:
    """Say why a folder can't hold the cache, if so; it may be made if it is not there."""
    if create:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            return f"{parent} can't be made: {e.strerror}"
    try:
        if not parent.is_dir():
            return f"{parent} is not a directory" if parent.exists() else f"{parent} does not exist"
        free = shutil.disk_usage(parent).free
    except OSError as e:
        return f"{parent} can't be looked at: {e.strerror}"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is not writable"
    if free < min_free:
        return f"{parent} has {free / 2**20:.0f} MiB free, {min_free / 2**20:.0f} MiB are needed"
    return None


def _is_small(shm_dir: Path) -> bool:
    """Whether all of it, used or not, is no more than somebody would give it who knew of us."""
    try:
        return shutil.disk_usage(shm_dir).total < _SMALL
    except OSError:
        return False


def _make(place: Path) -> str | None:
    try:
        place.mkdir(mode=0o700)
    except OSError as e:
        return f"{place} can't be made: {e.strerror}"
    return None
