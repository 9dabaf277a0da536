"""The visits that the supervisor has in hand, one by one: for operators, while the night goes on."""

from __future__ import annotations

__all__ = ["describe_visits", "group_states"]

import time
from typing import TYPE_CHECKING, Any

from .table import OVER, State, VisitEntry
from .timeliness import count_timeliness

if TYPE_CHECKING:
    from .daemon import Supervisor


def describe_visits(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Describe the visits that are at work, and the last of those that are over.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.

    Returns
    -------
    visits : `list` [ `dict` ]
        In the order in which they were accepted: what was announced, detectors by state,
        and how many alerts were in time.
    """
    now = time.time()
    return [_describe(entry, now) for entry in supervisor.lifecycle.table.visits.values()]


def group_states(entry: VisitEntry) -> dict[str, int]:
    """Count a visit's detectors by state, in the order of their life."""
    states = [d.state for d in entry.detectors.values()]
    return {state.value: states.count(state) for state in State if state in states}


def _describe(entry: VisitEntry, now: float) -> dict[str, Any]:
    visit, detectors = entry.visit, list(entry.detectors.values())
    reasons = [d.reason for d in detectors if d.reason]
    return {
        "group": visit.groupId,
        "night": entry.day_obs,
        "filter": visit.filters,
        "survey": visit.survey,
        "ra": visit.ra,
        "dec": visit.dec,
        "rotation": visit.rotation,
        "accepted": entry.accepted,
        "age": now - entry.accepted,
        "over": all(d.state in OVER for d in detectors),
        "states": group_states(entry),
        "again": sum(d.attempt > 1 for d in detectors),
        "alerts": count_timeliness(detectors),
        "reason": reasons[-1] if reasons else "",
    }
