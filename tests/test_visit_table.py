"""The table of visits: what it keeps of them, and for how long."""

from __future__ import annotations

import pytest
from site_support import announce

from ppd.supervisor.inputs import VisitInputs
from ppd.supervisor.resolve import DetectorInputs, Resolution
from ppd.supervisor.table import DetectorVisit, State, VisitEntry, VisitTable


def _entry(group: str) -> VisitEntry:
    return VisitEntry(
        visit=announce(group), accepted=0.0, day_obs=20260101, deployment="d", runs={}, detectors={}
    )


def _inputs(*detectors: int) -> VisitInputs:
    resolution = Resolution({}, {}, (), (), {d: DetectorInputs() for d in detectors}, frozenset())
    return VisitInputs((), resolution, {}, frozenset())


def test_inputs_of_the_last_visits_are_kept() -> None:
    table = VisitTable(keep_inputs=2)
    entries = [table.add(_entry(f"g{i}")) for i in range(4)]
    for entry in entries:
        table.keep_inputs(entry, _inputs(1, 2))
    assert [len(e.inputs) for e in entries] == [0, 0, 1, 1]


def test_what_was_found_again_replaces_what_was_found_before() -> None:
    table = VisitTable()
    entry = table.add(_entry("g"))
    for found in (_inputs(1, 2, 3), _inputs(4), _inputs(4), _inputs(2), _inputs(4, 2)):
        table.keep_inputs(entry, found)
    assert [sorted(p.resolution.detectors) for p in entry.inputs] == [[1, 2, 3], [2, 4]]


def test_time_in_the_line_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that waited for a processor has as much time for its work as any other."""
    now = 1000.0
    monkeypatch.setattr("ppd.supervisor.table.time.monotonic", lambda: now)
    d = DetectorVisit("Cam", "g", 4, (), ("Isr.yaml",), accepted=0.0, expires=1e9, state=State.READY)
    d.forked_at = now
    for phase, seconds in (
        ("waiting_raws", 30.0),
        ("queued_main", 500.0),
        ("main", 10.0),
        ("handing_over", 0.0),
    ):
        d.enter(phase)
        d.enter(phase)  # heartbeats say it again
        now += seconds
    assert now - d.forked_at == 40.0
