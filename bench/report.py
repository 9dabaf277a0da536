"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

__all__ = ["describe_machine", "draw", "show_table", "write_results"]

import dataclasses
import json
import os
import platform
import sqlite3
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from .rows import ForkTimes, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLE = "From a visit's announcement to detectors that have all their inputs"
_BACKENDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
# Two of Okabe and Ito's colours; shape and dash tell the lines apart as well.
_COLOURS = {"per-worker": "#D55E00", "ppd": "#0072B2"}
_MARKERS = {"per-worker": "s", "ppd": "o"}
_NAMES = {"per-worker": "a worker per detector", "ppd": "ppd"}
_STATES = {"cold": "first visit", "warm": "again, dithered"}
_GREY = "#555555"
_LABEL_PIXELS = 16.0
# The observatory announces a visit at least so long before it begins.
_NOTICE = 20.0

_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("SQL\nqueries\n", lambda r: f"{r.central_statements:,}"),
    ("connec-\ntions\n", lambda r: f"{r.central_connections:,}"),
    ("fetch-\ned\nMB", lambda r: _megabytes(r.bytes_from_central)),
    ("held\n\nMB", lambda r: _megabytes(r.bytes_held)),
    ("in\nSQLite\nMB", lambda r: _megabytes(r.registry_bytes)),
    ("inputs\nknown\ns", lambda r: f"{r.resolve_s:.2f}"),
    ("all\nready\ns", lambda r: f"{r.ready_all_s:.2f}"),
    ("median\nready\ns", lambda r: f"{r.ready_p50_s:.2f}"),
    ("95 %\nready\ns", lambda r: f"{r.ready_p95_s:.2f}"),
    ("each\nchild\nMB", lambda r: f"{r.unique_memory_mb_per_child:.0f}"),
)


def describe_machine(postgresql: str | None) -> dict[str, Any]:
    """Say what was measured on.

    Parameters
    ----------
    postgresql : `str` or `None`
        Version of the server, if there was one.

    Returns
    -------
    machine : `dict`
        Processor, memory, and versions of what matters.
    """
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "processors": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "daf_butler": version("lsst-daf-butler"),
        "sqlalchemy": version("sqlalchemy"),
        "sqlite": sqlite3.sqlite_version,
        "postgresql": postgresql,
    }


def write_results(path: Path, rows: Sequence[Row], fork: ForkTimes | None, machine: dict[str, Any]) -> None:
    """Write all figures as JSON.

    Parameters
    ----------
    path : `pathlib.Path`
        The file.
    rows : sequence of `bench.rows.Row`
        What was measured.
    fork : `bench.rows.ForkTimes` or `None`
        Fork times, if they were.
    machine : `dict`
        On what.
    """
    # What another part has measured stays.
    results = {
        **(json.loads(path.read_text()) if path.exists() else {}),
        "machine": machine,
        "inputs": [_rounded(row) for row in rows],
        "fork": {} if fork is None else _rounded(fork),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def _rounded(figures: Row | ForkTimes) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in dataclasses.asdict(figures).items()}


