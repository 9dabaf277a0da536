"""Raws that land in a directory.

A file counts when it is closed by its writer or renamed into place, or when
its size has rested for a while (hard links, files that were there first, and
files on other hosts raise no such event).  A candidate may be reported again
when the file has changed since; whoever matches it drops repeats.

The file system is touched by the source's own threads only: where it does not
answer, they wait, and nobody else does.
"""

from __future__ import annotations

__all__ = ["DirectorySource"]

import contextlib
import logging
import math
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from ..errors import ConfigurationError
from .folders import SymlinkedFolders
from .inotify_tree import InotifyTree
from .keys import parse_lsst_path, parse_raw_path
from .lsst_names import LsstNames
from .mounts import Mount, mounts_around, read_mounts
from .observers import Observer, choose
from .polled_tree import PollingTree
from .raws import Candidate, SourceStatus, Wanted
from .settling import Settling
from .sweeping import Sweeper

_LOG = logging.getLogger(__name__)

_SCAN_INTERVAL = 0.25
_ROOT_INTERVAL = 1.0
# A root that can't be had is tried again so often, and one that ends over and
# over is not begun more often.
_OPEN_INTERVAL = 1.0
_START_SECONDS = 3.0
_STOP_SECONDS = 5.0
_SILENT_SECONDS = 15.0
# Clocks of file servers are off by a little.
_KEEP_MARGIN = 600.0


