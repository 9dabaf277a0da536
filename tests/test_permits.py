"""Permits: never more than the limit, the urgent first, then the oldest, and nobody is forgotten."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ppd.messages import DetectorKey
from ppd.supervisor.permits import Permits


def _who(detector: int) -> DetectorKey:
    return DetectorKey(instrument="GridCam", group="g", detector=detector)


def _numbers(keys: list[DetectorKey]) -> list[int]:
    return [key.detector for key in keys]


def test_urgent_first_then_oldest() -> None:
    permits = Permits(1)
    for number, urgent, since in ((0, False, 1.0), (1, True, 9.0), (2, True, 5.0), (3, False, 0.5)):
        permits.ask(_who(number), urgent=urgent, since=since)
    order = []
    while granted := permits.grant():
        order += _numbers(granted)
        permits.give_back(granted[0])
    assert order == [2, 1, 3, 0]


def test_first_come_first_served() -> None:
    permits = Permits(2)
    for number in (5, 3, 4):
        permits.ask(_who(number), urgent=True, since=1.0)
    assert _numbers(permits.grant()) == [5, 3]
    permits.give_back(_who(5))
    assert _numbers(permits.grant()) == [4]
    assert (permits.held, permits.queued) == (2, 0)


def test_asking_again_gives_the_permit_back() -> None:
    """From pre-processing to the main pipeline: a child never holds two, nor one that it waits for."""
    permits = Permits(1)
    permits.ask(_who(0), urgent=False, since=0.0)
    permits.ask(_who(1), urgent=True, since=9.0)
    assert _numbers(permits.grant()) == [1]
    permits.ask(_who(1), urgent=True, since=9.0)
    assert (permits.held, permits.queued) == (0, 2)
    assert _numbers(permits.grant()) == [1]


def test_given_back_while_queued() -> None:
    permits = Permits(1)
    permits.ask(_who(0), urgent=True, since=0.0)
    permits.ask(_who(1), urgent=True, since=1.0)
    permits.give_back(_who(0))
    permits.give_back(_who(7))
    assert permits.queued == 1
    assert _numbers(permits.grant()) == [1]


def test_new_place_after_leaving_the_line() -> None:
    """An urgent place that was given back is no good for work that can wait."""
    permits = Permits(1)
    permits.ask(_who(0), urgent=True, since=0.0)
    permits.give_back(_who(0))
    permits.ask(_who(0), urgent=False, since=0.0)
    permits.ask(_who(1), urgent=True, since=5.0)
    assert _numbers(permits.grant()) == [1]


def test_becoming_urgent_in_the_line() -> None:
    permits = Permits(1)
    permits.ask(_who(0), urgent=False, since=0.0)
    permits.ask(_who(1), urgent=False, since=1.0)
    permits.ask(_who(1), urgent=True, since=1.0)
    assert permits.queued == 2
    assert _numbers(permits.grant()) == [1]
    permits.give_back(_who(1))
    assert _numbers(permits.grant()) == [0]


def test_asking_twice_keeps_the_place() -> None:
    permits = Permits(1)
    permits.ask(_who(0), urgent=True, since=1.0)
    permits.ask(_who(1), urgent=True, since=1.0)
    permits.ask(_who(0), urgent=True, since=1.0)
    assert _numbers(permits.grant()) == [0]


class _Line(RuleBasedStateMachine):
    """Permits against the plainest model: a list, sorted each time."""

    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.permits = Permits(limit)
        self.limit = limit
        self.waiting: dict[int, tuple[int, float, int]] = {}
        self.held: set[int] = set()
        self.count = 0

    @rule(who=st.integers(0, 7), urgent=st.booleans(), since=st.sampled_from([1.0, 2.0]))
    def ask(self, who: int, urgent: bool, since: float) -> None:
        self.permits.ask(_who(who), urgent=urgent, since=since)
        self.held.discard(who)
        place = (0 if urgent else 1, since)
        if self.waiting.get(who, ())[:2] != place:
            self.count += 1
            self.waiting[who] = (*place, self.count)

    @rule(who=st.integers(0, 7))
    def give_back(self, who: int) -> None:
        self.permits.give_back(_who(who))
        self.held.discard(who)
        self.waiting.pop(who, None)

    @rule()
    def grant(self) -> None:
        expected = sorted(self.waiting, key=lambda w: self.waiting[w])[: self.limit - len(self.held)]
        assert _numbers(self.permits.grant()) == expected
        for who in expected:
            del self.waiting[who]
        self.held.update(expected)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "permits"):
            assert self.permits.held == len(self.held) <= self.limit
            assert self.permits.queued == len(self.waiting)


TestLine = pytest.mark.filterwarnings("error")(_Line.TestCase)
TestLine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
