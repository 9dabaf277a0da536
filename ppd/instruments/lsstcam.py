"""LSSTCam as ppd has to know it, without the compiled stack.

The geometry is that of ``lsst/obs_lsst`` (``lsstcam.csv``: outer pixel edges
in the focal plane); a test compares it with the regions of a real visit.
What reads pixels is the site's own: the formatter of its ``obs_lsst``.
"""

from __future__ import annotations

__all__ = ["describe"]

import csv
import functools
from pathlib import Path

from ..focalplane import DetectorOutline, FocalPlane
from .description import InstrumentDescription

_PIXEL_ARCSEC = 0.2
# Plate scale (arcsec per mm) and radial terms of the field angle, from the
# camera's transformation in obs_lsst.
_SCALE = 20.005867576692737
_RADIAL = (-8.33713991e-9, -1.41389858e-15)


@functools.cache
def focal_plane() -> FocalPlane:
    """Return the 189 science detectors; wavefront and guide sensors are not among them."""
    with (Path(__file__).parent / "lsstcam.csv").open(newline="") as stream:
        outlines = [
            DetectorOutline(
                id=int(row["id"]),
                name=row["name"],
                nx=int(row["nx"]),
                ny=int(row["ny"]),
                x_min=float(row["x_min_mm"]),
                x_max=float(row["x_max_mm"]),
                y_min=float(row["y_min_mm"]),
                y_max=float(row["y_max_mm"]),
            )
            for row in csv.DictReader(stream)
        ]
    return FocalPlane(detectors=tuple(outlines), scale=_SCALE, radial=_RADIAL)


def describe() -> InstrumentDescription:
    """Describe LSSTCam to ppd.

    Returns
    -------
    description : `ppd.instruments.description.InstrumentDescription`
        The description.
    """
    return InstrumentDescription(
        name="LSSTCam",
        focal_plane=focal_plane(),
        raw_formatter="lsst.obs.lsst.rawFormatter.LsstCamRawFormatter",
        raw_storage_class="Exposure",
        instrument_class="lsst.obs.lsst.LsstCam",
        # As obs_base's visit definition pads regions: 250 pixels.
        region_padding=250 * _PIXEL_ARCSEC,
    )
