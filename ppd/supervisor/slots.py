"""Which detector-visits get the free slots, and which give theirs back."""

from __future__ import annotations

__all__ = ["Turn", "plan_forks"]

import dataclasses
from collections.abc import Callable, Collection

from .scheduling import Claim, in_order
from .table import DetectorVisit

# So much of the slots may be held by late ones while others are on time.
_LATE_SLOTS = 0.75
_PUT_BACKS_PER_TURN = 2
_MAX_PUT_BACKS = 3


@dataclasses.dataclass(frozen=True)
class Turn:
    """What to do with the slots now."""

    fork: list[DetectorVisit]
    put_back: list[DetectorVisit]
    """Late ones whose children only wait, to make room for some that can make it."""


def plan_forks(
    waiting: Collection[DetectorVisit],
    live: Collection[DetectorVisit],
    slots: int,
    claim_of: Callable[[DetectorVisit], Claim],
    now: float,
) -> Turn:
    """Plan who gets a slot.

    Parameters
    ----------
    waiting : collection of `ppd.supervisor.table.DetectorVisit`
        Those that could be forked.
    live : collection of `ppd.supervisor.table.DetectorVisit`
        Those that have a slot.
    slots : `int`
        How many slots there are.
    claim_of : callable
        Makes the claim of a detector-visit.
    now : `float`
        The time, Unix seconds.

    Returns
    -------
    turn : `Turn`
        In the order in which to do it.
    """
    of_claim = {claim_of(d): d for d in waiting}
    on_time, late = in_order(of_claim, now)
    free = max(0, slots - len(live))
    slow = [d for d in live if not claim_of(d).makes_it(now)]
    # When nobody is on time, nobody is kept out for those that are.
    room = free if not on_time else max(0, max(1, int(slots * _LATE_SLOTS)) - len(slow))
    chosen = [*on_time[:free], *late[:room]][:free]
    back: list[DetectorVisit] = []
    if len(on_time) > free:
        idle = [d for d in slow if d.phase == "queued_main" and not d.putting_back]
        idle = [d for d in idle if d.put_backs < _MAX_PUT_BACKS]
        # The youngest of the late: the others have waited longer for their turn.
        idle.sort(key=lambda d: d.accepted, reverse=True)
        under_way = sum(d.putting_back for d in live)
        back = idle[: max(0, min(len(on_time) - free - under_way, _PUT_BACKS_PER_TURN))]
    return Turn([of_claim[c] for c in chosen], back)
