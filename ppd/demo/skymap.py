"""The demo survey's sky map: one tract around each field, cut into patches."""

from __future__ import annotations

__all__ = ["SKYMAP", "Patch", "insert_skymap", "make_patches", "patch_in", "skymap_dict"]

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import astropy.wcs
import numpy as np
from lsst.daf.butler import Butler
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from .drawing import TanGrid
from .sky import FIELDS, Field

SKYMAP = "demo_v1"
"""Name of the sky map."""

_PER_SIDE = 3
_INNER = 580
_BORDER = 40
_SCALE = 0.4  # arcsec per pixel


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch, with its border."""

    tract: int
    patch: int
    field: Field
    x0: int
    """First column in the tract's pixels."""
    y0: int
    side: int
    """Rows and columns, pixels."""
    tract_side: int
    """Rows and columns of the tract, pixels; its centre is the field's."""
    scale: float
    """arcsec per pixel."""

    def wcs(self) -> astropy.wcs.WCS:
        """The patch's own WCS: its first pixel is (0, 0)."""
        wcs = astropy.wcs.WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [self.field.ra, self.field.dec]
        centre = self.tract_side / 2 - 0.5
        wcs.wcs.crpix = [centre - self.x0 + 1.0, centre - self.y0 + 1.0]
        wcs.wcs.cd = np.array([[-self.scale, 0.0], [0.0, self.scale]]) / 3600.0
        wcs.wcs.set()
        return wcs

    def grid(self) -> TanGrid:
        """The patch's pixel grid."""
        step = math.radians(self.scale / 3600.0)
        centre = self.tract_side / 2 - 0.5
        cd = np.array([[-step, 0.0], [0.0, step]])
        shape = (self.side, self.side)
        return TanGrid(self.field.ra, self.field.dec, cd, centre - self.x0, centre - self.y0, shape)

    def region(self) -> ConvexPolygon:
        """The patch's outer region."""
        return _region(self.wcs(), self.side)


def make_patches(field: Field) -> list[Patch]:
    """Cut a field's tract into patches.

    Parameters
    ----------
    field : `ppd.demo.sky.Field`
        The field.

    Returns
    -------
    patches : `list` [ `Patch` ]
        Row by row.
    """
    tract = FIELDS.index(field)
    return [patch_in(skymap_dict(), tract, number) for number in range(_PER_SIDE**2)]


def patch_in(sky_map: Mapping[str, Any], tract: int, patch: int) -> Patch:
    """Find the geometry of a patch in a ``skyMap`` dataset.

    Parameters
    ----------
    sky_map : `~collections.abc.Mapping`
        The dataset, as `skymap_dict` makes it.
    tract, patch : `int`
        Which patch.

    Returns
    -------
    patch : `Patch`
        The patch.

    Raises
    ------
    LookupError
        Raised if the sky map has no such patch.
    """
    own = sky_map["tracts"][str(tract)]
    row, column = divmod(patch, own["patches_per_side"])
    if not 0 <= row < own["patches_per_side"]:
        raise LookupError(f"tract {tract} of sky map {sky_map['name']} has no patch {patch}")
    inner, border = sky_map["patch_inner"], sky_map["patch_border"]
    return Patch(
        tract=tract,
        patch=patch,
        field=Field(own["field"], own["ra"], own["dec"]),
        x0=column * inner - border,
        y0=row * inner - border,
        side=inner + 2 * border,
        tract_side=own["patches_per_side"] * inner,
        scale=sky_map["pixel_scale_arcsec"],
    )


def insert_skymap(butler: Butler) -> None:
    """Insert the ``skymap``, ``tract`` and ``patch`` records."""
    registry = butler.registry
    registry.syncDimensionData(
        "skymap",
        {
            "name": SKYMAP,
            "hash": SKYMAP.encode(),
            "tract_max": len(FIELDS),
            "patch_nx_max": _PER_SIDE,
            "patch_ny_max": _PER_SIDE,
        },
    )
    for field in FIELDS:
        patches = make_patches(field)
        corners = [v for p in patches for v in p.region().getVertices()]
        registry.syncDimensionData(
            "tract",
            {"skymap": SKYMAP, "id": patches[0].tract, "region": ConvexPolygon.convexHull(corners)},
        )
        for p in patches:
            registry.syncDimensionData(
                "patch",
                {
                    "skymap": SKYMAP,
                    "tract": p.tract,
                    "id": p.patch,
                    "cell_x": p.patch % _PER_SIDE,
                    "cell_y": p.patch // _PER_SIDE,
                    "region": p.region(),
                },
            )


def skymap_dict() -> dict[str, Any]:
    """Describe the sky map: tracts, their centres and their patches."""
    return {
        "name": SKYMAP,
        "pixel_scale_arcsec": _SCALE,
        "patch_inner": _INNER,
        "patch_border": _BORDER,
        "tracts": {
            str(i): {"field": f.name, "ra": f.ra, "dec": f.dec, "patches_per_side": _PER_SIDE}
            for i, f in enumerate(FIELDS)
        },
    }


def _region(wcs: astropy.wcs.WCS, side: int) -> ConvexPolygon:
    edge = np.array([-0.5, side - 0.5])
    ra, dec = wcs.wcs_pix2world(edge[[0, 1, 1, 0]], edge[[0, 0, 1, 1]], 0)
    points = [
        UnitVector3d(LonLat.fromDegrees(float(a) % 360.0, float(d))) for a, d in zip(ra, dec, strict=True)
    ]
    return ConvexPolygon.convexHull(points)
