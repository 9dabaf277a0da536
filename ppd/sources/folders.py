"""One look into a folder, and which symbolic links to folders are followed."""

from __future__ import annotations

__all__ = ["Listing", "SymlinkedFolders", "list_folder"]

import os
import threading
from pathlib import Path
from typing import NamedTuple

from .mounts import is_within

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Listing(NamedTuple):
    """What is in a folder."""

    stamp: tuple[int, int, int]
    """Tells whether a name was added, removed or replaced since."""
    changed: float
    """When that was, by the file system's clock, Unix seconds."""
    files: dict[str, int]
    """Inode numbers by name; symbolic links that are not followed are among them."""
    folders: list[str]
    """Names of folders, in order: where names are dates, the last is the newest."""


class SymlinkedFolders:
    """Which symbolic links to folders are followed.

    What lies within the tree is seen there, under its own name; what lies
    outside is seen under the first link to it that was met.  So nothing is
    seen twice, and links in a circle end.

    Parameters
    ----------
    root : `str`
        The tree.
    """

    def __init__(self, root: str):
        self._root = os.path.realpath(root)
        self._lock = threading.Lock()
        self._followed: dict[str, str] = {}

    def follows(self, link: str) -> bool:
        """Tell whether a symbolic link is of a folder that is looked into."""
        real = os.path.realpath(link)
        if not Path(real).is_dir() or is_within(real, self._root) or is_within(self._root, real):
            return False
        with self._lock:
            for target, known in list(self._followed.items()):
                if known == link:
                    del self._followed[target]  # it may point elsewhere now
                elif os.path.realpath(known) != target:
                    del self._followed[target]  # that link is gone
                elif is_within(real, target):
                    return False
            self._followed[real] = link
        return True

    @property
    def targets(self) -> list[str]:
        """Folders outside of the tree that links lead to."""
        with self._lock:
            return list(self._followed)


def list_folder(
    path: str, links: SymlinkedFolders, known: tuple[int, int, int] | None = None
) -> Listing | None:
    """Look into a folder.

    Parameters
    ----------
    path : `str`
        The folder.
    links : `SymlinkedFolders`
        Says which symbolic links are followed.
    known : `tuple`, optional
        Stamp of an earlier listing.

    Returns
    -------
    listing : `Listing` or `None`
        `None` if nothing has changed since the earlier one.

    Raises
    ------
    OSError
        Raised if it can't be read.
    """
    # A network file system may answer a stat from what it has cached for half
    # a minute; whoever opens a folder is told what is so now.
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        if stamp == known:
            return None
        files, folders = {}, []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                linked = entry.is_symlink() and links.follows(f"{path}/{entry.name}")
                if linked or entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    files[entry.name] = entry.inode()
    finally:
        os.close(descriptor)
    return Listing(stamp, max(status.st_mtime, status.st_ctime), files, sorted(folders))
