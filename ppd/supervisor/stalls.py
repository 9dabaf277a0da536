"""How long the supervisor's loop is away from its sockets, and what it does when that is too long."""

from __future__ import annotations

__all__ = ["LoopWatch"]

import collections
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Self

_LOG = logging.getLogger(__name__)

_STALL_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_WINDOW_SECONDS = 60
_MAX_FRAMES = 30


class LoopWatch:
    """Measures the turns of a loop, and says where a long one is stuck.

    A turn lasts from `begin`, when there is something to do, to `end`, before
    the loop waits for more.  Used as a context, it has a thread that looks
    every now and then, and logs the stack of the thread that made it once for
    each turn that lasts too long.

    Parameters
    ----------
    stalled : callable
        Called in the loop's own thread, after a turn that was too long, with
        its seconds and the stack that was logged (empty if nobody looked).
    limit : `float`, optional
        Seconds that are too long.
    """

    def __init__(self, stalled: Callable[[float, str], None], limit: float = _STALL_SECONDS):
        self._stalled = stalled
        self._limit = limit
        self._thread_id = threading.get_ident()
        # One value, replaced as a whole: the watcher never sees half of a turn.
        self._turn: tuple[int, float] | None = None
        self._seen: tuple[int, str] = (0, "")
        self._number = 0
        self._busy = 0.0
        self._longest = 0.0
        # Longest turn of each second of the last minute, with that second.
        self._seconds: collections.deque[tuple[int, float]] = collections.deque(maxlen=_WINDOW_SECONDS)
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._watcher.join(2.0)

    def begin(self) -> None:
        """Begin a turn."""
        self._number += 1
        self._turn = (self._number, time.monotonic())

    def end(self) -> None:
        """End the turn."""
        if self._turn is None:
            return
        number, begun = self._turn
        self._turn = None
        now = time.monotonic()
        seconds = now - begun
        self._busy += seconds
        self._longest = max(self._longest, seconds)
        second = math.floor(now)
        if self._seconds and self._seconds[-1][0] == second:
            seconds_before = self._seconds.pop()[1]
            self._seconds.append((second, max(seconds, seconds_before)))
        else:
            self._seconds.append((second, seconds))
        if seconds > self._limit:
            self._stalled(seconds, self._seen[1] if self._seen[0] == number else "")

    def describe(self) -> dict[str, Any]:
        """Describe the turns as a JSON object.

        Returns
        -------
        loop : `dict`
            ``turns``, ``busy`` (seconds in all), and the longest turn since
            the start, ``longest``, and of the last minute, ``longest_minute``.
        """
        oldest = time.monotonic() - _WINDOW_SECONDS
        recent = [seconds for second, seconds in self._seconds if second >= oldest]
        return {
            "turns": self._number,
            "busy": self._busy,
            "longest": self._longest,
            "longest_minute": max(recent, default=0.0),
        }

    def _watch(self) -> None:
        while not self._closing.wait(min(_LOOK_SECONDS, self._limit / 4)):
            turn = self._turn
            if turn is None or turn[0] == self._seen[0] or time.monotonic() - turn[1] < self._limit:
                continue
            frame = sys._current_frames().get(self._thread_id)
            stack = "".join(traceback.format_stack(frame)[-_MAX_FRAMES:]) if frame is not None else ""
            if self._turn is turn:
                self._seen = (turn[0], stack)
                _LOG.warning("The loop has been at one turn for %.1f s; it is here:\n%s", self._limit, stack)
