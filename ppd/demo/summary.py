"""The figures of a night."""

from __future__ import annotations

__all__ = ["print_summary", "summarize_night"]

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from .history import NightHistory
from .matching import DetectorResult

SNR = 10.0
"""Completeness is counted above this signal-to-noise ratio."""


def summarize_night(
    *,
    wall_s: float,
    planned: int,
    history: NightHistory,
    results: Sequence[DetectorResult],
    alerts: int,
    left_behind: dict[str, int],
) -> dict[str, Any]:
    """Make the contents of ``summary.json``.

    Parameters
    ----------
    wall_s : `float`
        Seconds that the whole demo took.
    planned : `int`
        Visits of the plan.
    history : `ppd.demo.history.NightHistory`
        The journal.
    results : sequence of `ppd.demo.matching.DetectorResult`
        Detections and truth.
    alerts : `int`
        Alerts written.
    left_behind : `dict`
        What `ppd.demo.leftovers.count_leftovers` found.

    Returns
    -------
    summary : `dict`
        JSON-able; a figure that can't be had is `None`.
    """
    states = [t.state for t in history.timelines]
    truths = [r.truth[(r.truth["snr"] > SNR) & r.truth["good"]] for r in results]
    expected = sum(len(t) for t in truths)
    found = sum(int(np.sum(t["found"])) for t in truths)
    detections = sum(len(r.detections) for r in results)
    spurious = sum(int(np.sum(~np.asarray(r.detections["true"]))) for r in results)
    statements = list(history.statements.values())
    return {
        "wall_s": round(wall_s, 1),
        "visits": len(history.visits),
        "visits_planned": planned,
        "detector_visits": len(states),
        "succeeded": states.count("exported"),
        "failed": states.count("failed"),
        "datasets_exported": sum(t.datasets for t in history.timelines),
        "alerts": alerts,
        "timeliness": dict(sorted(Counter(t.judged or "open" for t in history.timelines).items())),
        "detections": detections,
        "true_changes_10sigma": expected,
        "completeness_10sigma": round(found / expected, 4) if expected else None,
        "spurious_fraction": round(spurious / detections, 4) if detections else None,
        "central_statements_per_visit": round(float(np.mean(statements)), 1) if statements else None,
        "latency_s": history.latencies(),
        "left_behind": left_behind,
    }


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    table = RichTable(title="The night", show_header=False, title_justify="left")
    for name, value in summary.items():
        if name not in ("timeliness", "latency_s", "left_behind"):
            table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    for leg, values in summary["latency_s"].items():
        if values["p50"] is not None:
            text = f"p50 {values['p50']:.2f} s   p95 {values['p95']:.2f} s   max {values['max']:.2f} s"
            table.add_row(leg.replace("_", " "), text)
    for name in ("timeliness", "left_behind"):
        found = ", ".join(f"{k} {v}" for k, v in summary[name].items())
        table.add_row(name.replace("_", " "), found)
    console.print(table)
