"""The drawings of the report, as SVG: marks, timeline, completeness."""

from __future__ import annotations

__all__ = ["SPANS", "completeness_chart", "marks", "timeline_chart"]

import html
from collections.abc import Sequence

import numpy as np

from .camera import CAMERA
from .history import NightHistory
from .matching import DetectorResult
from .report_images import GAP, TILE, tile_corner

SPANS = (
    ("accepted", "inputs_ready", "find inputs", "#56b4e9"),
    ("inputs_ready", "ready", "fork, open repo", "#0072b2"),
    ("ready", "preprocess_start", "wait for a processor", "#f0d28a"),
    ("preprocess_start", "preprocess_end", "pre-process", "#8fd3bb"),
    ("preprocess_end", "raw_closed", "wait for the raw", "#c8ccd2"),
    ("raw_closed", "ingested", "ingest", "#d55e00"),
    ("ingested", "main_start", "wait for a processor", "#f0d28a"),
    ("main_start", "first_task", "build the graph", "#e69f00"),
    ("first_task", "pipeline_end", "pipeline", "#009e73"),
    ("pipeline_end", "exported", "to central", "#cc79a7"),
)
"""Spans of a detector-visit: from, to, label, colour (Okabe & Ito 2008: told
apart by colour-blind eyes)."""

_BANDS = (("g", "#009e73", "circle"), ("r", "#d55e00", "square"))


