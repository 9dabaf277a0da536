"""The report of a night: one page that needs nothing else."""

from __future__ import annotations

__all__ = ["write_report"]

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler

from .history import LEGS, NightHistory
from .matching import DetectorResult
from .night import NightPlan, PlannedVisit
from .report_charts import SPANS, completeness_chart, marks, timeline_chart
from .report_images import Cutout, ImageStore, cutouts, mosaic

_CUTOUTS = 12


def write_report(
    path: Path,
    plan: NightPlan,
    collection: str | None,
    history: NightHistory,
    results: Sequence[DetectorResult],
    summary: dict[str, Any],
) -> None:
    """Write the report.

    Parameters
    ----------
    path : `pathlib.Path`
        The HTML file.
    plan : `ppd.demo.night.NightPlan`
        The night as planned.
    collection : `str` or `None`
        Output chain in the central repo; `None`: there are no outputs.
    history : `ppd.demo.history.NightHistory`
        The night as it went.
    results : sequence of `ppd.demo.matching.DetectorResult`
        Detections and truth.
    summary : `dict`
        The figures.
    """
    with Butler.from_config(plan.central, writeable=False) as butler:
        store = ImageStore(plan, butler, collection)
        visits = "".join(
            _visit(number, visit, store, results)
            for number, visit in enumerate(plan.visits, start=1)
            if visit.group in history.visits
        )
        best = cutouts(results, plan, store, true=True, count=_CUTOUTS)
        worst = cutouts(results, plan, store, true=False, count=_CUTOUTS)
    style = (Path(__file__).parent / "report.css").read_text()
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ppd: a simulated night</title><style>{style}</style></head><body><main>
<h1>A simulated night</h1>
<p>{len(history.visits)} visits of nine detectors by DemoCam, seed {plan.seed}, processed by ppd.
Every number on this page was measured.</p>
{_headline(summary)}
<h2>Where the seconds go</h2>
<p>One row per detector-visit, from the announcement of its visit until its outputs are in the central
repo. The pointer on a row tells its seconds.</p>
{_span_key()}
{timeline_chart(history)}
{_latency_table(summary)}
<h2>Completeness against magnitude</h2>
<p>Of what truly changed on good pixels: variable stars, supernovae, moving objects. The bars are
one sigma.</p>
{completeness_chart(results)}
<h2>Best true detections</h2>
<p>Science, template, difference; 31×31 pixels.</p>
{_cutout_grid(best)}
<h2>Worst false detections</h2>
<p>The most significant of those next to which nothing changed.</p>
{_cutout_grid(worst)}
<h2>The visits</h2>
<p class="key-line">On the difference: <b style="color:#1a9cc7">○</b> true detection,
<b style="color:#ff7a45">✕</b> spurious, <b style="color:#b59a00">◇</b> missed above 10 sigma.</p>
{visits}
<h2>All figures</h2>
{_figure_table(summary)}
</main></body></html>
"""
    )


def _visit(number: int, visit: PlannedVisit, store: ImageStore, results: Sequence[DetectorResult]) -> str:
    own = [r for r in results if r.exposure == visit.exposure]
    raws = {d: store.raw(visit, d) for d in visit.raws}
    templates = {d: store.processed("template_detector", visit, d) for d in visit.raws}
    differences = {d: store.processed("difference_image", visit, d) for d in visit.raws}
    detections = sum(len(r.detections) for r in own)
    title = (
        f"Visit {number}: {html.escape(visit.field)}, {html.escape(visit.physical_filter)}, "
        f"group {html.escape(visit.group)}: {detections} detections"
    )
    panels = "".join(
        f'<figure class="mosaic"><div style="position:relative"><img alt="{name}" src="{uri}">{overlay}</div>'
        f"<figcaption>{name}</figcaption></figure>"
        for name, uri, overlay in (
            ("raw", mosaic(raws, difference=False), ""),
            ("template", mosaic(templates, difference=False), ""),
            ("difference", mosaic(differences, difference=True), marks(own)),
        )
    )
    return f'<h3>{title}</h3><div class="mosaics">{panels}</div>'


def _headline(summary: dict[str, Any]) -> str:
    alert = summary["latency_s"]["raw_to_alert"]["p50"]
    boxes = (
        (f"{summary['succeeded']} / {summary['detector_visits']}", "detector-visits in central"),
        (_percent(summary["completeness_10sigma"]), "complete above 10 sigma"),
        (_percent(summary["spurious_fraction"]), "of detections spurious"),
        (str(summary["alerts"]), "alerts"),
        ("-" if alert is None else f"{alert:.1f} s", "raw to alert, median"),
        (str(sum(summary["left_behind"].values())), "things left behind"),
    )
    cells = "".join(f'<div class="figure"><b>{value}</b><span>{name}</span></div>' for value, name in boxes)
    return f'<div class="figures">{cells}</div>'


def _span_key() -> str:
    colours = {name: colour for _, _, name, colour in SPANS}
    keys = "".join(f'<i style="background:{colour}"></i>{name}' for name, colour in colours.items())
    return f'<p class="key-line">{keys}</p>'


def _latency_table(summary: dict[str, Any]) -> str:
    rows = ""
    for leg in LEGS:
        values = summary["latency_s"][leg]
        cells = "".join(
            f'<td class="n">{"-" if values[k] is None else f"{values[k]:.2f}"}</td>'
            for k in ("p50", "p95", "max")
        )
        rows += f"<tr><td>{leg.replace('_', ' ')}</td>{cells}</tr>"
    head = "<tr><th></th><th>p50</th><th>p95</th><th>max</th></tr>"
    return f"<h3>Latency, seconds</h3><table>{head}{rows}</table>"


def _cutout_grid(found: Sequence[Cutout]) -> str:
    if not found:
        return "<p>There are none.</p>"
    figures = "".join(
        "<figure><div>"
        + "".join(
            f'<img alt="{name}" src="{uri}">'
            for name, uri in zip(("science", "template", "difference"), c.images, strict=True)
        )
        + f"</div><figcaption>{html.escape(c.label)}</figcaption></figure>"
        for c in found
    )
    return f'<div class="cutouts">{figures}</div>'


def _figure_table(summary: dict[str, Any]) -> str:
    rows = ""
    for name, value in summary.items():
        if name == "latency_s":
            continue
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        rows += f"<tr><td>{name.replace('_', ' ')}</td><td>{'-' if text is None else text}</td></tr>"
    return f"<table>{rows}</table>"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
