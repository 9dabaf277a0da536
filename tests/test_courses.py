"""How long legs took, and whether alerts were in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ppd.supervisor.courses import LEGS, SPANS, Course
from ppd.supervisor.table import State

_ALL = {leg.name: leg for leg in (*LEGS, *SPANS)}
_ANNOUNCED = 1000.0
# A detector-visit as it should be: event, time, detail.
_GOOD: list[tuple[str, float, dict[str, Any]]] = [
    ("is_waiting", 1003.0, {}),
    ("is_forked", 1004.0, {}),
    ("forked", 1004.5, {}),
    ("ready", 1006.0, {}),
    ("preprocess_start", 1007.0, {}),
    ("preprocess_end", 1010.0, {"success": True}),
    ("raw_seen", 1031.0, {"closed": 1030.5}),
    ("ingested", 1033.0, {"shutter_closed": 1028.0}),
    ("is_running", 1033.0, {}),
    ("main_start", 1034.0, {}),
    ("first_task", 1036.0, {}),
    ("pipeline_end", 1046.0, {"success": True}),
    ("handed_over", 1047.0, {}),
    ("is_exported", 1060.0, {}),
]
_TAKEN = {
    "inputs": 2.0,
    "slot": 1.0,
    "open": 2.0,
    "preprocess_wait": 1.0,
    "preprocess": 3.0,
    "notice": 0.5,
    "ingest": 2.0,
    "main_wait": 1.0,
    "graph": 2.0,
    "pipeline": 10.0,
    "hand_over": 1.0,
    "export": 13.0,
    "raw_to_first_task": 5.5,
    "raw_to_alert": 15.5,
    "raw_to_central": 29.5,
    "shutter_to_alert": 18.0,
}


def _course(events: list[tuple[str, float, dict[str, Any]]], accepted: float | None = 1001.0) -> Course:
    course = Course(accepted)
    for name, when, detail in events:
        course.note(name, when, detail, _ANNOUNCED)
    return course


def _over(state: State = State.EXPORTED, *, lost: str = "", raw: bool = True) -> Any:
    return SimpleNamespace(state=state, lost_cause=lost, closed=1030.5 if raw else None, alerts=None)


def test_every_leg() -> None:
    course = _course(_GOOD)
    assert {name: course.taken(leg) for name, leg in _ALL.items()} == _TAKEN


def test_the_legs_of_the_way_make_the_whole() -> None:
    """Without gaps: what lies between acceptance and central is in one leg or is the wait for the raw."""
    course = _course(_GOOD)
    wait_for_raw = 1030.5 - 1010.0
    ingest_begins_with_seen = sum(course.taken(leg) or 0.0 for leg in LEGS) + wait_for_raw
    assert ingest_begins_with_seen == pytest.approx(1060.0 - 1001.0)


def test_of_an_earlier_supervisor() -> None:
    """When its inputs were asked for is not known here."""
    assert _course(_GOOD, accepted=None).taken(_ALL["inputs"]) is None


def test_another_attempt_has_its_own_legs_and_the_same_raw() -> None:
    again = [
        ("is_waiting", 1050.0, {}),
        ("is_forked", 1051.0, {}),
        ("ready", 1052.0, {}),
        ("raw_seen", 1052.0, {"closed": 1030.5}),
        ("ingested", 1053.0, {"shutter_closed": 1028.0}),
    ]
    course = _course(_GOOD[:-3] + again)
    assert course.taken(_ALL["open"]) == 1.0
    assert course.taken(_ALL["ingest"]) == 1.0
    assert course.taken(_ALL["pipeline"]) is None
    assert course.taken(_ALL["notice"]) is None
    course.note("first_task", 1055.0, {}, _ANNOUNCED)
    assert course.taken(_ALL["raw_to_first_task"]) == 1055.0 - 1030.5


def test_a_raw_said_again_ends_no_leg() -> None:
    course = _course([])
    assert course.note("raw_seen", 1031.0, {"closed": 1030.5}, _ANNOUNCED)
    assert not course.note("raw_seen", 1040.0, {"closed": 1030.5}, _ANNOUNCED)
    assert course.note("raw_seen", 1061.0, {"closed": 1060.5}, _ANNOUNCED), "the second snap"


def test_a_clock_that_was_stepped() -> None:
    course = _course([("is_waiting", 1003.0, {}), ("is_forked", 990.0, {})])
    assert course.taken(_ALL["slot"]) is None


@pytest.mark.parametrize(("deadline", "expected"), [(60.0, "on_time"), (18.0, "on_time"), (17.9, "late")])
def test_judgement(deadline: float, expected: str) -> None:
    course = _course(_GOOD)
    assert course.judge(_over(State.RUNNING), deadline) is None
    over = _over(State.HANDED_OVER)
    over.alerts = course.judge(over, deadline)
    assert over.alerts == expected
    over.state = State.EXPORTED
    assert course.judge(over, deadline) is None, "it is told once"


@pytest.mark.parametrize("over", [_over(State.FAILED), _over(State.HANDED_OVER, lost="its APDB")])
def test_failures_have_no_alerts(over: Any) -> None:
    assert _course(_GOOD[:9]).judge(over, 60.0) == "never"
    # It failed before the raw could be read, or after it had ended all right.
    assert _course(_GOOD[:7]).judge(over, 60.0) == "never"
    assert _course(_GOOD).judge(over, 60.0) == "never"


def test_without_a_raw_there_is_nothing_to_judge() -> None:
    assert _course(_GOOD[:6]).judge(_over(State.FAILED, raw=False), 60.0) == "not_judged"


@pytest.mark.parametrize("shutter", [100.0, 939.0, 1039.0, "x", None])
def test_an_old_visit_sent_again(shutter: Any) -> None:
    """Its exposure was long before the announcement; or the header can't be right."""
    events = [(n, t, {"shutter_closed": shutter} if n == "ingested" else d) for n, t, d in _GOOD]
    course = _course(events)
    assert course.taken(_ALL["shutter_to_alert"]) is None
    assert course.taken(_ALL["raw_to_alert"]) == 15.5
    assert course.judge(_over(), 60.0) == "not_judged"
    assert _course(events[:9]).judge(_over(State.FAILED), 60.0) == "not_judged"


def test_an_announcement_that_came_late_is_none_of_these() -> None:
    events = [(n, t, {"shutter_closed": 941.0} if n == "ingested" else d) for n, t, d in _GOOD]
    assert _course(events).judge(_over(), 60.0) == "late"


def test_a_pipeline_that_failed_sent_no_alerts() -> None:
    events = [(n, t, {"success": False} if n == "pipeline_end" else d) for n, t, d in _GOOD]
    assert _course(events).taken(_ALL["raw_to_alert"]) is None
    assert _course(events).judge(_over(), 60.0) == "not_judged"
