"""What happens in the soak, and when: all of it follows from the seed."""

from __future__ import annotations

__all__ = ["KINDS", "Announcement", "Fault", "Schedule", "draw_schedule"]

import dataclasses
from typing import Literal

import numpy as np

Moment = Literal["now", "building", "ready", "gone"]

KINDS: dict[str, int] = {
    "kill supervisor": 2,
    "kill nursery": 2,
    "kill exporter": 2,
    "kill child": 2,
    "stop supervisor": 1,
    "stop nursery": 1,
    "stop exporter": 1,
    "stop child": 2,
    "terminate connections": 2,
    "restart PostgreSQL": 1,
    "crash PostgreSQL": 1,
    "full disk": 1,
    "slow disk": 1,
    "clock step": 2,
}
"""Kinds of faults, and how many there are of each before all have had their turn."""

_SECONDS: dict[str, tuple[float, float]] = {
    "stop supervisor": (0.5, 6.0),
    "stop nursery": (0.5, 6.0),
    "stop exporter": (0.5, 8.0),
    # Up to more than a child may be silent.
    "stop child": (0.5, 12.0),
    "restart PostgreSQL": (0.2, 5.0),
    "crash PostgreSQL": (0.2, 5.0),
    "full disk": (2.0, 8.0),
    "slow disk": (3.0, 10.0),
}
_FEWEST_FAULTS = 25
_FAULT_GAP = (2.5, 7.0)
_VISIT_GAP = 6.0
_DETECTORS = 9


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault that is planned."""

    at: float
    """Seconds after the start."""
    kind: str
    seconds: float
    """How long it lasts; 0: it does not."""
    pick: float
    """Which of those that are there it meets, 0 to 1."""
    moment: Moment
    """What is waited for first: that a hand-over is being built, is ready, or has gone from the spool."""
    offset: float
    """Of the clock from now on, seconds."""


@dataclasses.dataclass(frozen=True)
class Announcement:
    """A visit that is planned."""

    at: float
    """When it would be announced, seconds after the start."""
    number: int
    detectors: tuple[int, ...]
    delay: float
    """How much later the message comes; then others may overtake it."""
    again: tuple[float, ...]
    """After how many seconds the message is repeated."""
    stale: bool
    """Whether it is so old that it must be refused."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """All that is planned."""

    seed: int
    seconds: float
    visits: tuple[Announcement, ...]
    faults: tuple[Fault, ...]


def draw_schedule(seed: int, seconds: float) -> Schedule:
    """Draw what happens.

    Parameters
    ----------
    seed : `int`
        Of all chance.
    seconds : `float`
        How long the soak is.

    Returns
    -------
    schedule : `Schedule`
        The same for the same seed and length.
    """
    return Schedule(
        seed,
        seconds,
        tuple(_draw_visits(np.random.default_rng([seed, 1]), seconds)),
        tuple(_draw_faults(np.random.default_rng([seed, 2]), seconds)),
    )


def _draw_visits(rng: np.random.Generator, seconds: float) -> list[Announcement]:
    visits: list[Announcement] = []
    at = 0.0
    while at < seconds:
        whole = rng.random() < 0.08
        count = _DETECTORS if whole else int(rng.integers(1, 6))
        detectors = tuple(sorted(int(d) for d in rng.choice(_DETECTORS, count, replace=False)))
        delay = float(rng.uniform(2.0, 9.0)) if rng.random() < 0.15 else 0.0
        # A child is in its main pipeline with the last ones.
        again = (
            tuple(float(t) for t in rng.uniform(0.0, 15.0, int(rng.integers(0, 3))))
            if rng.random() < 0.3
            else ()
        )
        visits.append(Announcement(at, len(visits), detectors, delay, again, stale=bool(rng.random() < 0.05)))
        at += float(rng.uniform(0.2, 2.0)) * _VISIT_GAP
    return visits


def _draw_faults(rng: np.random.Generator, seconds: float) -> list[Fault]:
    gap = min(max(seconds / _FEWEST_FAULTS, _FAULT_GAP[0]), _FAULT_GAP[1])
    faults: list[Fault] = []
    deck: list[str] = []
    at = float(rng.uniform(0.5, 1.5)) * gap
    while at < seconds:
        if not deck:
            deck = [kind for kind, count in KINDS.items() for _ in range(count)]
            rng.shuffle(deck)
        kind = deck.pop()
        moment: Moment = "now"
        if kind.startswith("kill") and kind != "kill child":
            moments: list[Moment] = ["now", "building", "ready", "gone"]
            moment = moments[int(rng.choice(4, p=[0.4, 0.2, 0.2, 0.2]))]
        lasts = float(rng.uniform(*_SECONDS[kind])) if kind in _SECONDS else 0.0
        offset = float(rng.choice([rng.uniform(-20.0, 20.0), rng.uniform(60.0, 300.0), 0.0]))
        faults.append(Fault(at, kind, lasts, float(rng.random()), moment, offset))
        at += float(rng.uniform(0.3, 1.7)) * gap
    return faults
