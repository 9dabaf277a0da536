"""Where the benchmark's telescope points, and the sky map around it."""

from __future__ import annotations

__all__ = ["BANDS", "FIELDS", "Field", "Patch", "Tract", "VisitPair", "choose_detectors", "make_visits"]

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from ppd.focalplane import DetectorOutline, FocalPlane
from ppd.instruments.lsstcam import focal_plane
from ppd.visit import TAI_MINUS_UTC, BareVisit

from .datasets import INSTRUMENT

BANDS = {"u": "u_24", "g": "g_6", "r": "r_57", "i": "i_39", "z": "z_20", "y": "y_10"}
"""Physical filter by band."""

_PER_SIDE = 10
_PATCH = 1.0 / 6.0  # degrees
_BORDER = 20.0 / 3600.0
_TRACT_STEP = 1.62  # degrees: neighbours overlap, as the survey's tracts do
_DITHER = 0.05  # degrees: less than a third of a patch


@dataclasses.dataclass(frozen=True)
class Field:
    """A field that is visited."""

    name: str
    ra: float
    dec: float

    def tracts(self, first: int) -> Iterator[Tract]:
        """Cut the sky around the field into three by three tracts.

        Parameters
        ----------
        first : `int`
            ID of the first.
        """
        plane = FocalPlane(detectors=(), scale=3600.0, flip_x=False)
        for number in range(9):
            x, y = (number % 3 - 1) * _TRACT_STEP, (number // 3 - 1) * _TRACT_STEP
            vector = plane.to_vectors(np.array([x]), np.array([y]), self.ra, self.dec, 0.0)[0]
            position = LonLat(UnitVector3d(*vector))
            yield Tract(first + number, position.getLon().asDegrees(), position.getLat().asDegrees())


FIELDS = (Field("cdfs", 53.13, -28.1), Field("cosmos", 150.1, 2.18), Field("sv225", 225.86, -38.63))


@dataclasses.dataclass(frozen=True)
class Patch:
    """A patch of the sky map, with its border."""

    tract: int
    id: int
    region: ConvexPolygon


@dataclasses.dataclass(frozen=True)
class Tract:
    """A tract of the sky map."""

    id: int
    ra: float
    dec: float

    def patches(self) -> list[Patch]:
        """Cut the tract into ten by ten patches."""
        border, half = _BORDER / _PATCH, _PER_SIDE / 2
        outlines = []
        for number in range(_PER_SIDE**2):
            x, y = number % _PER_SIDE - half, number // _PER_SIDE - half
            outlines.append(
                DetectorOutline(
                    id=number,
                    name="",
                    x_min=x - border,
                    x_max=x + 1 + border,
                    y_min=y - border,
                    y_max=y + 1 + border,
                    nx=1,
                    ny=1,
                )
            )
        plane = FocalPlane(detectors=tuple(outlines), scale=_PATCH * 3600.0, flip_x=False)
        regions = plane.regions(self.ra, self.dec, 0.0)
        return [Patch(self.id, number, region) for number, region in regions.items()]


class VisitPair(NamedTuple):
    """Two visits of one field, the second a little aside, as a survey dithers."""

    cold: BareVisit
    warm: BareVisit


def make_visits(field: Field = FIELDS[0], band: str = "g") -> VisitPair:
    """Announce two visits of a field.

    Parameters
    ----------
    field : `Field`, optional
        The field.
    band : `str`, optional
        The band.

    Returns
    -------
    visits : `VisitPair`
        Their groups are unlike those of any other call.
    """
    now = time.time()
    shift = _DITHER / math.sqrt(2.0)
    return VisitPair(
        _announce(field.ra, field.dec, band, now),
        _announce(field.ra + shift / math.cos(math.radians(field.dec)), field.dec + shift, band, now + 0.001),
    )


def _announce(ra: float, dec: float, band: str, now: float) -> BareVisit:
    tai = now + TAI_MINUS_UTC
    return BareVisit(
        salIndex=1,
        scriptSalIndex=int(now) % 100_000,
        instrument=INSTRUMENT,
        groupId=f"bench-{now:.3f}",
        coordinateSystem=2,
        position=(ra, dec),
        startTime=tai + 20.0,
        rotationSystem=2,
        cameraAngle=33.0,
        filters=BANDS[band],
        dome=2,
        duration=35.0,
        nimages=1,
        survey="BENCH",
        totalCheckpoints=1,
        private_sndStamp=tai,
    )


def choose_detectors(count: int) -> tuple[int, ...]:
    """Choose detectors that lie together: rafts from the centre outwards.

    Parameters
    ----------
    count : `int`
        How many.

    Returns
    -------
    detectors : `tuple` [ `int` ]
        Sorted IDs.
    """
    rafts: dict[str, list[DetectorOutline]] = {}
    for outline in focal_plane().detectors:
        rafts.setdefault(outline.name[:3], []).append(outline)

    def distance(raft: list[DetectorOutline]) -> float:
        x = np.mean([d.x_min + d.x_max for d in raft])
        y = np.mean([d.y_min + d.y_max for d in raft])
        return float(np.hypot(x, y))

    ordered = [d.id for raft in sorted(rafts.values(), key=distance) for d in raft]
    if not 0 < count <= len(ordered):
        raise ValueError(f"the camera has 1 to {len(ordered)} science detectors, not {count}")
    return tuple(sorted(ordered[:count]))
