"""Who goes first when there is more work than processors: the policy, without a clock of its own.

Alerts are worth most within a minute of the exposure.  Among those that can
still make it, the earliest deadline goes first; the others go in order of
age, and get a share of their own, so that each is reached in bounded time.
"""

from __future__ import annotations

__all__ = ["LATE_SHARE", "Claim", "Pace", "choose", "in_order"]

import collections
import dataclasses
import statistics
from collections.abc import Iterable

from ..messages import DetectorKey

LATE_SHARE = 4
"""One of so many permits is for one that is late, while there are such."""

_REMEMBER = 50
# Before anything has been measured.
_DEFAULT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a detector-visit would need a processor for."""

    who: DetectorKey
    since: float
    """When its visit was accepted, Unix seconds."""
    deadline: float
    """When its alerts should be out, Unix seconds."""
    work: float
    """What is left to do, seconds of a processor, by estimate."""

    def makes_it(self, now: float) -> bool:
        """Whether it can still be done in time, if it begins now."""
        return now + self.work <= self.deadline


def in_order(claims: Iterable[Claim], now: float) -> tuple[list[Claim], list[Claim]]:
    """Sort claims: those that can make it, and those that can't.

    Parameters
    ----------
    claims : iterable of `Claim`
        The claims.
    now : `float`
        The time, Unix seconds.

    Returns
    -------
    on_time, late : `list` [ `Claim` ]
        By deadline; by age.
    """
    on_time: list[Claim] = []
    late: list[Claim] = []
    for claim in claims:
        (on_time if claim.makes_it(now) else late).append(claim)
    on_time.sort(key=lambda c: (c.deadline, c.since, str(c.who)))
    late.sort(key=lambda c: (c.since, str(c.who)))
    return on_time, late


def choose(claims: Iterable[Claim], now: float, passed_over: int) -> Claim | None:
    """Choose who goes next.

    Parameters
    ----------
    claims : iterable of `Claim`
        Who waits.
    now : `float`
        The time, Unix seconds.
    passed_over : `int`
        How many went before late ones since the last of these went.

    Returns
    -------
    claim : `Claim` or `None`
        `None`: nobody waits.
    """
    on_time, late = in_order(claims, now)
    if late and (not on_time or passed_over >= LATE_SHARE - 1):
        return late[0]
    return on_time[0] if on_time else None


class Pace:
    """How long things have taken lately.

    Parameters
    ----------
    alert_deadline : `float`
        Seconds from the end of an exposure to its alerts.
    """

    def __init__(self, alert_deadline: float):
        self.alert_deadline = alert_deadline
        self._typical = {"preprocess": 0.0, "main": _DEFAULT_SECONDS}
        self._begun: dict[tuple[DetectorKey, str], float] = {}
        self._taken: dict[str, collections.deque[float]] = {
            work: collections.deque(maxlen=_REMEMBER) for work in ("preprocess", "main")
        }

    def note(self, who: DetectorKey, event: str, when: float) -> None:
        """Take note of an event of a child that begins or ends work."""
        work = {"preprocess_start": "preprocess", "main_start": "main"}.get(event)
        if work is not None:
            self._begun[who, work] = when
            return
        work = {"preprocess_end": "preprocess", "pipeline_end": "main"}.get(event)
        begun = self._begun.pop((who, work), None) if work is not None else None
        if work is not None and begun is not None and when >= begun:
            self._taken[work].append(when - begun)
            # Here, not where it is asked for: that is for each claim in each turn.
            self._typical[work] = statistics.median(self._taken[work])

    def forget(self, who: DetectorKey) -> None:
        """Forget what a child has begun that is gone."""
        for work in self._taken:
            self._begun.pop((who, work), None)

    def estimate(self, preprocessing: bool) -> float:
        """Return the seconds that a detector-visit takes, with or without pre-processing."""
        return self._typical["main"] + (self._typical["preprocess"] if preprocessing else 0.0)

    def claim(
        self, who: DetectorKey, accepted: float, duration: float, closed: float | None, preprocessing: bool
    ) -> Claim:
        """Make the claim of a detector-visit.

        Parameters
        ----------
        who : `ppd.messages.DetectorKey`
            The detector-visit.
        accepted : `float`
            When its visit was accepted, Unix seconds.
        duration : `float`
            Announced duration of the visit, seconds.
        closed : `float` or `None`
            When its last raw was complete, Unix seconds; `None`: none has
            come.
        preprocessing : `bool`
            Whether its pre-processing is still to be done.

        Returns
        -------
        claim : `Claim`
            The claim.
        """
        end = accepted + duration if closed is None else closed
        return Claim(who, accepted, end + self.alert_deadline, self.estimate(preprocessing))
