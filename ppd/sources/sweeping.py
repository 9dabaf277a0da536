"""Looking at a whole tree now and then, for what no event has told of."""

from __future__ import annotations

__all__ = ["Sweeper"]

import contextlib
import os
import threading
import time
from collections.abc import Callable

from .folders import SymlinkedFolders, list_folder
from .observers import Observer

# How much earlier than the last sweep a file may say that it was changed: our
# own clock is right, that of a file server may be off by more.
_MARGIN = 60.0
_POLLED_MARGIN = 900.0
# A sweep may take a twentieth of the time.
_REST = 20.0


class Sweeper:
    """Finds files that have changed and were not reported as they are.

    Parameters
    ----------
    root : `str`
        The tree.
    interval : `float`
        Seconds between sweeps, at least.
    found : callable
        Called with the path of such a file.
    beat : callable
        Called for each folder.
    """

    def __init__(self, root: str, interval: float, found: Callable[[str], None], beat: Callable[[], None]):
        self._root = root
        self._interval = interval
        self._found = found
        self._beat = beat
        self._lock = threading.Lock()
        self._reported: dict[str, tuple[tuple[int, int], float]] = {}
        self._observer: Observer | None = None
        self._links = SymlinkedFolders(root)
        self._margin = _MARGIN
        self._swept = time.time()
        self._due = time.monotonic() + interval

    def begin(self, observer: Observer, links: SymlinkedFolders, polled: bool) -> None:
        """Sweep from now on, for an observer that has just told of all there is."""
        self._margin = _POLLED_MARGIN if polled else _MARGIN
        self._swept = time.time()
        self._due = time.monotonic() + self._interval
        self._links = links
        self._observer = observer

    def end(self) -> None:
        """Sweep no more."""
        self._observer = None

    def reported(self, path: str, stamp: tuple[int, int]) -> None:
        """Remember what was reported of a file."""
        with self._lock:
            self._reported[path] = (stamp, time.monotonic())

    def turn(self) -> None:
        """Sweep, if it is time."""
        observer, begin = self._observer, time.monotonic()
        if observer is None or begin < self._due:
            return
        since, self._swept = self._swept - self._margin, time.time()
        try:
            self._sweep(observer, since, begin)
        finally:
            end = time.monotonic()
            self._due = end + max(self._interval, _REST * (end - begin))

    def _sweep(self, observer: Observer, since: float, begin: float) -> None:
        links, kept = self._links, set()
        waiting = [self._root]
        while waiting and self._observer is observer:
            folder = waiting.pop()
            self._beat()
            observer.visit(folder)
            try:
                listing = list_folder(folder, links)
            except OSError:
                continue  # gone, or not ours to read: the observer has said so
            assert listing is not None
            for name in listing.files:
                path = f"{folder}/{name}"
                with contextlib.suppress(OSError):  # removed meanwhile
                    status = os.lstat(path)
                    if status.st_ctime < since:
                        continue
                    kept.add(path)
                    known = self._reported.get(path)
                    if known is None or known[0] != (status.st_size, status.st_mtime_ns):
                        self._found(path)
            waiting += [f"{folder}/{name}" for name in listing.folders]
        with self._lock:
            for path, (_, when) in list(self._reported.items()):
                if path not in kept and when < begin:
                    del self._reported[path]
