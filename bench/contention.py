"""Several nodes that write to one PostgreSQL at once, in batches and by single detectors."""

from __future__ import annotations

__all__ = ["measure_contention"]

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lsst.daf.butler import Butler

from .draining import drain, export_settings
from .hand_overs import TYPES, make_hand_over
from .per_detector import make_source, transfer_together

_SECONDS = 300.0


def measure_contention(
    folder: Path,
    central: Path,
    nodes: Sequence[int],
    writers: int,
    each: int,
    detectors: int,
    first_visit: int,
) -> list[dict[str, Any]]:
    """Measure both ways in turn, with more and more of them.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where spools and sources may be.
    central : `pathlib.Path`
        The central repo.
    nodes : sequence of `int`
        Numbers of nodes.
    writers : `int`
        How many write at once on a node where each writes for itself.
    each : `int`
        What each of those writes.
    detectors : `int`
        How many the camera has.
    first_visit : `int`
        Number of a visit from which on none is in central.

    Returns
    -------
    rows : `list` [ `dict` ]
        Datasets a second and seconds per transfer of both ways, and ratios.
    """
    # The detectors of a visit are spread over all nodes, and come at once.
    every = ((number, detector) for number in itertools.count(first_visit) for detector in range(detectors))
    rows = []
    for count in nodes:
        size = count * writers * each
        batched = _batched(folder / "nodes", central, list(itertools.islice(every, size + count)), count)
        work = list(itertools.islice(every, size))
        source = make_source(folder / "workers", work, detectors)
        single = transfer_together(
            source, central, [work[n :: count * writers] for n in range(count * writers)], _SECONDS
        )
        shutil.rmtree(folder / "workers")
        rate = len(TYPES) * size / single["seconds"]
        p95 = float(np.percentile(single["times"], 95))
        rows.append(
            {
                "nodes": count,
                "hand_overs": size,
                "exporters": batched,
                "per_detector": {
                    "writers": count * writers,
                    "datasets_per_s": rate,
                    "transfer_s_p50": float(np.median(single["times"])),
                    "transfer_s_p95": p95,
                    "conflicts": single["failures"],
                },
                "ratio_of_rates": batched["datasets_per_s"] / rate,
                "ratio_of_p95": p95 / batched["transfer_s_p95"],
            }
        )
    return rows


def _batched(folder: Path, central: Path, work: Sequence[tuple[int, int]], nodes: int) -> dict[str, float]:
    sites = [export_settings(folder / str(node), central) for node in range(nodes)]
    with Butler.from_config(str(central)) as butler:
        universe = butler.dimensions
    for settings, (number, detector) in zip(itertools.cycle(sites), work, strict=False):
        make_hand_over(settings.spool_dir, number, detector, universe)
    drained = drain(sites, _SECONDS)
    shutil.rmtree(folder)
    return {
        "datasets_per_s": drained.datasets / drained.seconds,
        "transfer_s_p50": float(np.median(drained.times)),
        "transfer_s_p95": float(np.percentile(drained.times, 95)),
        "batches": len(drained.batches),
    }
