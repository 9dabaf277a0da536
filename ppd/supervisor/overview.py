"""What the status page draws: one short entry for each detector, and the last visits."""

from __future__ import annotations

__all__ = ["describe_detectors"]

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .faults import ailments
from .readiness import why_not_accepting
from .table import LIVE, OVER, DetectorVisit, State, VisitEntry
from .timeliness import count_timeliness
from .visits_in_hand import group_states

if TYPE_CHECKING:
    from .daemon import Supervisor

# As far as anybody looks back at once, and as much as one turn of the loop may tell.
_LAST_VISITS = 12
_MAX_REASON = 240
_DIGITS = 2


def describe_detectors(supervisor: Supervisor) -> dict[str, Any]:
    """Describe what each detector is at as a JSON object.

    All times in it are moments, not spans: what does not change stays the
    same from one answer to the next.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.

    Returns
    -------
    described : `dict`
        ``detectors`` by ID: ``group``, ``state``, ``since``, and where there
        is something to tell ``phase``, ``attempt``, ``reason``, ``alerts`` (as
        `ppd.supervisor.timeliness.count_timeliness` calls it, unless open),
        ``raw`` (when its last raw was complete), ``failed`` (how many of the
        last visits, with ``failed_group`` and ``failed_reason`` of the last
        of them) and ``paused``.  ``visits``: the last ones, oldest first.
        ``unready``: why a visit would not be taken now; empty if it would.
        ``faults``: what is wrong now, ``component`` and ``text`` of each.
        ``started``, ``alert_deadline`` and ``cache_bytes``.
    """
    visits = list(supervisor.lifecycle.table.visits.values())[-_LAST_VISITS:]
    detectors: dict[int, dict[str, Any]] = {}
    for number, own in _by_detector(reversed(visits)).items():
        detectors[number] = _entry(_foremost(own))
        failed = [d for d in own if d.state is State.FAILED]
        if failed:
            detectors[number] |= {
                "failed": len(failed),
                "failed_group": failed[0].group,
                "failed_reason": failed[0].reason[:_MAX_REASON],
            }
    for number, pause in supervisor.pauses.detectors.items():
        detectors.setdefault(number, {})["paused"] = str(pause)
    refusal = why_not_accepting(supervisor)
    return {
        "detectors": {str(number): entry for number, entry in sorted(detectors.items())},
        "visits": [_visit(entry) for entry in visits],
        "faults": [dataclasses.asdict(a) for a in ailments(supervisor)],
        "unready": [refusal] if refusal is not None else [],
        "started": round(supervisor.started, _DIGITS),
        "alert_deadline": supervisor.settings.alert_deadline,
        "cache_bytes": supervisor.settings.cache_bytes,
    }


def _by_detector(newest_first: Iterable[VisitEntry]) -> dict[int, list[DetectorVisit]]:
    found: dict[int, list[DetectorVisit]] = {}
    for entry in newest_first:
        for number, d in entry.detectors.items():
            found.setdefault(number, []).append(d)
    return found


def _foremost(newest_first: list[DetectorVisit]) -> DetectorVisit:
    """Choose what a detector is at: what runs, else the first that has a child, else the newest."""
    for wanted in ({State.RUNNING}, LIVE):
        for d in reversed(newest_first):
            if d.state in wanted:
                return d
    return newest_first[0]


def _entry(d: DetectorVisit) -> dict[str, Any]:
    entry: dict[str, Any] = {"group": d.group, "state": d.state.value, "since": round(d.since, _DIGITS)}
    if d.state in LIVE:
        entry["phase"] = d.phase or "starting"
    if d.attempt > 1:
        entry["attempt"] = d.attempt
    reason = d.reason or d.remark
    if reason:
        entry["reason"] = reason[:_MAX_REASON]
    if d.alerts is not None:
        entry["alerts"] = d.alerts.value
    elif d.expected_late:
        entry["alerts"] = "expected_late"
    if d.closed is not None:
        entry["raw"] = round(d.closed, _DIGITS)
    return entry


def _visit(entry: VisitEntry) -> dict[str, Any]:
    own = entry.detectors.values()
    over = all(d.state in OVER for d in own)
    spans = [d.since - d.closed for d in own if d.state is State.EXPORTED and d.closed is not None]
    closed = [d.closed for d in own if d.closed is not None]
    return {
        "group": entry.visit.groupId,
        "filter": entry.visit.filters,
        "accepted": round(entry.accepted, _DIGITS),
        "raw": round(max(closed), _DIGITS) if closed else None,
        "exported": max((round(d.since, _DIGITS) for d in own if d.state is State.EXPORTED), default=None),
        "over": round(max(d.since for d in own), _DIGITS) if over else None,
        "slowest": round(max(spans), 1) if spans else None,
        "states": group_states(entry),
        "alerts": count_timeliness(own),
    }
