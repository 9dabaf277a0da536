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
        self._queue: list[tuple[tuple[int, float, int], DetectorKey]] = []
        self._order = itertools.count()
        # The place in the line that counts; others in the queue are void.
        self._queued: dict[DetectorKey, tuple[int, float, int]] = {}

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
        rank = 0 if urgent else 1
        if self._queued.get(who, ())[:2] != (rank, since):
            place = self._queued[who] = (rank, since, next(self._order))
            heapq.heappush(self._queue, (place, who))

    def give_back(self, who: DetectorKey) -> None:
        """Take a permit back, or a place in the line."""
        self._held.discard(who)
        self._queued.pop(who, None)

    def grant(self) -> list[DetectorKey]:
        """Give out the permits that are free; return who got one."""
        granted = []
        while self._queue and len(self._held) < self.limit:
            place, who = heapq.heappop(self._queue)
            if self._queued.get(who) == place:
                del self._queued[who]
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
