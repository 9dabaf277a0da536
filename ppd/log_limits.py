"""Log records that are alike, and too many: the first are written, the others counted."""

from __future__ import annotations

__all__ = ["WINDOW_SECONDS", "Flood"]

import collections
import logging
import threading
import time

WINDOW_SECONDS = 10.0
_MAX_KINDS = 1000
_TEXT = 120

_Kind = tuple[str, int, str]


class Flood(logging.Filter):
    """Lets only so many records of a kind pass in each ten seconds.

    Records are of one kind when logger, level and message template are the
    same: a source gone mad fills no disk, and hides nothing else.  What was
    left out is counted, and said with the next one that passes.

    Parameters
    ----------
    burst : `int`
        How many of a kind pass; 0: all.
    """

    def __init__(self, burst: int):
        super().__init__()
        self._burst = burst
        self._lock = threading.Lock()
        # Kind: when its window began, how many came, least recently begun first.
        self._kinds: collections.OrderedDict[_Kind, tuple[float, int]] = collections.OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written."""
        if not self._burst or record.name == __name__:
            return True
        kind = (record.name, record.levelno, str(record.msg)[:_TEXT])
        left_out = 0
        with self._lock:
            now = time.monotonic()
            begun, count = self._kinds.get(kind, (now, 0))
            if now >= begun + WINDOW_SECONDS:
                left_out = max(0, count - self._burst)
                begun, count = now, 0
                self._kinds.pop(kind, None)
            count += 1
            self._kinds[kind] = (begun, count)
            while len(self._kinds) > _MAX_KINDS:
                self._kinds.popitem(last=False)
        log = logging.getLogger(__name__)
        if left_out:
            log.warning("%d more like %r of %s were not written.", left_out, kind[2], record.name)
        if count == self._burst + 1:
            log.warning(
                "%d like %r of %s came within %.0f s; more of them are counted and not written.",
                self._burst,
                kind[2],
                record.name,
                WINDOW_SECONDS,
            )
        return count <= self._burst
