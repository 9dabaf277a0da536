"""Where each detector looks: from focal-plane millimetres to the sky.

The chain of coordinates is the one that the Rubin stack uses for LSSTCam:
focal-plane millimetres, radial distortion to field angle, an optional flip
of x, a rotation by the sky angle, and the gnomonic (TAN) plane at the
boresight.
"""

from __future__ import annotations

__all__ = ["DetectorOutline", "FocalPlane", "RegionsByDetector"]

import math
from collections.abc import Collection, Mapping

import numpy as np
import pydantic
from lsst.sphgeom import ConvexPolygon, UnitVector3d

RegionsByDetector = Mapping[int, ConvexPolygon]
"""Sky region of each detector, keyed by detector ID."""

_ARCSEC = math.pi / 180.0 / 3600.0


class DetectorOutline(pydantic.BaseModel):
    """The outer pixel edges of one detector in the focal plane."""

    model_config = pydantic.ConfigDict(frozen=True)

    id: int
    """Detector ID, as in the Butler ``detector`` dimension."""

    name: str
    """Full detector name (``R22_S11``)."""

    x_min: float
    """Left edge, millimetres."""

    y_min: float
    """Lower edge, millimetres."""

    x_max: float
    """Right edge, millimetres."""

    y_max: float
    """Upper edge, millimetres."""

    nx: int
    """Columns of the imaging area, pixels."""

    ny: int
    """Rows of the imaging area, pixels."""


class FocalPlane(pydantic.BaseModel):
    """Geometry of all detectors of one camera."""

    model_config = pydantic.ConfigDict(frozen=True)

    detectors: tuple[DetectorOutline, ...]
    """The detectors that take science images, in order of ID."""

    scale: float
    """Plate scale at the centre, arcsec per millimetre."""

    radial: tuple[float, ...] = ()
    """Coefficients k1, k2, … of 1 + k1 r² + k2 r⁴ + …, r in millimetres."""

    flip_x: bool = True
    """Whether x is flipped between the focal plane and the sky."""

    def outline(self, detector: int) -> DetectorOutline:
        """Return the outline of one detector.

        Parameters
        ----------
        detector : `int`
            Detector ID.

        Raises
        ------
        KeyError
            Raised if the camera has no such detector.
        """
        for outline in self.detectors:
            if outline.id == detector:
                return outline
        raise KeyError(detector)

    def to_plane(self, x_mm: np.ndarray, y_mm: np.ndarray, rotation: float) -> tuple[np.ndarray, np.ndarray]:
        """Map focal-plane positions to the tangent plane at the boresight.

        Parameters
        ----------
        x_mm, y_mm : `numpy.ndarray`
            Focal-plane positions, millimetres, any shape.
        rotation : `float`
            Sky angle: focal-plane +Y measured east of north, degrees.

        Returns
        -------
        xi, eta : `numpy.ndarray`
            Gnomonic coordinates (east, north), radians, same shape.
        """
        r2 = np.square(x_mm) + np.square(y_mm)
        factor = np.ones_like(r2)
        power = np.ones_like(r2)
        for coefficient in self.radial:
            power = power * r2
            factor = factor + coefficient * power
        fx = x_mm * self.scale * _ARCSEC * factor
        fy = y_mm * self.scale * _ARCSEC * factor
        if self.flip_x:
            fx = -fx
        theta = math.radians(rotation)
        xi = fx * math.cos(theta) + fy * math.sin(theta)
        eta = -fx * math.sin(theta) + fy * math.cos(theta)
        return xi, eta

    def to_vectors(
        self, x_mm: np.ndarray, y_mm: np.ndarray, ra: float, dec: float, rotation: float
    ) -> np.ndarray:
        """Map focal-plane positions to unit vectors on the sky.

        Parameters
        ----------
        x_mm, y_mm : `numpy.ndarray`
            Focal-plane positions, millimetres, any shape S.
        ra, dec : `float`
            Boresight (ICRS), degrees.
        rotation : `float`
            Sky angle, degrees.

        Returns
        -------
        vectors : `numpy.ndarray`
            Unit vectors of shape S + (3,).
        """
        xi, eta = self.to_plane(x_mm, y_mm, rotation)
        # Basis at the tangent point; defined at the poles too, where a
        # formula in right ascension and declination would divide by zero.
        a, d = math.radians(ra), math.radians(dec)
        centre = np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)])
        east = np.array([-math.sin(a), math.cos(a), 0.0])
        north = np.array([-math.sin(d) * math.cos(a), -math.sin(d) * math.sin(a), math.cos(d)])
        vectors = centre + xi[..., None] * east + eta[..., None] * north
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def regions(
        self,
        ra: float,
        dec: float,
        rotation: float,
        padding: float = 0.0,
        detectors: Collection[int] | None = None,
    ) -> dict[int, ConvexPolygon]:
        """Find the sky regions of detectors.

        Parameters
        ----------
        ra, dec : `float`
            Boresight (ICRS), degrees.
        rotation : `float`
            Sky angle, degrees.
        padding : `float`, optional
            How far each edge is moved outwards, arcsec.
        detectors : collection of `int`, optional
            Only those of these detectors that the camera has; all by default.

        Returns
        -------
        regions : `dict` [ `int`, `lsst.sphgeom.ConvexPolygon` ]
            One polygon per detector ID.

        Raises
        ------
        ValueError
            Raised if a coordinate is not finite or declination is out of
            range.
        """
        if not all(math.isfinite(v) for v in (ra, dec, rotation)) or abs(dec) > 90.0:
            raise ValueError(f"no such pointing: ra={ra}, dec={dec}, rotation={rotation}")
        pad = padding / self.scale
        regions = {}
        for d in self.detectors:
            if detectors is not None and d.id not in detectors:
                continue
            x = np.array([d.x_min - pad, d.x_max + pad, d.x_max + pad, d.x_min - pad])
            y = np.array([d.y_min - pad, d.y_min - pad, d.y_max + pad, d.y_max + pad])
            corners = self.to_vectors(x, y, ra, dec, rotation)
            regions[d.id] = ConvexPolygon.convexHull([UnitVector3d(*corner) for corner in corners])
        return regions
