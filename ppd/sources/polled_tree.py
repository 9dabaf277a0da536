"""Changes in a tree of folders as looking again finds them.

A snapshot of a whole tree, as watchdog's polling observer takes it, costs
0.8 s of processor time for 100,000 raws in 500 folders and 4 s where each raw
has four folders of its own; over a network it is a question to the server for
each file.  But a new file changes the time of its folder: so only folders are
asked about, and of these only the ones where news is likely, each time.
"""

from __future__ import annotations

__all__ = ["PollingTree"]

import dataclasses
import heapq
import logging
import threading
import time
from pathlib import Path

from .folders import SymlinkedFolders, list_folder
from .observers import Fault, Notice

_LOG = logging.getLogger(__name__)

_INTERVAL = 0.5
# A look may take this part of the time.
_DUTY = 0.2
# Folders near the root are always looked at, and as many of the others as
# changed last; the rest is left to the sweep.
_MAX_NEAR = 1000
_MAX_NEW = 2000
_CHOOSE_SECONDS = 20.0
# The times of some file systems are no finer than this: a folder may change
# again within the same time.
_COARSE = 3.0


@dataclasses.dataclass(slots=True)
class _Folder:
    """What is known of a folder."""

    level: int
    stamp: tuple[int, int, int] = (0, 0, 0)
    changed: float = 0.0
    seen: float = 0.0
    """When this stamp was first seen, by our clock."""
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    folders: frozenset[str] = frozenset()


class PollingTree:
    """Looks at folders again and again.

    Parameters
    ----------
    root : `str`
        The tree.
    notice : `ppd.sources.observers.Notice`
        Who is told.
    links : `ppd.sources.folders.SymlinkedFolders`
        Which symbolic links are followed.
    interval : `float`, optional
        Seconds between looks, at least.
    """

    def __init__(self, root: str, notice: Notice, links: SymlinkedFolders, interval: float = _INTERVAL):
        self._root = root
        self._notice = notice
        self._links = links
        self._interval = interval
        self._lock = threading.RLock()
        self._folders: dict[str, _Folder] = {}
        self._likely: dict[str, None] = {}
        self._due = self._choose_at = 0.0
        self._closed = False

    def start(self) -> None:
        """Look at all folders and tell of the files in them."""
        Path(self._root).stat()
        self._look_below(self._root, 0, first=True)
        if not self._folders:
            raise FileNotFoundError(f"{self._root} can't be read")
        self._choose()

    def turn(self) -> None:
        """Look at the folders where news is likely, if it is time."""
        begin = time.monotonic()
        if begin < self._due:
            return
        for path in list(self._likely):
            if self._closed:
                return
            self.visit(path)
        if begin >= self._choose_at:
            self._choose()
        end = time.monotonic()
        self._due = max(begin + self._interval, end + (end - begin) / _DUTY)

    def visit(self, folder: str) -> None:
        """Look at one folder again."""
        with self._lock:
            known = self._folders.get(folder)
            if known is not None:
                for name in self._look(folder, known, first=False):
                    self._look_below(f"{folder}/{name}", known.level + 1, first=False)
        self._notice.beat()

    @property
    def fault(self) -> Fault | None:
        """What ends this observer: only the end of the tree; what can't be read now may be read later."""
        return None if self._root in self._folders else Fault("it was removed", unable=False)

    def close(self) -> None:
        """End a look that goes on."""
        self._closed = True

    @property
    def watched(self) -> tuple[int, int]:
        """How many folders are looked at each time, and how many there are."""
        return len(self._likely), len(self._folders)

    def _look_below(self, folder: str, level: int, first: bool) -> None:
        """Look at a folder that was not known, and all below it."""
        waiting = [(folder, level)]
        while waiting and not self._closed:
            here, level = waiting.pop()
            known = _Folder(level)
            with self._lock:
                self._folders[here] = known
                if not first:
                    self._likely[here] = None
                names = self._look(here, known, first)
            self._notice.beat()
            waiting += [(f"{here}/{name}", level + 1) for name in names]

    def _look(self, path: str, known: _Folder, first: bool) -> list[str]:
        """Look at a folder, tell of what is new in it, and return the names of new folders."""
        now = time.monotonic()
        fresh = now - known.seen < _COARSE
        try:
            listing = list_folder(path, self._links, None if fresh else known.stamp)
        except (FileNotFoundError, NotADirectoryError):
            self._forget(path)
            return []
        except OSError as e:
            if known.seen == 0.0 or known.stamp != (0, 0, 0):
                _LOG.warning("What lies in %a is not seen now: %s.", path, e.strerror)
            # It is read as a new one when that can be.
            known.stamp, known.seen = (0, 0, 0), now - _COARSE
            return []
        if listing is None:
            return []
        if listing.stamp != known.stamp:
            known.stamp, known.changed, known.seen = listing.stamp, listing.changed, now
        told = () if first and self._notice.too_old(listing.changed) else listing.files.items()
        for name, inode in told:
            if known.files.get(name) != inode:
                self._notice.found(f"{path}/{name}", first)
        known.files = listing.files
        names = frozenset(listing.folders)
        for name in known.folders - names:
            self._forget(f"{path}/{name}")
        new = [name for name in listing.folders if name not in known.folders]
        known.folders = names
        return new

    def _forget(self, path: str) -> None:
        waiting = [path]
        while waiting:
            here = waiting.pop()
            self._likely.pop(here, None)
            known = self._folders.pop(here, None)
            if known is not None:
                waiting += [f"{here}/{name}" for name in known.folders]

    def _choose(self) -> None:
        """Choose the folders that are looked at each time."""
        self._choose_at = time.monotonic() + _CHOOSE_SECONDS
        with self._lock:
            counts: dict[int, int] = {}
            for folder in self._folders.values():
                counts[folder.level] = counts.get(folder.level, 0) + 1
            total = depth = 0
            while depth in counts and total + counts[depth] <= _MAX_NEAR:
                total += counts[depth]
                depth += 1
            near = [path for path, folder in self._folders.items() if folder.level < depth]
            new = heapq.nlargest(_MAX_NEW, self._folders, key=lambda path: self._folders[path].changed)
            self._likely = dict.fromkeys((*near, *new))
