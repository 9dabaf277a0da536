"""What was asked that another thread answers: the loop does not wait for it."""

from __future__ import annotations

__all__ = ["Questions"]

import itertools
import time

from ..messages import ControlReply
from .callers import Caller

# Less than ppdctl waits by default.
_SECONDS = 4.0


class Questions:
    """Whom to answer, and until when.

    Parameters
    ----------
    seconds : `float`, optional
        How long an answer is waited for.
    """

    def __init__(self, seconds: float = _SECONDS):
        self._seconds = seconds
        self._numbers = itertools.count()
        self._open: dict[int, tuple[Caller, float]] = {}

    def ask(self, caller: Caller) -> int:
        """Note who has asked; return the number of the question."""
        number = next(self._numbers)
        self._open[number] = (caller, time.monotonic() + self._seconds)
        return number

    def answered(self, number: int, reply: ControlReply) -> list[tuple[Caller, ControlReply]]:
        """Return whom to send an answer to: nobody, if he was told already that it takes long."""
        found = self._open.pop(number, None)
        return [] if found is None else [(found[0], reply)]

    def overdue(self) -> list[tuple[Caller, ControlReply]]:
        """Give up those that were asked too long ago; they are done all the same, when their turn comes."""
        now = time.monotonic()
        late = [number for number, (_, until) in self._open.items() if now > until]
        error = (
            "The thread that owns the cache is busy (it reads central, or waits for the nursery);"
            " what was asked is done when its turn comes: see ppdctl cache show."
        )
        reply = ControlReply(ok=False, code="unavailable", error=error)
        return [(self._open.pop(number)[0], reply) for number in late]
