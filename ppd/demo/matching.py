"""Comparing what was detected with what truly changed."""

from __future__ import annotations

__all__ = ["DetectorResult", "collection_exists", "match_night", "read_results"]

import dataclasses

import numpy as np
from astropy.table import Table
from lsst.daf.butler import Butler, MissingCollectionError
from scipy.spatial import cKDTree

from .night import NightPlan

MATCH_ARCSEC = 1.2
"""A detection belongs to a truth within this; three pixels."""

_MIN_SNR = 1.0


@dataclasses.dataclass
class DetectorResult:
    """Detections and truth of one detector-visit."""

    group: str
    exposure: int
    detector: int
    band: str
    detections: Table
    """As ``dia_source_detector``, with a column ``true``."""
    truth: Table
    """Rows of the truth table, with a column ``found``."""


def read_results(plan: NightPlan, collection: str | None) -> list[DetectorResult]:
    """Read the detections of a night from the central repo and match them.

    Parameters
    ----------
    plan : `ppd.demo.night.NightPlan`
        The night.
    collection : `str` or `None`
        Output chain; `None`: there are no outputs.

    Returns
    -------
    results : `list` [ `DetectorResult` ]
        One for each detector-visit with detections in central.
    """
    if collection is None:
        return []
    truth = Table.read(plan.truth)
    by_exposure = {v.exposure: v for v in plan.visits}
    results = []
    with Butler.from_config(plan.central, writeable=False) as butler:
        if not collection_exists(butler, collection):
            return []
        refs = butler.query_datasets("dia_source_detector", collections=collection, explain=False, limit=None)
        for ref in sorted(refs, key=lambda r: (r.dataId["visit"], r.dataId["detector"])):
            visit, detector = int(ref.dataId["visit"]), int(ref.dataId["detector"])
            rows = truth[(truth["exposure"] == visit) & (truth["detector"] == detector)]
            planned = by_exposure[visit]
            results.append(
                match_night(
                    planned.group, visit, detector, planned.physical_filter[-1], butler.get(ref), rows
                )
            )
    return results


def collection_exists(butler: Butler, name: str) -> bool:
    """Tell whether a repo has a collection."""
    try:
        butler.collections.get_info(name)
    except MissingCollectionError:
        return False
    return True


def match_night(
    group: str, exposure: int, detector: int, band: str, detections: Table, truth: Table
) -> DetectorResult:
    """Match the detections of a detector-visit with the truth.

    Notes
    -----
    On the sky, within `MATCH_ARCSEC`.  A true source is what changed by more
    than one sigma, of either sign; a detection next to none is spurious.
    """
    visible = truth[truth["snr"] > _MIN_SNR]
    detections["true"] = _near(detections, visible)
    truth = truth.copy()
    truth["found"] = _near(truth, detections)
    return DetectorResult(group, exposure, detector, band, detections, truth)


def _near(some: Table, others: Table) -> np.ndarray:
    if not len(some) or not len(others):
        return np.zeros(len(some), dtype=bool)
    limit = np.radians(MATCH_ARCSEC / 3600.0)
    distance, _ = cKDTree(_vectors(others)).query(_vectors(some))
    return np.asarray(distance < limit)


def _vectors(table: Table) -> np.ndarray:
    ra, dec = np.radians(np.asarray(table["ra"])), np.radians(np.asarray(table["dec"]))
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
