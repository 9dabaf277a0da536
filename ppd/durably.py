"""Having on the disk what was written."""

from __future__ import annotations

__all__ = ["sync"]

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk.

    Parameters
    ----------
    path : `pathlib.Path`
        File or folder.

    Raises
    ------
    OSError
        Raised if the disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
