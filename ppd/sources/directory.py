"""Raws that land in a directory, by inotify.

A file counts when it is closed by its writer or renamed into place, or when
its size has rested for a while (hard links and files that were there first
raise no such event).  A candidate may be reported again when the file has
changed since; whoever matches it drops repeats.

The kernel drops events when its queue is full and watches a limited number
of folders; a sweep of the whole tree now and then finds what it kept from us.
"""

from __future__ import annotations

__all__ = ["DirectorySource"]

import contextlib
import dataclasses
import logging
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from watchdog.observers.inotify import InotifyObserver

from ..errors import ConfigurationError
from .keys import LsstKey, RawKey, parse_lsst_path, parse_raw_path
from .raws import Candidate, SourceStatus, Wanted
from .sidecar import RawIdentity, read_header, read_sidecar, sidecar_path

_LOG = logging.getLogger(__name__)

_SCAN_INTERVAL = 0.25
_SWEEP_MARGIN = 60.0
# How long a raw waits for the file that has its group.
_SIDECAR_SECONDS = 2.0
_MAX_GIVEN_UP = 1000
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
]


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
    sweep : `float`, optional
        Seconds between sweeps of the tree, at least; a sweep may take a
        twentieth of the time.
    detectors : `~collections.abc.Mapping` [ `str`, `int` ], optional
        Detector by full name, for the layouts that have names.

    Notes
    -----
    The paths of LSST cameras do not have the visit's group.  It is in a JSON
    file beside the raw, which may come a little later; where none comes, the
    raw's own header is read.
    """

    def __init__(
        self,
        root: Path,
        settle: float,
        report: Callable[[Candidate], None],
        sweep: float = 60.0,
        detectors: Mapping[str, int] | None = None,
    ):
        self.root = root
        self._detectors = detectors or {}
        self._nameless: dict[str, float] = {}
        self._given_up: dict[str, None] = {}
        self._settle = settle
        self._report = report
        self._sweep_interval = sweep
        self._resting: dict[str, tuple[int, int, float]] = {}
        self._reported: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._observer: InotifyObserver | None = None
        self._thread = threading.Thread(target=self._watch_resting, name="raw-settle", daemon=True)

    def start(self) -> None:
        """Begin to watch, and report what was there before.

        Raises
        ------
        ppd.errors.ConfigurationError
            Raised if the tree can't be made or watched.
        """
        # watchdog meets a folder twice when many are made at once, and its
        # warning lists every folder of the tree.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Full events: a file from outside the tree is a moved one too.
            self._observer = InotifyObserver(generate_full_events=True)
            # All events would be too many: a walk through a large tree opens
            # every folder in it, and overflows the kernel's queue.
            self._observer.schedule(_Handler(self), str(self.root), recursive=True, event_filter=_EVENTS)
            self._observer.start()
        except OSError as e:
            raise ConfigurationError(f"{self.root} can't be watched for raws: {e}.") from e
        self._thread.start()
        self.scan(self.root)

    def stop(self) -> None:
        """End the threads; bounded."""
        self._stop.set()
        if self._observer is not None:
            self._observer.stop()
            if self._observer.is_alive():
                self._observer.join(5.0)
        if self._thread.is_alive():
            self._thread.join(5.0)

    def expect(self, wanted: Wanted) -> None:
        """Do nothing: all that lands is reported."""

    def dismiss(self, group: str, detector: int) -> None:
        """Do nothing: all that lands is reported."""

    def status(self) -> SourceStatus:
        """Tell how the source is."""
        return SourceStatus(str(self.root))

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
        if file.suffix == ".json":
            self._sidecar_came(file)
        if file.name.startswith(".") or file.suffix in (".tmp", ".part", ".json"):
            return
        try:
            status = file.stat()
        except OSError:
            with self._lock:
                self._nameless.pop(path, None)
            return  # renamed on or removed again
        if not stat.S_ISREG(status.st_mode):
            return  # whoever opens a pipe waits for its other end
        try:
            path.encode()
        except UnicodeEncodeError:
            _LOG.error("%a is ignored: no raw has a name that is not UTF-8.", path)
            return
        candidate = Candidate(
            path, parse_raw_path(file), status.st_size, str(status.st_mtime_ns), time.time()
        )
        lsst = parse_lsst_path(file) if candidate.key is None else None
        # Wavefront and guide sensors come with each exposure.
        foreign = lsst is not None and lsst.detector not in self._detectors
        if lsst is not None and not foreign:
            identity = self._identify(path, file)
            if identity is None and path in self._nameless:
                return  # its sidecar may come
            candidate = self._named(candidate, lsst, identity)
        if not foreign:
            self._report(candidate)
        self._reported[path] = (status.st_size, status.st_mtime_ns)

    def _named(self, candidate: Candidate, key: LsstKey, identity: RawIdentity | None) -> Candidate:
        """Give a raw the group that was found for it, or say that there is none."""
        if identity is None:
            fault = "neither a file beside it nor its header has its group (GROUPID)"
            return dataclasses.replace(candidate, fault=fault)
        whole = RawKey(
            instrument=key.instrument,
            group=identity.group,
            detector=self._detectors[key.detector],
            snap=identity.snap,
            exposure=key.exposure,
            physical_filter=key.physical_filter,
        )
        return dataclasses.replace(candidate, key=whole)

    def _sidecar_came(self, file: Path) -> None:
        """Look again at raws that were without, however long ago."""
        with self._lock:
            waiting = [p for p in (*self._nameless, *self._given_up) if sidecar_path(Path(p)) == file]
        for path in waiting:
            self.complete(path)

    def _identify(self, path: str, file: Path) -> RawIdentity | None:
        """Find a raw's group; while it waits for its sidecar, it is among the nameless."""
        identity = read_sidecar(file)
        if identity is None:
            with self._lock:
                since = self._nameless.setdefault(path, time.monotonic())
            if time.monotonic() < since + _SIDECAR_SECONDS:
                return None
            identity = read_header(file)
        with self._lock:
            self._nameless.pop(path, None)
            self._given_up.pop(path, None)
            if identity is None:
                self._given_up[path] = None
                while len(self._given_up) > _MAX_GIVEN_UP:
                    del self._given_up[next(iter(self._given_up))]
        return identity

    def rest(self, path: str) -> None:
        """Watch a file until its size rests."""
        with self._lock:
            self._resting.setdefault(path, (-1, -1, time.monotonic()))

    def _watch_resting(self) -> None:
        swept = time.time()
        due = time.monotonic() + self._sweep_interval
        while not self._stop.wait(_SCAN_INTERVAL):
            with self._lock:
                items = list(self._resting.items())
            for path, known in items:
                with _guarded(path):
                    self._look_at_resting(path, *known)
            with self._lock:
                nameless = list(self._nameless)
            for path in nameless:
                with _guarded(path):
                    self.complete(path)
            begin = time.monotonic()
            if begin >= due:
                since, swept = swept - _SWEEP_MARGIN, time.time()
                with _guarded(str(self.root)):
                    self._sweep(since)
                end = time.monotonic()
                due = end + max(self._sweep_interval, 20.0 * (end - begin))

    def _sweep(self, since: float) -> None:
        """Look at files that have changed since then and were not reported as they are."""
        reported, self._reported = self._reported, {}
        for parent, _, names in os.walk(self.root):
            for name in names:
                path = str(Path(parent) / name)
                with contextlib.suppress(OSError):  # removed meanwhile
                    status = os.lstat(path)
                    stamp = (status.st_size, status.st_mtime_ns)
                    if status.st_ctime < since:
                        continue
                    if reported.get(path) == stamp:
                        self._reported.setdefault(path, stamp)
                    else:
                        self.rest(path)

    def _look_at_resting(self, path: str, size: int, modified: int, since: float) -> None:
        now = time.monotonic()
        try:
            status = Path(path).stat()
        except OSError:
            with self._lock:
                self._resting.pop(path, None)
            return
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            # A file at rest since long before it was first looked at need
            # not wait again.
            age = time.time() - status.st_mtime
            since = now - age if size == -1 and age > 0 else now
            with self._lock:
                if path in self._resting:
                    self._resting[path] = (status.st_size, status.st_mtime_ns, since)
        if now - since >= self._settle:
            self.complete(path)


@contextlib.contextmanager
def _guarded(what: str) -> Iterator[None]:
    """Log what goes wrong with one file, so that the thread goes on with the next."""
    try:
        yield
    except Exception:
        _LOG.exception("%a can't be looked at.", what)


class _Handler(FileSystemEventHandler):
    def __init__(self, source: DirectorySource):
        self._source = source

    def on_any_event(self, event: FileSystemEvent) -> None:
        with _guarded(os.fsdecode(event.src_path)):
            self._take(event)

    def _take(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileClosedEvent):
            self._source.complete(os.fsdecode(event.src_path))
        elif isinstance(event, FileMovedEvent | DirMovedEvent) and not event.dest_path:
            return  # out of the tree
        elif isinstance(event, FileMovedEvent):
            self._source.complete(os.fsdecode(event.dest_path))
        elif isinstance(event, FileCreatedEvent):
            self._source.rest(os.fsdecode(event.src_path))
        elif isinstance(event, DirCreatedEvent):
            self._source.scan(Path(os.fsdecode(event.src_path)))
        elif isinstance(event, DirMovedEvent):
            self._source.scan(Path(os.fsdecode(event.dest_path)))
