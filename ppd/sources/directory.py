"""Raws that land in a directory, by inotify.

A file counts when it is closed by its writer or renamed into place, or when
its size has rested for a while (hard links and files that were there first
raise no such event).  A candidate may be reported again when the file has
changed since; whoever matches it drops repeats.
"""

from __future__ import annotations

__all__ = ["Candidate", "DirectorySource"]

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from .keys import RawKey, parse_raw_path

_LOG = logging.getLogger(__name__)

_SCAN_INTERVAL = 0.25


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A file that looks like a complete raw."""

    path: Path
    key: RawKey | None
    """`None`: the path is of no known layout."""
    size: int
    modified_ns: int
    closed: float
    """When it was seen complete, Unix seconds."""


class DirectorySource:
    """Watches one directory tree.

    Parameters
    ----------
    root : `pathlib.Path`
        The tree; made if it does not exist.
    settle : `float`
        Seconds that a size must rest when nobody closed the file.
    report : callable
        Called with each `Candidate`, from the source's threads.
    """

    def __init__(self, root: Path, settle: float, report: Callable[[Candidate], None]):
        self.root = root
        self._settle = settle
        self._report = report
        self._resting: dict[str, tuple[int, int, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._observer = Observer()
        self._thread = threading.Thread(target=self._watch_resting, name="raw-settle", daemon=True)

    def start(self) -> None:
        """Begin to watch, and report what was there before."""
        self.root.mkdir(parents=True, exist_ok=True)
        handler = _Handler(self)
        self._observer.schedule(handler, str(self.root), recursive=True)
        self._observer.start()
        self._thread.start()
        self.scan(self.root)

    def stop(self) -> None:
        """End the threads; bounded."""
        self._stop.set()
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join(5.0)
        if self._thread.is_alive():
            self._thread.join(5.0)

    def scan(self, folder: Path) -> None:
        """Look at every file below a folder: new folders fill before they are watched."""
        for parent, _, names in os.walk(folder):
            for name in names:
                self.rest(str(Path(parent) / name))

    def complete(self, path: str) -> None:
        """Report a file whose writer is done with it."""
        with self._lock:
            self._resting.pop(path, None)
        file = Path(path)
        if file.name.startswith(".") or file.suffix in (".tmp", ".part", ".json"):
            return
        try:
            status = file.stat()
        except OSError:
            return  # renamed on or removed again
        self._report(Candidate(file, parse_raw_path(file), status.st_size, status.st_mtime_ns, time.time()))

    def rest(self, path: str) -> None:
        """Watch a file until its size rests."""
        with self._lock:
            self._resting.setdefault(path, (-1, -1, time.monotonic()))

    def _watch_resting(self) -> None:
        while not self._stop.wait(_SCAN_INTERVAL):
            now = time.monotonic()
            with self._lock:
                items = list(self._resting.items())
            for path, (size, modified, since) in items:
                try:
                    status = Path(path).stat()
                except OSError:
                    with self._lock:
                        self._resting.pop(path, None)
                    continue
                if (status.st_size, status.st_mtime_ns) != (size, modified):
                    # A file at rest since long before it was first looked at
                    # need not wait again.
                    age = time.time() - status.st_mtime
                    known = now - age if size == -1 and age > 0 else now
                    with self._lock:
                        if path in self._resting:
                            self._resting[path] = (status.st_size, status.st_mtime_ns, known)
                    since = known
                if now - since >= self._settle:
                    self.complete(path)


class _Handler(FileSystemEventHandler):
    def __init__(self, source: DirectorySource):
        self._source = source

    def on_any_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileClosedEvent):
            self._source.complete(os.fsdecode(event.src_path))
        elif isinstance(event, FileMovedEvent):
            self._source.complete(os.fsdecode(event.dest_path))
        elif isinstance(event, FileCreatedEvent):
            self._source.rest(os.fsdecode(event.src_path))
        elif isinstance(event, DirCreatedEvent):
            self._source.scan(Path(os.fsdecode(event.src_path)))
        elif isinstance(event, DirMovedEvent):
            self._source.scan(Path(os.fsdecode(event.dest_path)))
