"""The overload policy: nobody starves, deadlines are met where they can be, and it beats oldest-first."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from bench.overload import LOADS, simulate
from ppd.messages import DetectorKey
from ppd.supervisor.scheduling import LATE_SHARE, Claim, Pace, choose
from ppd.supervisor.slots import plan_forks
from ppd.supervisor.table import DetectorVisit, State

NOW = 1000.0


def _who(detector: int) -> DetectorKey:
    return DetectorKey(instrument="Cam", group="g", detector=detector)


_CLAIMS = st.lists(
    st.tuples(st.floats(0.0, 2000.0), st.floats(0.0, 1000.0), st.floats(0.0, 100.0)), min_size=1, max_size=12
).map(lambda rows: [Claim(_who(i), since, deadline, work) for i, (deadline, since, work) in enumerate(rows)])


@settings(deadline=None)
@given(_CLAIMS, st.integers(0, 10))
def test_who_goes_next(claims: list[Claim], passed_over: int) -> None:
    chosen = choose(claims, NOW, passed_over)
    assert chosen in claims
    on_time = [c for c in claims if c.makes_it(NOW)]
    late = [c for c in claims if not c.makes_it(NOW)]
    if on_time and not (late and passed_over >= LATE_SHARE - 1):
        assert chosen.deadline == min(c.deadline for c in on_time)
    else:
        assert chosen.since == min(c.since for c in late)


@settings(deadline=None)
@given(st.integers(1, 30))
def test_nobody_starves(late: int) -> None:
    """However many come that can make it, the late are reached one in so many."""
    claims = [Claim(_who(i), float(i), NOW - 1.0, 1.0) for i in range(late)]
    passed, grants, reached = 0, 0, []
    while len(reached) < late:
        fresh = Claim(_who(1000 + grants), NOW, NOW + 60.0, 1.0)
        chosen = choose([*claims, fresh], NOW, passed)
        assert chosen is not None
        grants += 1
        passed = passed + 1 if chosen is fresh else 0
        if chosen is not fresh:
            claims.remove(chosen)
            reached.append(chosen.who.detector)
    assert reached == sorted(reached)
    assert grants == late * LATE_SHARE


def test_pace() -> None:
    """Estimates are medians of what was seen, and what is still to do counts."""
    pace = Pace(60.0)
    for number, seconds in enumerate((2.0, 3.0, 100.0)):
        who = _who(number)
        pace.note(who, "preprocess_start", NOW)
        pace.note(who, "preprocess_end", NOW + 1.0)
        pace.note(who, "main_start", NOW + 5.0)
        pace.note(who, "pipeline_end", NOW + 5.0 + seconds)
    pace.note(_who(7), "main_start", NOW)
    pace.forget(_who(7))
    pace.note(_who(7), "pipeline_end", NOW + 500.0)
    assert (pace.estimate(preprocessing=False), pace.estimate(preprocessing=True)) == (3.0, 4.0)
    before = pace.claim(_who(1), NOW, 30.0, None, preprocessing=True)
    assert (before.deadline, before.work) == (NOW + 90.0, 4.0)
    after = pace.claim(_who(1), NOW, 30.0, NOW + 40.0, preprocessing=False)
    assert (after.deadline, after.work) == (NOW + 100.0, 3.0)


@pytest.mark.parametrize("load", LOADS)
def test_better_than_oldest_first(load: str) -> None:
    """In the same night more alerts are in time, and all is done in the end, either way."""
    old, new = (simulate(policy, LOADS[load]) for policy in (False, True))
    assert old.undone == new.undone == 0
    if load == "0.8":
        assert old.in_time == new.in_time == 1.0
    elif load == "burst":
        assert new.in_time > 1.5 * old.in_time
    else:
        assert new.in_time > 2.0 * old.in_time


def _visit(detector: int, state: State, accepted: float, phase: str = "") -> DetectorVisit:
    d = DetectorVisit("Cam", "g", detector, (), ("Isr.yaml",), accepted, accepted + 3600.0, state=state)
    d.phase = phase
    return d


def _claim_of(d: DetectorVisit) -> Claim:
    return Claim(d.key, d.accepted, d.accepted + 60.0, 5.0)


def test_slots_for_those_on_time() -> None:
    """Who can make it gets the free slots first; the late get what is left."""
    waiting = [_visit(i, State.WAITING, accepted) for i, accepted in enumerate((NOW, NOW - 500, NOW - 10))]
    turn = plan_forks(waiting, [], 8, _claim_of, NOW)
    assert [d.detector for d in turn.fork] == [2, 0, 1]
    assert [d.detector for d in plan_forks(waiting, [], 2, _claim_of, NOW).fork] == [2, 0]


def test_late_ones_leave_room() -> None:
    """They hold three quarters of the slots at most, while somebody is on time."""
    waiting = [_visit(i, State.WAITING, NOW - 500.0 - i) for i in range(10)]
    assert len(plan_forks(waiting, [], 4, _claim_of, NOW).fork) == 4
    fresh = _visit(99, State.WAITING, NOW)
    turn = plan_forks([*waiting, fresh], [], 4, _claim_of, NOW)
    assert [d.detector for d in turn.fork] == [99, 9, 8, 7]
    live = [_visit(50 + i, State.READY, NOW - 600.0, "main") for i in range(3)]
    assert [d.detector for d in plan_forks([*waiting, fresh], live, 4, _claim_of, NOW).fork] == [99]


def test_put_back() -> None:
    """A late child that only waits for a processor makes room; one at work does not, and none for ever."""
    idle = _visit(1, State.READY, NOW - 500.0, "queued_main")
    younger = _visit(2, State.READY, NOW - 400.0, "queued_main")
    live = [idle, younger, _visit(3, State.RUNNING, NOW - 600.0, "main")]
    waiting = [_visit(9, State.WAITING, NOW)]
    turn = plan_forks(waiting, live, 3, _claim_of, NOW)
    assert (turn.fork, turn.put_back) == ([], [younger])
    younger.putting_back = True
    assert plan_forks(waiting, live, 3, _claim_of, NOW).put_back == []
    younger.putting_back, younger.put_backs = False, 3
    assert plan_forks(waiting, live, 3, _claim_of, NOW).put_back == [idle]
    late = [dataclasses.replace(waiting[0], accepted=NOW - 700.0)]
    assert plan_forks(late, live, 3, _claim_of, NOW).put_back == []
