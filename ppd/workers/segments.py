"""Shared memory that tasks create: it outlives their process, so its names are written down."""

from __future__ import annotations

__all__ = ["record_segments"]

import contextlib
import json
import os
from pathlib import Path
from typing import Any

_CREATED = os.O_CREAT | os.O_EXCL


def record_segments(record: Path) -> None:
    """Write down each segment of shared memory that is created in this process and its forks.

    Parameters
    ----------
    record : `pathlib.Path`
        File that gets a line of JSON for each: name and inode.

    Notes
    -----
    ``multiprocessing`` has a process that removes what was left, but it may
    be killed with the others, and may be told not to track a segment.
    Processes that are started afresh are left to it.
    """
    try:
        import _posixshmem  # type: ignore[import-not-found]
    except ImportError:
        return  # no shared memory here
    create = _posixshmem.shm_open

    def shm_open(path: str, flags: int, mode: int = 0o777) -> Any:
        descriptor = create(path, flags, mode=mode)
        if flags & _CREATED == _CREATED:
            line = json.dumps({"name": path.lstrip("/"), "inode": os.fstat(descriptor).st_ino})
            with contextlib.suppress(OSError), record.open("a") as stream:
                stream.write(line + "\n")
        return descriptor

    _posixshmem.shm_open = shm_open