class DirectorySource:
    """Watches one directory tree.

    Parameters
    ----------
    root : `pathlib.Path`
        The tree; made at the start where that is possible, and waited for
        where it is not.
    settle : `float`
        Seconds that a size must rest when nobody closed the file.
    report : callable
        Called with each `Candidate`, from the source's threads.
    sweep : `float`, optional
        Seconds between sweeps of the tree, at least; a sweep may take a
        twentieth of the time.
    detectors : `~collections.abc.Mapping` [ `str`, `int` ], optional
        Detector by full name, for the layouts that have names.
    observer : `str`, optional
        ``inotify``, ``polling``, or ``auto``: what the file system allows.
    keep : `float`, optional
        Files that are older than so many seconds when the watch begins are
        not reported, unless they are wanted: of many nights' raws nobody
        waits for more than the last.
    """

    def __init__(
        self,
        root: Path,
        settle: float,
        report: Callable[[Candidate], None],
        sweep: float = 60.0,
        detectors: Mapping[str, int] | None = None,
        observer: Literal["auto", "inotify", "polling"] = "auto",
        keep: float | None = None,
    ):
        self.root = root
        self._report = report
        self._kind: Literal["auto", "inotify", "polling"] = observer
        self._keep = keep
        self._names = LsstNames(detectors or {})
        self._settling = Settling(settle, self.complete, self.beat)
        self._sweeper = Sweeper(str(root), sweep, self._settling.add, self.beat)
        self._wanted: queue.SimpleQueue[Wanted] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._tried = threading.Event()
        self._impossible: OSError | None = None
        self._observer: Observer | None = None
        self._identity = (0, 0)
        self._around: tuple[Mount, ...] = ()
        self._links = SymlinkedFolders(str(root))
        self._polled: str | None = None
        self._must_poll: str | None = None
        self._was_there = False
        self._trouble: str | None = "it has not been looked at yet"
        self._heard = time.monotonic()
        self._threads = (
            threading.Thread(target=self._watch, name="raw-watch", daemon=True),
            threading.Thread(target=self._sweep, name="raw-sweep", daemon=True),
        )

    # What others call

    def start(self) -> None:
        """Begin to watch; what was there before is reported soon.

        Raises
        ------
        ppd.errors.ConfigurationError
            Raised if there is a file where the tree should be.
        """
        self._heard = time.monotonic()
        for thread in self._threads:
            thread.start()
        self._tried.wait(_START_SECONDS)
        if self._impossible is not None:
            raise ConfigurationError(f"{self.root} can't be watched for raws: {self._impossible}.")

    def stop(self) -> None:
        """End the threads; bounded: one that waits for the file system is left alone."""
        self._stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def expect(self, wanted: Wanted) -> None:
        """Look where its raws would be, if the path says whose they are; else all that lands is reported."""
        if not self._stop.is_set():
            self._wanted.put(wanted)

    def dismiss(self, group: str, detector: int) -> None:
        """Do nothing: all that lands is reported."""

    def status(self) -> SourceStatus:
        """Tell how the source is."""
        silent = time.monotonic() - self._heard
        trouble = self._trouble
        if silent > _SILENT_SECONDS and not self._stop.is_set():
            trouble = f"its file system has not answered for {silent:.0f} s"
        return SourceStatus(str(self.root), trouble)

    @property
    def observer(self) -> Observer | None:
        """What notices changes now; `None`: nothing does."""
        return self._observer

    # What observers call

    def beat(self) -> None:
        """Take note that the file system answers."""
        self._heard = time.monotonic()

    def too_old(self, changed: float) -> bool:
        """Whether what was there when the watch began, and changed then, is of no interest."""
        return self._keep is not None and changed < time.time() - self._keep - _KEEP_MARGIN

    def found(self, path: str, first: bool) -> None:
        """Take a file that may be written to still."""
        if first and self._keep is not None:
            try:
                if self.too_old(os.lstat(path).st_ctime):
                    return
            except OSError:
                return
        self._settling.add(path)

    def closed(self, path: str) -> None:
        """Take a file whose writer is done with it."""
        self._settling.drop(path)
        self.complete(path)

    def complete(self, path: str) -> None:
        """Report a file that is complete."""
        with _guarded(path):
            self._complete(path)

    def _complete(self, path: str) -> None:
        file = Path(path)
        if file.suffix == ".json":
            for raw in self._names.without(file):
                self.complete(raw)
        if file.name.startswith(".") or file.suffix in (".tmp", ".part", ".json"):
            return
        try:
            status = file.stat()
        except OSError:
            self._names.forget(path)
            return  # renamed on or removed again
        if not stat.S_ISREG(status.st_mode):
            return  # whoever opens a pipe waits for its other end
        try:
            path.encode()
        except UnicodeEncodeError:
            _LOG.error("%a is ignored: no raw has a name that is not UTF-8.", path)
            return
        candidate: Candidate | None = Candidate(
            path, parse_raw_path(file), status.st_size, str(status.st_mtime_ns), time.time()
        )
        assert candidate is not None
        lsst = parse_lsst_path(file) if candidate.key is None else None
        if lsst is None or self._names.knows(lsst):
            if lsst is not None:
                candidate = self._names.name(candidate, lsst)
                if candidate is None:
                    return  # its sidecar may come
            self._report(candidate)
        self._sweeper.reported(path, (status.st_size, status.st_mtime_ns))

    # The source's threads

    def _watch(self) -> None:
        opened = checked = -math.inf
        try:
            while not self._stop.wait(_SCAN_INTERVAL if self._tried.is_set() else 0.0):
                now = time.monotonic()
                if self._observer is None:
                    if now >= opened + _OPEN_INTERVAL:
                        self._open()
                        opened = checked = time.monotonic()
                        self._tried.set()
                        if self._impossible is not None:
                            return
                else:
                    self._observer.turn()
                    if now >= checked + _ROOT_INTERVAL:
                        checked = now
                        self._check_root()
                self.beat()
                with _guarded(str(self.root)):
                    self._settling.look()
                for path in self._names.waiting:
                    self.complete(path)
                self._look_for_wanted()
        except Exception:
            _LOG.exception("%s is watched no more.", self.root)
            self._trouble = "the thread that watches it has ended"
        finally:
            self._close()
            self._tried.set()

    def _open(self) -> None:
        """Begin to watch the tree, if it is there."""
        try:
            if not self._was_there:
                # Not again: whoever has removed it may be about to put another in its place.
                self.root.mkdir(parents=True, exist_ok=True)
            status = self.root.stat()
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(f"{self.root} is a file")
            self._identity = (status.st_dev, status.st_ino)
            self._around = self._mounts()
            self._links = SymlinkedFolders(str(self.root))
            self._polled = self._must_poll or choose(self._kind, self._around, self._links)
            tree = self._begin()
        except OSError as e:
            if not self._was_there and isinstance(e, NotADirectoryError | FileExistsError):
                self._impossible = e
            self._say(e.strerror or str(e))
            return
        if self._polled is not None:
            _LOG.warning("%s is polled for raws: %s.", self.root, self._polled)
        self._trouble = None
        self._sweeper.begin(tree, self._links, polled=self._polled is not None)
        self._observer = tree
        self._was_there = True

    def _begin(self) -> Observer:
        tree: Observer
        if self._polled is None:
            tree = InotifyTree(str(self.root), self, self._links)
        else:
            tree = PollingTree(str(self.root), self, self._links)
        self._settling.patient = self._polled is not None
        try:
            tree.start()
        except BaseException:
            tree.close()
            raise
        return tree

    def _mounts(self) -> tuple[Mount, ...]:
        return mounts_around(os.path.realpath(self.root), read_mounts())

    def _check_root(self) -> None:
        """End the watch of a tree that is no more what is at its place, or that can't go on."""
        assert self._observer is not None
        fault = self._observer.fault
        reason = fault.reason if fault is not None else None
        if fault is not None and fault.unable:
            self._must_poll = reason
        try:
            status = self.root.stat()
            if (status.st_dev, status.st_ino) != self._identity:
                reason, self._must_poll = "another is in its place", None
            elif reason is None and self._mounts() != self._around:
                reason = "something was mounted or unmounted there"
            elif reason is None and self._polled is None:
                # A link may lead to where inotify sees nothing.
                reason = self._must_poll = choose(self._kind, self._around, self._links)
        except OSError as e:
            self._say(e.strerror or str(e))
            self._close()
            return
        if reason is not None:
            _LOG.warning("The watch of %s begins anew: %s.", self.root, reason)
            self._close()

    def _say(self, trouble: str) -> None:
        """Note what is wrong, and log it once."""
        if trouble != self._trouble:
            self._trouble = trouble
            _LOG.error("Raws in %s are not seen: %s.", self.root, trouble)

    def _close(self) -> None:
        observer, self._observer = self._observer, None
        self._sweeper.end()
        if observer is not None:
            with _guarded(str(self.root)):
                observer.close()

    def _look_for_wanted(self) -> None:
        while not self._stop.is_set():
            try:
                wanted = self._wanted.get_nowait()
            except queue.Empty:
                return
            for path in wanted.seen:
                # From the journal, which other sources' raws are in too.
                if path.startswith(f"{self.root}/"):
                    self.found(path, False)
            place = self.root / wanted.instrument / str(wanted.detector) / wanted.group
            for parent, _, names in os.walk(place):
                self.beat()
                for name in names:
                    self.found(f"{parent}/{name}", False)

    def _sweep(self) -> None:
        while not self._stop.wait(_SCAN_INTERVAL):
            with _guarded(str(self.root)):
                self._sweeper.turn()


@contextlib.contextmanager
def _guarded(what: str) -> Iterator[None]:
    """Log what goes wrong with one file, so that the thread goes on with the next."""
    try:
        yield
    except Exception:
        _LOG.exception("%a can't be looked at.", what)
