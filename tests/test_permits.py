"""Permits: never more than the limit, in the order of the policy, and nobody is forgotten."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ppd.messages import DetectorKey
from ppd.supervisor.permits import Permits
from ppd.supervisor.scheduling import LATE_SHARE, Claim

NOW = 1000.0


def _who(detector: int) -> DetectorKey:
    return DetectorKey(instrument="GridCam", group="g", detector=detector)


def _claim(detector: int, deadline: float = NOW + 60.0, since: float = 1.0, work: float = 10.0) -> Claim:
    return Claim(_who(detector), since, deadline, work)


def _late(detector: int, since: float) -> Claim:
    return _claim(detector, deadline=NOW - 1.0, since=since)


def _numbers(keys: list[DetectorKey]) -> list[int]:
    return [key.detector for key in keys]


def _drain(permits: Permits) -> list[int]:
    order = []
    while granted := permits.grant(NOW):
        order += _numbers(granted)
        permits.give_back(granted[0])
    return order


def test_earliest_deadline_first() -> None:
    permits = Permits(1)
    for number, deadline in ((0, NOW + 50), (1, NOW + 20), (2, NOW + 90), (3, NOW + 30)):
        permits.ask(_claim(number, deadline))
    assert _drain(permits) == [1, 3, 0, 2]


def test_who_can_not_make_it_lets_others_go_first() -> None:
    """The deadline that is nearest may be one that is lost."""
    permits = Permits(1)
    permits.ask(_claim(0, deadline=NOW + 5.0, work=10.0))
    permits.ask(_claim(1, deadline=NOW + 30.0))
    assert _drain(permits) == [1, 0]


def test_late_ones_have_their_share() -> None:
    """Oldest first, one in so many."""
    permits = Permits(1)
    for number in range(8):
        permits.ask(_claim(number, NOW + 50 + number))
    permits.ask(_late(20, since=5.0))
    permits.ask(_late(21, since=3.0))
    order = _drain(permits)
    assert order.index(21) == LATE_SHARE - 1
    assert order.index(20) == 2 * LATE_SHARE - 1
    assert [n for n in order if n < 20] == list(range(8))


def test_limit() -> None:
    permits = Permits(2)
    for number in (5, 3, 4):
        permits.ask(_claim(number, since=float(number)))
    assert _numbers(permits.grant(NOW)) == [3, 4]
    assert permits.grant(NOW) == []
    permits.give_back(_who(3))
    assert _numbers(permits.grant(NOW)) == [5]
    assert (permits.held, permits.queued) == (2, 0)


def test_asking_again_gives_the_permit_back() -> None:
    """From pre-processing to the main pipeline: a child never holds two, nor one that it waits for."""
    permits = Permits(1)
    permits.ask(_claim(1))
    assert _numbers(permits.grant(NOW)) == [1]
    permits.ask(_claim(1))
    assert (permits.held, permits.queued) == (0, 1)
    assert _numbers(permits.grant(NOW)) == [1]


def test_given_back_while_queued() -> None:
    permits = Permits(1)
    permits.ask(_claim(0, since=0.0))
    permits.ask(_claim(1))
    permits.give_back(_who(0))
    permits.give_back(_who(7))
    assert permits.queued == 1
    assert _numbers(permits.grant(NOW)) == [1]


def test_what_a_silent_child_holds_is_lent() -> None:
    """A stopped process does not hold up the node; when it is heard of again, no more are granted."""
    permits = Permits(1)
    permits.ask(_claim(0))
    assert _numbers(permits.grant(NOW)) == [0]
    permits.ask(_claim(1))
    permits.ask(_claim(2))
    assert permits.grant(NOW) == []
    assert _numbers(permits.grant(NOW, silent={_who(0)})) == [1]
    assert permits.grant(NOW, silent={_who(0)}) == []
    assert permits.grant(NOW) == []
    permits.give_back(_who(1))
    assert permits.grant(NOW) == []
    permits.give_back(_who(0))
    assert _numbers(permits.grant(NOW)) == [2]


class _Line(RuleBasedStateMachine):
    """Permits against what must always hold."""

    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.permits = Permits(limit)
        self.limit = limit
        self.waiting: dict[int, Claim] = {}
        self.held: set[int] = set()

    @rule(who=st.integers(0, 7), since=st.sampled_from([1.0, 2.0]), ahead=st.sampled_from([-5, 5, 20, 90]))
    def ask(self, who: int, since: float, ahead: int) -> None:
        claim = _claim(who, NOW + ahead, since)
        self.permits.ask(claim)
        self.held.discard(who)
        self.waiting[who] = claim

    @rule(who=st.integers(0, 7))
    def give_back(self, who: int) -> None:
        self.permits.give_back(_who(who))
        self.held.discard(who)
        self.waiting.pop(who, None)

    @rule()
    def grant(self) -> None:
        granted = _numbers(self.permits.grant(NOW))
        assert len(granted) == min(self.limit - len(self.held), len(self.waiting))
        for who in granted:
            claim = self.waiting.pop(who)
            on_time = [c for c in self.waiting.values() if c.makes_it(NOW)]
            if claim.makes_it(NOW):
                assert all(claim.deadline <= c.deadline for c in on_time)
            else:
                late = [c for c in self.waiting.values() if not c.makes_it(NOW)]
                assert all(claim.since <= c.since for c in late)
        self.held.update(granted)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "permits"):
            assert self.permits.held == len(self.held) <= self.limit
            assert self.permits.queued == len(self.waiting)


TestLine = pytest.mark.filterwarnings("error")(_Line.TestCase)
TestLine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
