"""Asking the APDB whether a detector-visit has been stored."""

from __future__ import annotations

__all__ = ["apdb_has"]

import logging
from collections.abc import Sequence

_LOG = logging.getLogger(__name__)


def apdb_has(config: str | None, visits: Sequence[int], detector: int) -> bool:
    """Tell whether the APDB may hold sources of a detector-visit.

    Parameters
    ----------
    config : `str` or `None`
        URI of the APDB's configuration; `None`: there is no APDB.
    visits : sequence of `int`
        Visit IDs.
    detector : `int`
        Detector ID.

    Returns
    -------
    stored : `bool`
        `True` also if the APDB can't be asked: then it counts as changed.
    """
    if config is None or not visits:
        return False
    try:
        # Only some sites have an APDB; its libraries are not small.
        from lsst.dax.apdb import Apdb

        apdb = Apdb.from_uri(config)
        return any(apdb.containsVisitDetector(visit, detector) for visit in visits)
    except Exception:
        _LOG.exception("The APDB can't be asked; it counts as changed.")
        return True