def show_table(rows: Sequence[Row], console: Console) -> None:
    """Print a table of all rows, those to compare below each other.

    Parameters
    ----------
    rows : sequence of `bench.rows.Row`
        What was measured.
    console : `rich.console.Console`
        Where to.
    """
    table = Table(title=_TITLE, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("central\n\n", "detec-\ntors\n", "state\n\n", "way\n\n"):
        table.add_column(name, justify="right" if name.startswith("detec") else "left", no_wrap=True)
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    before: tuple[str, int, str] | None = None
    for row in _ordered(rows):
        case = (row.backend, row.detectors, row.state)
        if before is not None and case[:2] != before[:2]:
            table.add_section()
        # What is the same as above is not said again.
        head = ("", "", "") if case == before else (_BACKENDS[case[0]], str(case[1]), case[2])
        table.add_row(*head, row.way, *(text(row) for _, text in _COLUMNS))
        before = case
    console.print(table)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: (r.backend != "sqlite", r.detectors, r.state, r.way != "per-worker"))


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw how each way grows with the number of detectors.

    Parameters
    ----------
    path : `pathlib.Path`
        Picture to write.
    rows : sequence of `bench.rows.Row`
        What was measured.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    backends = [b for b in _BACKENDS if any(r.backend == b for r in rows)][::-1]
    first = backends[0]
    panels: list[tuple[str, str, Callable[[Row], float]]] = [
        (f"SQL statements on the central repo ({_BACKENDS[first]})", first, lambda r: r.central_statements),
        ("Dataset files fetched from the central repo, MB", first, lambda r: r.bytes_from_central / 1e6),
        *((f"All detectors ready, s ({_BACKENDS[b]})", b, lambda r: r.ready_all_s) for b in backends),
    ]
    with pyplot.rc_context({"font.size": 10, "font.family": "DejaVu Sans", "axes.titlesize": 11}):
        figure, grid = pyplot.subplots(2, 2, figsize=(11, 8.2), dpi=110, layout="constrained")
        figure.suptitle(_TITLE, fontsize=13)
        axes = list(grid.flat)[: len(panels)]
        ends = [
            _draw_panel(axis, title, [r for r in rows if r.backend == backend], figure_of)
            for axis, (title, backend, figure_of) in zip(axes, panels, strict=True)
        ]
        # Nothing fetched is the best there is, and has no logarithm.
        axes[1].set_yscale("symlog", linthresh=1.0)
        axes[1].set_ylim(bottom=-0.2)
        limits = [limit for axis in axes[2:] for limit in axis.get_ylim()]
        for axis in axes[2:]:
            axis.set_ylim(min(limits), max(*limits, 1.6 * _NOTICE))
            _mark_notice(axis)
        for axis in grid.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes:
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(lambda value, _: _short(value))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
        figure.draw_without_rendering()  # only now it is known where labels would overlap
        for axis, points in zip(axes, ends, strict=True):
            _label_ends(axis, points)
        figure.savefig(path)
        pyplot.close(figure)


def _draw_panel(
    axis: Axes, title: str, rows: Sequence[Row], figure_of: Callable[[Row], float]
) -> list[tuple[int, float, str]]:
    """Draw a line per way and state; return where each ends, and its colour."""
    ends: list[tuple[int, float, str]] = []
    for way, colour in _COLOURS.items():
        for state in ("cold", "warm"):
            own = sorted((r for r in rows if (r.way, r.state) == (way, state)), key=lambda r: r.detectors)
            if not own:
                continue
            values = [figure_of(r) for r in own]
            axis.plot(
                [r.detectors for r in own],
                values,
                color=colour,
                marker=_MARKERS[way],
                markersize=6,
                markerfacecolor=colour if state == "cold" else "white",
                linestyle="-" if state == "cold" else "--",
                linewidth=1.8,
                label=f"{_NAMES[way]}, {_STATES[state]}",
            )
            ends.append((own[-1].detectors, values[-1], colour))
    counts = sorted({r.detectors for r in rows})
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.margins(x=0.12)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left")
    axis.set_xlabel("detectors of the visit")
    return ends


def _label_ends(axis: Axes, ends: Sequence[tuple[int, float, str]]) -> None:
    """Write the values at the ends of lines, not upon each other."""
    below = float("-inf")
    for count, value, colour in sorted(ends, key=lambda end: end[1]):
        y = float(axis.transData.transform((count, value))[1])
        below = max(y, below + _LABEL_PIXELS)
        axis.annotate(
            _short(value),
            (count, value),
            xytext=(9, (below - y) * 72.0 / axis.figure.dpi),
            textcoords="offset points",
            va="center",
            color=colour,
        )


def _mark_notice(axis: Axes) -> None:
    axis.axhline(_NOTICE, color=_GREY, linewidth=1.0, linestyle=":")
    axis.annotate(
        f"a visit is announced {_NOTICE:.0f} s ahead, or earlier",
        (0.01, _NOTICE),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=_GREY,
        fontsize=9,
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.1f}"


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
