"""Reading a night's course from ppd's journal."""

from __future__ import annotations

__all__ = ["LEGS", "NightHistory", "Timeline", "quantiles", "read_history"]

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LEGS = ("accepted_to_ready", "raw_to_first_task", "raw_to_alert", "raw_to_central")
"""Latencies of the summary."""


@dataclasses.dataclass
class Timeline:
    """When what happened to one detector-visit; Unix seconds."""

    group: str
    detector: int
    state: str
    pipeline: str
    reason: str
    times: dict[str, float]
    attempts: int
    datasets: int
    judged: str = ""
    """Whether its alerts were in time, as ppd says; empty: it has not said so."""

    def leg(self, name: str) -> float | None:
        """Seconds of a leg, or `None` if it has no end."""
        ends = {
            "accepted_to_ready": ("accepted", "ready"),
            "raw_to_first_task": ("raw_closed", "first_task"),
            "raw_to_alert": ("raw_closed", "alert"),
            "raw_to_central": ("raw_closed", "exported"),
        }[name]
        begin, end = (self.times.get(key) for key in ends)
        return end - begin if begin is not None and end is not None else None


@dataclasses.dataclass
class NightHistory:
    """The journal of a night."""

    visits: list[str]
    timelines: list[Timeline]
    statements: dict[str, int]
    """Central SQL statements to resolve and fetch, by visit."""

    def latencies(self) -> dict[str, dict[str, float | None]]:
        """p50, p95 and max of each leg, seconds."""
        return {leg: quantiles([v for t in self.timelines if (v := t.leg(leg)) is not None]) for leg in LEGS}


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Median, 95th percentile and maximum, rounded to milliseconds; `None` of nothing."""
    if not values:
        return {"p50": None, "p95": None, "max": None}
    p50, p95 = np.quantile(values, [0.5, 0.95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "max": round(max(values), 3)}


def read_history(journal: Path, alerts: dict[tuple[str, int], float]) -> NightHistory:
    """Read a journal.

    Parameters
    ----------
    journal : `pathlib.Path`
        The SQLite file.
    alerts : `dict`
        When the alerts of a (group, detector) were written, Unix seconds.

    Returns
    -------
    history : `NightHistory`
        Visits in order of acceptance.
    """
    if not journal.exists():
        return NightHistory([], [], {})
    db = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        accepted = dict(db.execute("SELECT group_name, accepted FROM visit ORDER BY accepted").fetchall())
        timelines: dict[tuple[str, int], Timeline] = {}
        for group, detector, state, attempt, pipeline, reason in db.execute(
            "SELECT group_name, detector, state, attempt, pipeline, reason FROM detector_visit"
            " ORDER BY group_name, detector"
        ):
            timelines[group, detector] = Timeline(
                group=group,
                detector=detector,
                state=state,
                pipeline=Path(pipeline or "").stem,
                reason=reason or "",
                times={"accepted": accepted[group]},
                attempts=attempt,
                datasets=0,
            )
        statements: dict[str, int] = {}
        for when, group, detector, name, detail_text in db.execute(
            "SELECT t, group_name, detector, name, detail FROM event ORDER BY id"
        ):
            detail = json.loads(detail_text)
            if name == "resolved":
                statements[group] = statements.get(group, 0) + int(detail.get("statements", 0))
            timeline = timelines.get((group, detector))
            if timeline is None:
                continue
            # Of a second attempt the later time counts, but the raw was there once.
            if name == "raw_seen":
                timeline.times.setdefault("raw_closed", float(detail["closed"]))
            timeline.times[name] = when
            if name == "judged":
                timeline.judged = str(detail["alerts"])
            if name == "exported":
                timeline.datasets = int(detail.get("datasets", 0))
    finally:
        db.close()
    for key, when in alerts.items():
        if key in timelines:
            timelines[key].times["alert"] = when
    order = {group: i for i, group in enumerate(accepted)}
    ordered = sorted(timelines.values(), key=lambda t: (order[t.group], t.detector))
    return NightHistory(list(accepted), ordered, statements)
