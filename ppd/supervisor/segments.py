"""Removing the shared memory that children's tasks have left."""

from __future__ import annotations

__all__ = ["remove_segments"]

import contextlib
import json
import logging
from pathlib import Path

_LOG = logging.getLogger(__name__)

# Where Linux has what `shm_open` makes.
_SHARED_MEMORY = Path("/dev/shm")


def remove_segments(own_folder: Path) -> int:
    """Remove the segments that a child has written down and that are there still.

    Parameters
    ----------
    own_folder : `pathlib.Path`
        See `ppd.messages.own_folder`.

    Returns
    -------
    removed : `int`
        How many were left.
    """
    try:
        lines = (own_folder / "segments").read_text().splitlines()
    except OSError:
        return 0
    removed = 0
    for line in lines:
        # The last may be cut short. By name and inode: the name may be another's by now.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            segment = json.loads(line)
            path = _SHARED_MEMORY / segment["name"]
            if path.parent == _SHARED_MEMORY and path.lstat().st_ino == segment["inode"]:
                path.unlink()
                removed += 1
    return removed
