"""What the supervisor tells of itself."""

from __future__ import annotations

__all__ = ["describe"]

import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

from .faults import ailments
from .readiness import why_not_accepting
from .steering import describe_pauses
from .table import LIVE, PAST_CHILDREN
from .timeliness import count_timeliness
from .visits_in_hand import group_states

if TYPE_CHECKING:
    from .daemon import Supervisor

_LAST_VISITS = 20


def describe(supervisor: Supervisor) -> dict[str, Any]:
    """Describe the supervisor's state as a JSON object.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.

    Returns
    -------
    status : `dict`
        Health, detector-visits by state, the last visits, slots, cache,
        spool, the loop's turns, counts and errors.
    """
    life = supervisor.lifecycle
    settings = supervisor.settings
    visits = []
    for entry in list(life.table.visits.values())[-_LAST_VISITS:]:
        visits.append(
            {
                "group": entry.visit.groupId,
                "filter": entry.visit.filters,
                "accepted": entry.accepted,
                "states": group_states(entry),
                "alerts": count_timeliness(entry.detectors.values()),
            }
        )
    live = [d for d in life.table if d.state in LIVE]
    spool = supervisor.spool_watch
    faults = [a.text for a in ailments(supervisor)]
    return {
        "health": health(supervisor, bool(faults)),
        "faults": faults,
        "refuses": why_not_accepting(supervisor),
        "pid": os.getpid(),
        "instrument": settings.instrument,
        "deployment": supervisor.deployment.id,
        "deployments": _deployments(supervisor),
        "paused": describe_pauses(supervisor),
        "reload": supervisor.reloader.describe(),
        "uptime": time.time() - supervisor.started,
        "drained": supervisor.draining and supervisor.idle(),
        "idle": supervisor.idle(),
        "detector_visits": life.table.counts(),
        "visits": visits,
        "slots": {"used": len(live), "total": settings.slots},
        "processors": {
            "used": life.permits.held,
            "total": life.permits.limit,
            "queued": life.permits.queued,
        },
        "children": [
            {"group": d.group, "detector": d.detector, "pid": d.pid, "phase": d.phase, "state": d.state.value}
            for d in live
        ],
        "cache": dataclasses.asdict(supervisor.central.status.cache),
        "prefetch": {
            "pointings": supervisor.central.status.prefetching,
            "fetched": supervisor.central.status.prefetched,
        },
        "inherited": dataclasses.asdict(supervisor.nursery.inherited),
        "spool": {
            "entries": spool.entries,
            "bytes": spool.bytes,
            "deferred": supervisor.exporter.state.deferred,
            "max_bytes": settings.spool_max_bytes,
            "dead_letters": supervisor.exporter.state.letters,
        },
        "loop": supervisor.watch.describe(),
        "web": supervisor.web.describe(),
        "raws_waiting": life.raws.unmatched,
        "raw_sources": [dataclasses.asdict(s) for s in supervisor.sources.status()],
        "visit_sources": [dataclasses.asdict(s) for s in supervisor.visit_sources.status()],
        "counts": supervisor.counters.as_dict(),
        "errors": supervisor.counters.errors(),
    }


def health(supervisor: Supervisor, trouble: bool) -> str:
    """Say in a word how the supervisor is: ``ok``, ``trouble``, ``paused`` or ``draining``."""
    if supervisor.draining:
        return "draining"
    if trouble:
        return "trouble"
    return "paused" if supervisor.pauses.all is not None else "ok"


def _deployments(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Those with visits at work, and the one for new visits, which is the last."""
    current = supervisor.deployment
    found: dict[int, dict[str, Any]] = {current.generation: {"id": current.id, "detector_visits": 0}}
    for entry in supervisor.lifecycle.table.visits.values():
        if entry.unfinished:
            one = found.setdefault(
                entry.deployment.generation, {"id": entry.deployment.id, "detector_visits": 0}
            )
            one["detector_visits"] += sum(d.state not in PAST_CHILDREN for d in entry.detectors.values())
    return [{"generation": number, **found[number]} for number in sorted(found)]
