"""How changes in a tree of folders are noticed."""

from __future__ import annotations

__all__ = ["Fault", "Notice", "Observer", "choose"]

from typing import Literal, NamedTuple, Protocol

from .folders import SymlinkedFolders
from .mounts import Mount, is_remote, mounts_around, read_mounts


class Notice(Protocol):
    """Who is told of what is noticed; from any thread."""

    def found(self, path: str, first: bool) -> None:
        """Take a file that may be written to still; ``first``: it was there when the watch began."""

    def too_old(self, changed: float) -> bool:
        """Whether what was there when the watch began, and changed then, is of no interest."""

    def closed(self, path: str) -> None:
        """Take a file whose writer is done with it."""

    def beat(self) -> None:
        """Take note that the file system answers."""


class Fault(NamedTuple):
    """Why an observer can't go on as it is."""

    reason: str
    unable: bool
    """Whether another one of its kind would fail too."""


class Observer(Protocol):
    """Notices changes in a tree."""

    def start(self) -> None:
        """Tell of all that is there, and from then on of what comes; `OSError` if it can't."""

    def turn(self) -> None:
        """Do what is due; called several times a second."""

    def visit(self, folder: str) -> None:
        """Look at one folder again, in case that something there was missed."""

    @property
    def fault(self) -> Fault | None:
        """What ends this observer, if anything has."""

    def close(self) -> None:
        """End its threads, and hold nothing open."""


def choose(
    wanted: Literal["auto", "inotify", "polling"], around: tuple[Mount, ...], links: SymlinkedFolders
) -> str | None:
    """Choose how a tree is watched.

    Parameters
    ----------
    wanted : `str`
        The setting.
    around : `tuple` [ `ppd.sources.mounts.Mount`, ... ]
        File systems of the tree.
    links : `ppd.sources.folders.SymlinkedFolders`
        Links that lead out of the tree.

    Returns
    -------
    reason : `str` or `None`
        Why it is polled; `None`: inotify will do.
    """
    if wanted != "auto":
        return "raw_observer says so" if wanted == "polling" else None
    mounts = read_mounts()
    linked = [mount for target in links.targets for mount in mounts_around(target, mounts)[:1]]
    for mount in (*around, *linked):
        if is_remote(mount.type):
            return f"{mount.point} is {mount.type}, where inotify does not see what others change"
    return None
