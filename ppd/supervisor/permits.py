"""Who may use a processor: children wait in line for a permit."""

from __future__ import annotations

__all__ = ["Permits"]

from collections.abc import Collection

from ..messages import DetectorKey
from .scheduling import Claim, choose, in_order


class Permits:
    """A bounded number of permits, given out in order of worth.

    More children at work than processors only make every alert later: they
    share the processors and all end together at the end.  Who goes first is
    decided in `ppd.supervisor.scheduling`.

    Parameters
    ----------
    limit : `int`
        How many may work at once.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._held: set[DetectorKey] = set()
        self._queued: dict[DetectorKey, Claim] = {}
        self._passed_over = 0

    def ask(self, claim: Claim) -> None:
        """Stand in line; who has a permit gives it back."""
        self._held.discard(claim.who)
        self._queued[claim.who] = claim

    def give_back(self, who: DetectorKey) -> None:
        """Take a permit back, or a place in the line."""
        self._held.discard(who)
        self._queued.pop(who, None)

    def grant(self, now: float, silent: Collection[DetectorKey] = ()) -> list[DetectorKey]:
        """Give out the permits that are free; return who got one.

        Parameters
        ----------
        now : `float`
            The time, Unix seconds.
        silent : collection of `ppd.messages.DetectorKey`, optional
            Children that have not been heard of for a while: what they hold
            is lent to others.
        """
        granted = []
        working = len(self._held.difference(silent))
        while self._queued and working < self.limit:
            claim = choose(self._queued.values(), now, self._passed_over)
            assert claim is not None
            passes_over = claim.makes_it(now) and not all(c.makes_it(now) for c in self._queued.values())
            self._passed_over = self._passed_over + 1 if passes_over else 0
            del self._queued[claim.who]
            self._held.add(claim.who)
            granted.append(claim.who)
            working += 1
        return granted

    def late(self, now: float) -> list[Claim]:
        """Claims in the line that can't be done in time any more, oldest first."""
        return in_order(self._queued.values(), now)[1]

    @property
    def held(self) -> int:
        """How many work now."""
        return len(self._held)

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queued)
