"""Files that nobody has said to be complete, until their size rests."""

from __future__ import annotations

__all__ = ["Settling"]

import dataclasses
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Between looks at a file on another host, and how long one is looked at after
# it was at rest: its writer may hold back what it writes for half a minute.
_PATIENT_PAUSE = 0.5
_LONGEST_PAUSE = 64.0


@dataclasses.dataclass(slots=True)
class _File:
    """What is known of a file."""

    stamp: tuple[int, int] = (-1, -1)
    since: float = 0.0
    due: float = 0.0
    pause: float = _PATIENT_PAUSE
    rested: bool = False


class Settling:
    """Watches files until their size rests.

    Parameters
    ----------
    settle : `float`
        Seconds that a size must rest.
    complete : callable
        Called with the path of a file at rest.
    beat : callable
        Called after each file that was looked at.

    Notes
    -----
    `patient` is for files whose closing nobody tells: they are opened to be
    looked at, since a network file system may answer from what it has cached;
    their clock is not believed; and they are watched on after they were at
    rest, less and less often.
    """

    def __init__(self, settle: float, complete: Callable[[str], None], beat: Callable[[], None]):
        self._settle = settle
        self._complete = complete
        self._beat = beat
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self.patient = False
        """Whether the files are on a file system that tells nothing."""

    def add(self, path: str) -> None:
        """Watch a file."""
        with self._lock:
            known = self._files.get(path)
            if known is None or known.rested:
                self._files[path] = _File()

    def drop(self, path: str) -> None:
        """Watch a file no more."""
        with self._lock:
            self._files.pop(path, None)

    def look(self) -> None:
        """Look at the files, and tell of those at rest, the oldest first."""
        now = time.monotonic()
        with self._lock:
            items = [(path, file) for path, file in self._files.items() if file.due <= now]
        resting = []
        for path, file in items:
            status = self._status(path)
            self._beat()
            if status is None:
                self.drop(path)
            elif self._rests(file, status, time.monotonic()):
                resting.append((status.st_mtime_ns, path))
                if not self.patient:
                    self.drop(path)
            elif file.pause > _LONGEST_PAUSE:
                self.drop(path)
        for _, path in sorted(resting):
            self._complete(path)

    def _status(self, path: str) -> os.stat_result | None:
        try:
            status = Path(path).stat()
            if not self.patient or not stat.S_ISREG(status.st_mode):
                return status
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except PermissionError:
                return status
            try:
                return os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            return None

    def _rests(self, file: _File, status: os.stat_result, now: float) -> bool:
        """Take a look into account; return whether the file has come to rest now."""
        stamp = (status.st_size, status.st_mtime_ns)
        if stamp != file.stamp:
            # A file at rest since long before it was first looked at need not
            # wait again.
            age = time.time() - status.st_mtime
            believed = file.stamp[0] == -1 and age > 0 and not self.patient
            file.since = now - age if believed else now
            file.stamp, file.rested, file.pause = stamp, False, _PATIENT_PAUSE
        if file.rested:
            file.pause *= 2.0
        elif now - file.since >= self._settle:
            file.rested = True
            file.due = now + file.pause
            return True
        file.due = now + file.pause if self.patient else now
        return False
