"""From header pointing to a fitted WCS."""

from __future__ import annotations

__all__ = ["fit_wcs", "header_wcs", "match_offset"]

from collections.abc import Mapping
from typing import Any

import astropy.wcs
import numpy as np
from scipy.spatial import cKDTree

from ...focalplane import FocalPlane


def header_wcs(header: Mapping[str, Any], camera: Mapping[str, Any], detector: int) -> astropy.wcs.WCS:
    """Make the WCS that header and camera geometry predict.

    Parameters
    ----------
    header : `~collections.abc.Mapping`
        Cards RA, DEC (boresight, degrees) and ROTSKY (degrees).
    camera : `~collections.abc.Mapping`
        The ``camera`` dataset.
    detector : `int`
        Detector ID.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        TAN, tangent point at the boresight.
    """
    plane = FocalPlane.model_validate(camera["focal_plane"])
    d = plane.outline(detector)
    pixel = (d.x_max - d.x_min) / d.nx
    edge = np.array([0.0, pixel, 0.0]), np.array([0.0, 0.0, pixel])
    xi, eta = np.degrees(plane.to_plane(*edge, float(header["ROTSKY"])))
    wcs = astropy.wcs.WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [float(header["RA"]), float(header["DEC"])]
    wcs.wcs.crpix = [-d.x_min / pixel + 0.5, -d.y_min / pixel + 0.5]
    wcs.wcs.cd = np.array([[xi[1], xi[2]], [eta[1], eta[2]]])
    wcs.wcs.set()
    return wcs


def match_offset(
    x: np.ndarray, y: np.ndarray, ref_x: np.ndarray, ref_y: np.ndarray, reach: float
) -> tuple[float, float, int]:
    """Find the shift between measured and predicted positions.

    Parameters
    ----------
    x, y : `numpy.ndarray`
        Measured positions, pixels.
    ref_x, ref_y : `numpy.ndarray`
        Predicted positions, pixels.
    reach : `float`
        Largest shift, pixels.

    Returns
    -------
    dx, dy, votes : `float`, `float`, `int`
        The shift that most pairs agree on, and how many do.
    """
    dx = (x[:, None] - ref_x[None, :]).ravel()
    dy = (y[:, None] - ref_y[None, :]).ravel()
    near = (np.abs(dx) < reach) & (np.abs(dy) < reach)
    if not near.any():
        return 0.0, 0.0, 0
    pairs = np.column_stack([dx[near], dy[near]])
    tree = cKDTree(pairs)
    neighbours = tree.query_ball_point(pairs, 1.5)
    best = max(neighbours, key=len)
    centre = np.median(pairs[best], axis=0)
    return float(centre[0]), float(centre[1]), len(best)


def fit_wcs(
    start: astropy.wcs.WCS, x: np.ndarray, y: np.ndarray, ra: np.ndarray, dec: np.ndarray
) -> tuple[astropy.wcs.WCS, float, np.ndarray]:
    """Fit an affine map from pixels to the tangent plane.

    Parameters
    ----------
    start : `astropy.wcs.WCS`
        Its tangent point is kept.
    x, y : `numpy.ndarray`
        Measured positions, pixels.
    ra, dec : `numpy.ndarray`
        Catalog positions of the same stars, degrees.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        The fitted WCS.
    rms : `float`
        Residual per coordinate, arcsec.
    used : `numpy.ndarray`
        `bool`: stars that were not clipped.
    """
    plane = start.deepcopy()
    plane.wcs.cd = np.eye(2)
    plane.wcs.crpix = [1.0, 1.0]
    plane.wcs.set()
    xi, eta = plane.wcs_world2pix(ra, dec, 0)
    design = np.column_stack([np.ones_like(x), x, y])
    used = np.ones(len(x), dtype=bool)
    for _ in range(4):
        solution, *_ = np.linalg.lstsq(design[used], np.column_stack([xi, eta])[used], rcond=None)
        residual = (np.column_stack([xi, eta]) - design @ solution) * 3600.0
        size = np.hypot(residual[:, 0], residual[:, 1])
        limit = max(3.0 * 1.48 * float(np.median(size[used])), 0.03)
        used = size < limit
        if used.sum() < 6:
            break
    rms = float(np.sqrt(np.mean(residual[used] ** 2))) if used.any() else float("nan")
    matrix = solution[1:].T
    crpix = -np.linalg.solve(matrix, solution[0]) + 1.0
    wcs = start.deepcopy()
    wcs.wcs.cd = matrix
    wcs.wcs.crpix = crpix
    wcs.wcs.set()
    return wcs, rms, used
