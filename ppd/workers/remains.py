"""What a killed attempt has left in its local repo."""

from __future__ import annotations

__all__ = ["Remains", "open_remains"]

import dataclasses
from pathlib import Path

from lsst.daf.butler import Butler, CollectionType

from ..messages import DetectorKey


@dataclasses.dataclass(frozen=True)
class Remains:
    """A repo that nobody works on any more."""

    butler: Butler
    visits: tuple[int, ...]
    """IDs of the visits that were defined in it."""
    runs: tuple[str, ...]
    """Its output runs: they may be an earlier deployment's."""


def open_remains(folder: Path, key: DetectorKey) -> Remains:
    """Open the local repo of a killed attempt.

    Parameters
    ----------
    folder : `pathlib.Path`
        Root of the repo.
    key : `ppd.messages.DetectorKey`
        The detector-visit.

    Returns
    -------
    remains : `Remains`
        The repo and the visits of the detector-visit's group.

    Raises
    ------
    Exception
        Raised, as whatever it may be, if the repo can't be opened.
    """
    butler = Butler.from_config(str(folder), writeable=True)
    # The cache's registry, of which the repo is a clone, has no visits.
    regions = butler.query_dimension_records(
        "visit_detector_region", instrument=key.instrument, detector=key.detector, explain=False
    )
    runs = butler.collections.query(f"{key.instrument}/prompt/output-*", collection_types=CollectionType.RUN)
    return Remains(butler, tuple(sorted(int(region.visit) for region in regions)), tuple(runs))
