"""Memory and descriptors of supervisor and nursery over the soak."""

from __future__ import annotations

__all__ = ["Growth", "Usage"]

import dataclasses
import statistics
from typing import Any

import psutil

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class Growth:
    """How much more the last visits needed than those after the start."""

    rss_mb: float
    """Of supervisor or nursery, whichever grew more, MiB."""
    fds: int
    """Descriptors; as above."""
    detail: dict[str, Any]


class Usage:
    """Samples of two processes, one whenever a visit has ended."""

    def __init__(self) -> None:
        self._samples: list[dict[str, tuple[float, float, int]]] = []

    def sample(self, **processes: psutil.Process | None) -> None:
        """Look at processes, by name."""
        row = {}
        for name, process in processes.items():
            if process is None:
                return
            try:
                memory = process.memory_full_info()
                row[name] = (memory.rss / MiB, memory.uss / MiB, process.num_fds())
            except psutil.Error:
                return
        self._samples.append(row)

    def growth(self, visits: int) -> Growth:
        """Compare what the last visits needed with what was needed after the start.

        Parameters
        ----------
        visits : `int`
            How many there were; the first 20, or a fourth of a short soak's,
            are not looked at.
        """
        start = min(20, visits // 4)
        width = max(1, min(20, visits // 8))
        first, last = self._samples[start : start + width], self._samples[-width:]
        if not first or not last:
            return Growth(0.0, 0, {})
        detail: dict[str, Any] = {"samples": len(self._samples)}
        for name in last[0]:
            for i, what in enumerate(("rss_mb", "uss_mb", "fds")):
                begin, end = (statistics.median(s[name][i] for s in part) for part in (first, last))
                detail[f"{name}_{what}"] = [round(begin, 1), round(end, 1)]
        rss = max(v[1] - v[0] for k, v in detail.items() if k.endswith("_rss_mb"))
        fds = max(v[1] - v[0] for k, v in detail.items() if k.endswith("_fds"))
        return Growth(round(rss, 1), round(fds), detail)

    def course(self, name: str, every: int = 10) -> list[float]:
        """USS of a process over the soak, MiB, one of each so many samples."""
        return [round(s[name][1], 1) for s in self._samples[::every]]
