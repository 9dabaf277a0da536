"""More work than processors, in virtual time: the policy against oldest-first.

``python -m bench.overload`` prints a table; it runs the supervisor's own
`ppd.supervisor.permits.Permits`, and no process.
"""

from __future__ import annotations

__all__ = ["Result", "simulate"]

import dataclasses
import heapq
import random
from collections.abc import Callable
from typing import Any

from ppd.messages import DetectorKey
from ppd.supervisor.permits import Permits
from ppd.supervisor.scheduling import Pace

CADENCE = 34.0
NOTICE = 30.0
"""Seconds from the announcement to the end of the exposure's read-out."""
DEADLINE = 60.0
_PREPROCESS = 2.0


@dataclasses.dataclass(frozen=True)
class Result:
    """How a night went."""

    visits: int
    in_time: float
    """Fraction of alerts within the minute."""
    longest: float
    """Longest time from a raw to its alerts, seconds."""
    undone: int
    """Detector-visits that were never processed."""


class _OldestFirst:
    """What ppd did before: main pipelines first, then the oldest."""

    def __init__(self, limit: int):
        self._limit = limit
        self._held: set[DetectorKey] = set()
        self._queue: list[tuple[tuple[int, float, int], DetectorKey]] = []
        self._count = 0

    def ask(self, who: DetectorKey, main: bool, accepted: float) -> None:
        self._count += 1
        heapq.heappush(self._queue, ((0 if main else 1, accepted, self._count), who))

    def give_back(self, who: DetectorKey) -> None:
        self._held.discard(who)

    def grant(self) -> list[DetectorKey]:
        granted = []
        while self._queue and len(self._held) < self._limit:
            _, who = heapq.heappop(self._queue)
            self._held.add(who)
            granted.append(who)
        return granted


def simulate(
    policy: bool,
    load: Callable[[float], float],
    *,
    visits: int = 120,
    detectors: int = 9,
    processors: int = 4,
    seed: int = 1,
) -> Result:
    """Play a night.

    Parameters
    ----------
    policy : `bool`
        Whether by the policy, or oldest first.
    load : callable
        Work that comes in, as a fraction of what the processors can do, at a
        time in seconds.
    visits, detectors, processors : `int`, optional
        How many.
    seed : `int`, optional
        Of the random durations.

    Returns
    -------
    result : `Result`
        How it went, after all that was announced has been done.
    """
    rng = random.Random(seed)
    pace, permits, oldest = Pace(DEADLINE), Permits(processors), _OldestFirst(processors)
    events: list[tuple[float, int, str, DetectorKey]] = []
    count = 0

    def plan(when: float, what: str, who: DetectorKey) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (when, count, what, who))

    accepted: dict[DetectorKey, float] = {}
    closed: dict[DetectorKey, float] = {}
    work: dict[DetectorKey, float] = {}
    stage: dict[DetectorKey, str] = {}
    for number in range(visits):
        begin = number * CADENCE
        mean = load(begin) * CADENCE * processors / detectors - _PREPROCESS
        for detector in range(detectors):
            who = DetectorKey(instrument="Cam", group=f"v{number:04d}", detector=detector)
            accepted[who], work[who] = begin, max(0.1, mean * rng.uniform(0.7, 1.3))
            plan(begin, "announced", who)
            plan(begin + NOTICE + rng.uniform(0.0, 1.0), "raw", who)
    latency: dict[DetectorKey, float] = {}
    prepared: set[DetectorKey] = set()

    def ask(now: float, who: DetectorKey, main: bool) -> None:
        stage[who] = "main" if main else "preprocess"
        if policy:
            permits.ask(pace.claim(who, accepted[who], NOTICE, closed.get(who), not main))
        else:
            oldest.ask(who, main, accepted[who])

    while events:
        now, _, what, who = heapq.heappop(events)
        if what == "announced":
            ask(now, who, main=False)
        elif what == "raw":
            closed[who] = now
            if who in prepared:
                ask(now, who, main=True)
        else:
            (permits if policy else oldest).give_back(who)
            pace.note(who, {"preprocess": "preprocess_end", "main": "pipeline_end"}[what], now)
            if what == "main":
                latency[who] = now - closed[who]
            else:
                prepared.add(who)
                if who in closed:
                    ask(now, who, main=True)
        granted: Any = permits.grant(now) if policy else oldest.grant()
        for next_one in granted:
            at = stage[next_one]
            pace.note(next_one, {"preprocess": "preprocess_start", "main": "main_start"}[at], now)
            plan(now + (work[next_one] if at == "main" else _PREPROCESS), at, next_one)
    in_time = sum(seconds <= DEADLINE for seconds in latency.values()) / len(accepted)
    return Result(visits, in_time, max(latency.values()), len(accepted) - len(latency))


def burst(now: float) -> float:
    """Twice what the processors can do for ten minutes, else three quarters of it."""
    return 2.0 if 600.0 <= now < 1200.0 else 0.75


LOADS: dict[str, Callable[[float], float]] = {
    "0.8": lambda now: 0.8,
    "1.2": lambda now: 1.2,
    "2.0": lambda now: 2.0,
    "burst": burst,
}
"""Loads to look at, by name."""


def main() -> None:
    """Print how the policy does against oldest-first."""
    print("load   detectors processors   in time: oldest first / policy   longest, s")
    for name, load in LOADS.items():
        for detectors, processors in ((9, 2), (9, 4), (30, 8)):
            old, new = (
                simulate(policy, load, detectors=detectors, processors=processors) for policy in (False, True)
            )
            print(
                f"{name:6} {detectors:9} {processors:10}   {old.in_time:21.3f} / {new.in_time:5.3f}"
                f"   {old.longest:9.0f} / {new.longest:.0f}"
            )


if __name__ == "__main__":
    main()
