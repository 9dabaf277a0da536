"""Who may use a processor: children wait in line for a permit."""

from __future__ import annotations

__all__ = ["Permits"]

import heapq
import itertools

from ..messages import DetectorKey


class Permits:
    """A bounded number of permits, given out in order of worth.

    More children at work than processors only make every alert later: they
    share the processors and all end together at the end.  Main pipelines go
    before pre-processing (their raws are there), then first come, first
    served.

    Parameters
    ----------
    limit : `int`
        How many may work at once.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._held: set[DetectorKey] = set()
        self._queue: list[tuple[int, float, int, DetectorKey]] = []
        self._order = itertools.count()
        self._queued: set[DetectorKey] = set()

    def ask(self, who: DetectorKey, *, urgent: bool, since: float) -> None:
        """Stand in line.

        Parameters
        ----------
        who : `ppd.messages.DetectorKey`
            The child.
        urgent : `bool`
            Whether it is for a main pipeline.
        since : `float`
            When its visit was accepted: earlier goes first.
        """
        self._held.discard(who)
        if who not in self._queued:
            self._queued.add(who)
            heapq.heappush(self._queue, (0 if urgent else 1, since, next(self._order), who))

    def give_back(self, who: DetectorKey) -> None:
        """Take a permit back, or a place in the line."""
        self._held.discard(who)
        self._queued.discard(who)

    def grant(self) -> list[DetectorKey]:
        """Give out the permits that are free; return who got one."""
        granted = []
        while self._queue and len(self._held) < self.limit:
            *_, who = heapq.heappop(self._queue)
            if who in self._queued:
                self._queued.discard(who)
                self._held.add(who)
                granted.append(who)
        return granted

    @property
    def held(self) -> int:
        """How many work now."""
        return len(self._held)

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queued)
