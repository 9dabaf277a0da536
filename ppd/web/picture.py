"""What the page shows as one value, and what changes from one to the next."""

from __future__ import annotations

__all__ = ["Past", "Picture", "changes", "make_picture"]

import dataclasses
from collections.abc import Mapping
from typing import Any

from .advice import advise
from .verdict import judge

Picture = dict[str, Any]
"""Sections by name; ``detectors`` has an entry for each detector."""

_VISITS = 12
_ERRORS = 15
_MAX_TEXT = 400


@dataclasses.dataclass(frozen=True)
class Past:
    """What the journal knows from before this supervisor was started."""

    visits: tuple[dict[str, Any], ...] = ()
    """Oldest first, in the supervisor's form."""
    detectors: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def make_picture(status: Mapping[str, Any], overview: Mapping[str, Any], past: Past, now: float) -> Picture:
    """Put together what the page shows.

    Parameters
    ----------
    status : `dict`
        Answer to ``status``.
    overview : `dict`
        Answer to ``detectors``.
    past : `Past`
        What is shown where the supervisor knows nothing.
    now : `float`
        Unix seconds.

    Returns
    -------
    picture : `dict`
        All moments in it are Unix seconds.
    """
    current = {v["group"] for v in overview["visits"]}
    visits = [*(v for v in past.visits if v["group"] not in current), *overview["visits"]][-_VISITS:]
    paused = status["paused"]
    spool, cache = status["spool"], status["cache"]
    return {
        "head": {
            "instrument": status["instrument"],
            "deployment": status["deployment"],
            "pid": status["pid"],
            "started": overview["started"],
            "alert_deadline": overview["alert_deadline"],
        },
        "verdict": judge(
            visits,
            [fault["text"] for fault in overview["faults"]],
            overview["unready"],
            paused["all"] is not None,
            status["health"] == "draining",
            overview["alert_deadline"],
            now,
        ),
        "faults": [advise(fault["component"], fault["text"]) for fault in overview["faults"]],
        "unready": overview["unready"],
        "paused": paused["all"],
        "gauges": {
            "spool": {"used": spool["bytes"], "total": spool["max_bytes"], "entries": spool["entries"]},
            "cache": {
                "used": cache["bytes_held"],
                "total": overview["cache_bytes"],
                "entries": cache["datasets"],
            },
            "slots": {"used": status["slots"]["used"], "total": status["slots"]["total"]},
            "processors": dict(status["processors"]),
            "dead_letters": spool["dead_letters"],
            "raws_waiting": status["raws_waiting"],
            "longest_turn": round(status["loop"]["longest_minute"], 2),
        },
        "visits": visits,
        "errors": [
            {**e, "time": round(e["time"], 1), "message": e["message"][:_MAX_TEXT]}
            for e in status["errors"][-_ERRORS:]
        ],
        "detectors": {**past.detectors, **overview["detectors"]},
    }


def changes(old: Picture, new: Picture) -> Picture:
    """Say what is new.

    Parameters
    ----------
    old, new : `dict`
        Two pictures.

    Returns
    -------
    changes : `dict`
        The sections that are others, whole; but of the detectors only those
        that are others, `None` for one that is gone.
    """
    found = {name: value for name, value in new.items() if name != "detectors" and old.get(name) != value}
    before, after = old["detectors"], new["detectors"]
    detectors = {number: entry for number, entry in after.items() if before.get(number) != entry}
    detectors |= {number: None for number in before if number not in after}
    if detectors:
        found["detectors"] = detectors
    return found
