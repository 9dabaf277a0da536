"""What is measured, and the form in which a way of getting inputs ready is measured."""

from __future__ import annotations

__all__ = ["ForkTimes", "Measure", "MeasureFork", "Row", "Times", "median_rows"]

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np

from .central import CentralRepo
from .sky import VisitPair


@dataclasses.dataclass(frozen=True)
class Row:
    """One way, on one repo, for so many detectors, in one state."""

    way: Literal["ppd", "per-worker"]
    backend: Literal["sqlite", "postgresql"]
    detectors: int
    state: Literal["cold", "warm"]
    """Cold: nothing of central is there yet; warm: the field was visited before."""
    central_statements: int
    """SQL statements sent to the central repo from the visit's announcement on."""
    central_connections: int
    """Connections to the central database that are open when all are ready."""
    bytes_from_central: int
    """Bytes of dataset files fetched for this visit."""
    bytes_held: int
    """Bytes of dataset files that the way holds on the node when all are ready."""
    registry_bytes: int
    """Bytes of the registries (SQLite files) of its local repos."""
    resolve_s: float
    """Announcement to: what every detector needs is known."""
    ready_all_s: float
    """Announcement to: every detector has a repo with all its inputs."""
    ready_p50_s: float
    """The same, for the detector in the middle."""
    ready_p95_s: float
    """The same, for all but the last five of a hundred."""
    unique_memory_mb_per_child: float
    """Memory that a detector's process shares with no other, median, MB."""
    repeats: int = 1


class Measure(Protocol):
    """A way of getting inputs ready, as the benchmark calls it."""

    def __call__(self, repo: CentralRepo, detectors: Sequence[int], visits: VisitPair) -> list[Row]:
        """Measure both visits, in order, from a cold start.

        Parameters
        ----------
        repo : `bench.central.CentralRepo`
            The central repo; only read.
        detectors : sequence of `int`
            Which detectors, each with a process of its own.
        visits : `bench.sky.VisitPair`
            The visits; nothing is running when the first is announced but
            what runs before any visit.

        Returns
        -------
        rows : `list` [ `Row` ]
            One for the first visit (cold), one for the second (warm).
            Nothing is left behind: no process, folder or shared memory.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ForkTimes:
    """How long a child takes from its fork to an open Butler, seconds."""

    fork_to_butler_p50_s: float
    fork_to_butler_p95_s: float
    together_p50_s: float
    """The middle one of 16 children that start together."""


class MeasureFork(Protocol):
    """What a way that forks a child per visit may measure too, as ``measure_fork``."""

    def __call__(self, repo: CentralRepo) -> ForkTimes:
        """Measure children one after the other, and some at once.

        Parameters
        ----------
        repo : `bench.central.CentralRepo`
            The central repo; only read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Times:
    """When detectors were ready, seconds after the announcement."""

    all_s: float
    p50_s: float
    p95_s: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Times:
        """Summarize the times of all detectors."""
        values = np.fromiter(seconds, dtype=float)
        return cls(float(values.max()), *(float(v) for v in np.percentile(values, (50, 95))))


def median_rows(repeats: Sequence[Sequence[Row]]) -> list[Row]:
    """Take the median of each figure over repeats of one measurement.

    Parameters
    ----------
    repeats : sequence of sequence of `Row`
        What `Measure` returned, each time.

    Returns
    -------
    rows : `list` [ `Row` ]
        As many as one measurement gave.
    """
    rows = []
    for same in zip(*repeats, strict=True):
        medians: dict[str, float | int] = {"repeats": len(same)}
        for field in dataclasses.fields(Row):
            if field.type in ("int", "float") and field.name not in ("repeats", "detectors"):
                middle = statistics.median(getattr(row, field.name) for row in same)
                medians[field.name] = round(middle) if field.type == "int" else middle
        rows.append(dataclasses.replace(same[0], **medians))
    return rows
