"""What the cache has and central, where it was searched, no longer has."""

from __future__ import annotations

__all__ = ["find_uncertified", "find_withdrawn"]

import uuid
from collections.abc import Container, Iterable

from lsst.daf.butler import DatasetRef

from ..cache.repo import Certificate
from .resolve import Resolution, VisitConstraints


def find_withdrawn(
    held: Iterable[DatasetRef], searched: Iterable[str], visit: VisitConstraints, resolution: Resolution
) -> list[DatasetRef]:
    """Find datasets of the cache that a child would find and central would not.

    A child searches the cache's registry, which has what other visits needed
    too.  Of what this visit's search could have found and did not, something
    has been removed, or taken out of its collection, or stands behind another.

    Parameters
    ----------
    held : iterable of `lsst.daf.butler.DatasetRef`
        What the cache has.
    searched : iterable of `str`
        Dataset types that were searched for the visit.
    visit : `ppd.supervisor.resolve.VisitConstraints`
        The visit.
    resolution : `ppd.supervisor.resolve.Resolution`
        What was found for it.

    Returns
    -------
    withdrawn : `list` [ `lsst.daf.butler.DatasetRef` ]
        Calibs are not among them: their validity ranges are compared.
    """
    types = frozenset(searched)
    return [
        ref
        for ref in held
        if ref.id not in resolution.refs
        and ref.datasetType.name in types
        and not ref.datasetType.isCalibration()
        and _was_asked_for(ref, visit)
    ]


def find_uncertified(
    certified: Iterable[Certificate],
    searched: Iterable[str],
    visit: VisitConstraints,
    valid: Container[uuid.UUID],
) -> list[Certificate]:
    """Find validity ranges of the cache that central does not have, as far as a visit tells.

    Parameters
    ----------
    certified : iterable of `tuple`
        Those that the cache has.
    searched : iterable of `str`
        Dataset types that were searched for the visit.
    visit : `ppd.supervisor.resolve.VisitConstraints`
        The visit.
    valid : container of `uuid.UUID`
        Calibs that were found for it and are in the cache.

    Returns
    -------
    uncertified : `list` [ `tuple` ]
        Those of them that touch the visit's time and are not valid.
    """
    types = frozenset(searched)
    return [
        (where, ref, span)
        for where, ref, span in certified
        if ref.id not in valid
        and ref.datasetType.name in types
        and span.overlaps(visit.timespan)
        and _was_asked_for(ref, visit)
    ]


def _was_asked_for(ref: DatasetRef, visit: VisitConstraints) -> bool:
    asked = {
        "instrument": visit.instrument,
        "physical_filter": visit.physical_filter,
        "band": visit.band,
        "skymap": visit.skymap or ref.dataId.get("skymap"),
    }
    values = ref.dataId.required
    if any(name in asked and value != asked[name] for name, value in values.items()):
        return False
    if "detector" in values and values["detector"] not in visit.detectors:
        return False
    dimensions = ref.dataId.dimensions
    if dimensions.skypix:
        name = next(iter(dimensions.skypix))
        region = ref.dataId.universe.skypix_dimensions[name].pixelization.pixel(values[name])
        return any(own.overlaps(region) for own in visit.regions.values())
    for element in ("patch", "tract"):
        if element in dimensions:
            if not ref.dataId.hasRecords():
                return False
            region = ref.dataId.records[element].region
            return any(own.overlaps(region) is not False for own in visit.regions.values())
    return True
