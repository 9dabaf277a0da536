"""The table of visits: what it keeps of them, and for how long."""

from __future__ import annotations

from site_support import announce

from ppd.supervisor.inputs import VisitInputs
from ppd.supervisor.resolve import DetectorInputs, Resolution
from ppd.supervisor.table import VisitEntry, VisitTable


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