def marks(results: Sequence[DetectorResult]) -> str:
    """Mark detections on a mosaic.

    Parameters
    ----------
    results : sequence of `ppd.demo.matching.DetectorResult`
        The detectors of one visit.

    Returns
    -------
    svg : `str`
        Circles for true detections, crosses for spurious ones, diamonds for
        what was missed above 10 sigma.
    """
    side = 3 * TILE + 2 * GAP
    scale = TILE / CAMERA.side
    parts = [f'<svg class="marks" viewBox="0 0 {side} {side}" aria-hidden="true">']
    for result in results:
        x0, y0 = tile_corner(result.detector)

        def place(x: float, y: float, x0: int = x0, y0: int = y0) -> tuple[float, float]:
            return x0 + (x + 0.5) * scale, side - (y0 + (y + 0.5) * scale)

        for row in result.detections:
            x, y = place(float(row["x"]), float(row["y"]))
            if row["true"]:
                parts.append(f'<circle class="true" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
            else:
                parts.append(
                    f'<path class="false" d="M{x - 5:.1f} {y - 5:.1f}l10 10M{x - 5:.1f} {y + 5:.1f}l10 -10"/>'
                )
        missed = result.truth[(result.truth["snr"] > 10) & result.truth["good"] & ~result.truth["found"]]
        for row in missed:
            x, y = place(float(row["x"]), float(row["y"]))
            parts.append(f'<path class="missed" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>')
    parts.append("</svg>")
    return "".join(parts)


def timeline_chart(history: NightHistory) -> str:
    """Draw every detector-visit as a bar of its spans.

    Parameters
    ----------
    history : `ppd.demo.history.NightHistory`
        The journal.

    Returns
    -------
    svg : `str`
        Rows by visit and detector; seconds from the first announcement.
    """
    rows = [t for t in history.timelines if "accepted" in t.times]
    if not rows:
        return "<p>No visit was accepted.</p>"
    begin = min(min(t.times.values()) for t in rows)
    end = max(max(t.times.values()) for t in rows)
    left, width, row, gap, top = 70, 960, 8, 8, 24
    scale = (width - left - 10) / max(end - begin, 1.0)
    parts, y, last = [], float(top), ""
    for t in rows:
        if t.group != last:
            y += gap
            label = f"visit {history.visits.index(t.group) + 1}"
            parts.append(f'<text x="4" y="{y + 9:.0f}" class="label">{label}</text>')
            last = t.group
        told = []
        for start, stop, name, colour in SPANS:
            a, b = t.times.get(start), t.times.get(stop)
            # A raw may be there before its child is ready for it: then the
            # wait for it has no length.
            if start == "raw_closed" and a is not None:
                a = max(a, t.times.get("ready", a), t.times.get("preprocess_end", a))
            if start == "preprocess_end" and a is None:
                a = t.times.get("ready")  # there is no pre-processing
            if a is None or b is None or b <= a:
                continue
            told.append(f"{name} {b - a:.2f} s")
            parts.append(
                f'<rect x="{left + (a - begin) * scale:.1f}" y="{y:.1f}" width="{(b - a) * scale:.2f}" '
                f'height="{row - 2}" fill="{colour}"/>'
            )
        tip = html.escape(f"{t.group} detector {t.detector}: {t.state}; " + ", ".join(told))
        parts.append(
            f'<rect x="{left}" y="{y:.1f}" width="{width - left}" height="{row}" fill="transparent">'
            f"<title>{tip}</title></rect>"
        )
        if t.state == "failed":
            parts.append(f'<text x="{left - 10}" y="{y + 7:.0f}" class="fail">✕</text>')
        y += row
    step = next(s for s in (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600) if (end - begin) / s <= 14)
    ticks = []
    for second in range(0, int(end - begin) + 1, step):
        x = left + second * scale
        ticks.append(
            f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{y:.0f}" class="grid"/>'
            f'<text x="{x:.1f}" y="{top - 8}" class="tick">{second} s</text>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {y + 10:.0f}" role="img" '
        f'aria-label="Timeline of every detector-visit">{"".join(ticks)}{"".join(parts)}</svg>'
    )


def completeness_chart(results: Sequence[DetectorResult]) -> str:
    """Draw the part of true changes that was found against magnitude, by band.

    Parameters
    ----------
    results : sequence of `ppd.demo.matching.DetectorResult`
        Truth and detections.

    Returns
    -------
    svg : `str`
        Points with their binomial error; the number of sources below.
    """
    left, right, top, bottom, width, height = 50, 20, 16, 40, 620, 300
    low, high, step = 17.0, 25.0, 0.5
    edges = np.arange(low, high + step / 2, step)

    def sx(mag: float) -> float:
        return left + (mag - low) / (high - low) * (width - left - right)

    def sy(part: float) -> float:
        return top + (1.0 - part) * (height - top - bottom)

    out = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = sy(part)
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}" class="grid"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" class="tick end">{part:.0%}</text>')
    for whole in range(int(low), int(high) + 1):
        out.append(f'<text x="{sx(whole):.1f}" y="{height - 22}" class="tick">{whole}</text>')
    out.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 4}" class="tick">'
        "magnitude of the change (AB)</text>"
    )
    for band, colour, shape in _BANDS:
        mags, found = [], []
        for r in results:
            if r.band == band:
                rows = r.truth[r.truth["good"]]
                mags.append(np.asarray(rows["mag"], dtype=float))
                found.append(np.asarray(rows["found"], dtype=bool))
        if not mags:
            continue
        mag, hit = np.concatenate(mags), np.concatenate(found)
        points = []
        for edge in edges[:-1]:
            inside = (mag >= edge) & (mag < edge + step)
            n = int(inside.sum())
            if not n:
                continue
            part = float(hit[inside].mean())
            # Wilson's interval stays within 0 and 1 where the plain error would not.
            centre, half = (
                (part + 0.5 / n) / (1 + 1 / n),
                np.sqrt(part * (1 - part) / n + 0.25 / n**2) / (1 + 1 / n),
            )
            points.append((sx(edge + step / 2), part, centre - half, centre + half, n))
        out.append(
            '<polyline fill="none" stroke-width="1.5" stroke="'
            + colour
            + '" points="'
            + " ".join(f"{x:.1f},{sy(p):.1f}" for x, p, *_ in points)
            + '"/>'
        )
        for x, part, lo, hi, n in points:
            y = sy(part)
            tip = f"<title>{band}: {part:.0%} of {n}</title>"
            out.append(
                f'<line x1="{x:.1f}" y1="{sy(lo):.1f}" x2="{x:.1f}" y2="{sy(hi):.1f}" stroke="{colour}"/>'
            )
            if shape == "circle":
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{tip}</circle>')
            else:
                out.append(
                    f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" '
                    f'fill="{colour}">{tip}</rect>'
                )
    legend = "".join(
        f'<text x="{left + 14}" y="{height - bottom - 26 + 16 * i}" fill="{colour}" class="key">'
        f"{'●' if shape == 'circle' else '■'} band {band}</text>"
        for i, (band, colour, shape) in enumerate(_BANDS)
    )
    return (
        f'<svg class="chart narrow" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Completeness against magnitude">{"".join(out)}{legend}</svg>'
    )
