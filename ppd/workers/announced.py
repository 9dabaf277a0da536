"""What a raw's header says against what was announced."""

from __future__ import annotations

__all__ = ["missed_field", "missed_filter", "missed_rotation"]

import math

from lsst.sphgeom import LonLat, UnitVector3d

from ..focalplane import FocalPlane
from ..visit import BareVisit
from .ingest import RawExposure


def missed_filter(raw: RawExposure, visit: BareVisit) -> str | None:
    """Say whether an exposure was taken through another filter than was announced.

    Parameters
    ----------
    raw : `ppd.workers.ingest.RawExposure`
        The exposure.
    visit : `ppd.visit.BareVisit`
        The announcement; without a filter it does not disagree.

    Returns
    -------
    text : `str` or `None`
        What disagrees.
    """
    found = raw.info.physical_filter
    if not visit.filters or found == visit.filters:
        return None
    return f"the header's filter is {found!r}, {visit.filters!r} was announced"


def missed_field(
    raw: RawExposure, visit: BareVisit, plane: FocalPlane, detector: int, padding: float
) -> str | None:
    """Say whether an exposure looks where no inputs were fetched for.

    Parameters
    ----------
    raw : `ppd.workers.ingest.RawExposure`
        The exposure.
    visit : `ppd.visit.BareVisit`
        The announcement; without a position it does not disagree.
    plane : `ppd.focalplane.FocalPlane`
        Geometry of the instrument.
    detector : `int`
        Detector ID.
    padding : `float`
        By how much more than the detector inputs were fetched for, arcsec.

    Returns
    -------
    text : `str` or `None`
        What disagrees; `None` also if the boresight is off by more than the
        padding and this detector is still within what was announced for it.
    """
    if visit.pointing is None:
        return None
    found, announced = (
        UnitVector3d(LonLat.fromDegrees(*pointing[:2])) for pointing in (raw.pointing, visit.pointing)
    )
    # By the chord: a cosine would lose small angles.
    separation = math.degrees(2.0 * math.asin(min(1.0, (found - announced).getNorm() / 2.0))) * 3600.0
    if separation <= padding:
        return None
    own = plane.regions(*raw.pointing, 0.0, (detector,))[detector]
    fetched = plane.regions(*visit.pointing, padding, (detector,))[detector]
    if fetched.contains(own):
        return None
    (ra, dec, _), (asked_ra, asked_dec, _) = raw.pointing, visit.pointing
    return (
        f"it points {separation:.0f} arcsec from where was announced ({ra:.4f}, {dec:.4f} instead of "
        f"{asked_ra:.4f}, {asked_dec:.4f}), and its inputs are not here"
    )


def missed_rotation(raw: RawExposure, visit: BareVisit, tolerance: float) -> str | None:
    """Say whether an exposure is rotated otherwise than was announced.

    Parameters
    ----------
    raw : `ppd.workers.ingest.RawExposure`
        The exposure.
    visit : `ppd.visit.BareVisit`
        The announcement; without a rotation it does not disagree.
    tolerance : `float`
        By how much it may be off, degrees.

    Returns
    -------
    text : `str` or `None`
        What disagrees.
    """
    if visit.rotation is None:
        return None
    off = abs((raw.pointing[2] - visit.rotation + 180.0) % 360.0 - 180.0)
    return f"rotation is {off:.2f} degrees off the announcement" if off > tolerance else None
