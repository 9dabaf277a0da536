"""Bringing template patches onto an image's pixels."""

from __future__ import annotations

__all__ = ["WarpedTemplate", "pixel_map", "warp_patches"]

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import astropy.wcs
import numpy as np
from lsst.daf.butler import DeferredDatasetHandle
from lsst.images import Box, MaskedImage
from scipy import ndimage

from ..skymap import patch_in

_STEP = 64
_SPLINE = 5
"""Order of the spline: as sharp as the Lanczos kernels of other warpers."""

_MARGIN = 16
"""Pixels around what is needed: the spline's edge effects end within."""


@dataclasses.dataclass
class WarpedTemplate:
    """Template patches on the pixels of an image."""

    flux: np.ndarray
    variance: np.ndarray
    covered: np.ndarray
    """`bool`: where there is a template."""
    saturated: np.ndarray
    """`bool`: where a saturated pixel went into it."""


def pixel_map(
    source: astropy.wcs.WCS, target: astropy.wcs.WCS, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Find where the pixels of an image are in another.

    Parameters
    ----------
    source : `astropy.wcs.WCS`
        WCS of the image.
    target : `astropy.wcs.WCS`
        WCS of the other.
    shape : `tuple` [ `int`, `int` ]
        Rows and columns of the image.

    Returns
    -------
    x, y : `numpy.ndarray`
        Pixel coordinates in the other, of the given shape.

    Notes
    -----
    Exact on a grid, bilinear between its nodes.  One tangent plane is a
    projective map of another, which over the grid's step is linear to within
    10⁻⁵ pixels where the tangent points are less than a degree apart.
    """
    rows, columns = (_nodes(n) for n in shape)
    x, y = np.meshgrid(columns, rows)
    there = target.wcs_world2pix(*source.wcs_pix2world(x.ravel(), y.ravel(), 0), 0)
    down, across = _interpolator(rows, shape[0]), _interpolator(columns, shape[1])
    fine = [down @ values.reshape(x.shape) @ across.T for values in there]
    return fine[0], fine[1]


def warp_patches(
    wcs: astropy.wcs.WCS,
    shape: tuple[int, int],
    patches: Sequence[DeferredDatasetHandle],
    sky_map: Mapping[str, Any],
) -> WarpedTemplate:
    """Resample the patches that an image needs onto its pixels.

    Parameters
    ----------
    wcs : `astropy.wcs.WCS`
        WCS of the image.
    shape : `tuple` [ `int`, `int` ]
        Its rows and columns.
    patches : sequence of `lsst.daf.butler.DeferredDatasetHandle`
        Patches around the image.  Only those that give something are read,
        and of them only the part that the image needs.
    sky_map : `~collections.abc.Mapping`
        The ``skyMap`` dataset.

    Returns
    -------
    template : `WarpedTemplate`
        All patches together; where several would do, the one that gives
        most.
    """
    result = WarpedTemplate(
        flux=np.zeros(shape),
        variance=np.ones(shape),
        covered=np.zeros(shape, dtype=bool),
        saturated=np.zeros(shape, dtype=bool),
    )
    waiting = [(handle, *_place(wcs, shape, handle, sky_map)) for handle in patches]
    while waiting:
        counts = [int((inside & ~result.covered).sum()) for _, inside, _ in waiting]
        best = int(np.argmax(counts))
        if not counts[best]:
            break
        handle, inside, box = waiting.pop(best)
        inside &= ~result.covered
        _add(result, wcs, handle.get(parameters={"bbox": box}), inside)
    return result


def _place(
    wcs: astropy.wcs.WCS, shape: tuple[int, int], handle: DeferredDatasetHandle, sky_map: Mapping[str, Any]
) -> tuple[np.ndarray, Box]:
    """Where a patch covers the image, and which part of the patch that is."""
    patch = patch_in(sky_map, int(handle.dataId["tract"]), int(handle.dataId["patch"]))
    x, y = pixel_map(wcs, patch.wcs(), shape)
    # Patches overlap by more than the spline's edge effects reach.
    edge = _SPLINE - 1
    last = patch.side - 1 - edge
    inside = (x > edge) & (x < last) & (y > edge) & (y < last)
    if not inside.any():
        return inside, Box.factory[0:1, 0:1]
    ranges = []
    for values in (y[inside], x[inside]):
        start = max(0, int(values.min()) - _MARGIN)
        ranges.append(slice(start, min(patch.side, int(values.max()) + _MARGIN + 2)))
    return inside, Box.factory[ranges[0], ranges[1]]


def _add(result: WarpedTemplate, wcs: astropy.wcs.WCS, patch: MaskedImage, inside: np.ndarray) -> None:
    """Resample one patch, by its own WCS."""
    shape = (inside.shape[0], inside.shape[1])
    x, y = pixel_map(wcs, patch.sky_projection.as_fits_wcs(patch.bbox), shape)
    where = np.array([y[inside], x[inside]])
    result.flux[inside] = ndimage.map_coordinates(
        patch.image.array.astype(float), where, order=_SPLINE, mode="nearest"
    )
    # The variance is smooth, and a spline could take it below zero.
    result.variance[inside] = ndimage.map_coordinates(
        patch.variance.array.astype(float), where, order=1, mode="nearest"
    )
    flags = patch.mask.get("SAT")
    if flags.any():
        result.saturated[inside] = (
            ndimage.map_coordinates(flags.astype(float), where, order=1, mode="nearest") > 0.01
        )
    result.covered |= inside


def _nodes(n: int) -> np.ndarray:
    return np.linspace(0.0, n - 1.0, max(2, 1 + -(-n // _STEP)))


def _interpolator(nodes: np.ndarray, n: int) -> np.ndarray:
    """Linear interpolation from the nodes to every pixel, as a matrix."""
    return np.array([np.interp(np.arange(n), nodes, unit) for unit in np.eye(len(nodes))]).T
