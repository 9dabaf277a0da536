"""PSFs as stamps: making one, and measuring with it."""

from __future__ import annotations

__all__ = ["NJY_ZERO_POINT", "make_psf", "psf_flux", "psf_fwhm", "shift_psf"]

import math

import numpy as np
from scipy import ndimage

NJY_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy."""

_HALF = 10
_CORE = 3.0
_WINGS = 5.0


def make_psf(image: np.ndarray, bad: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Stack stars into a PSF stamp.

    Parameters
    ----------
    image : `numpy.ndarray`
        Background-subtracted image.
    bad : `numpy.ndarray`
        `bool`: pixels not to use.
    x, y : `numpy.ndarray`
        Centroids of stars, brightest first, pixels.

    Returns
    -------
    psf : `numpy.ndarray`
        Shape (21, 21), sum 1, centred.

    Raises
    ------
    ValueError
        Raised if fewer than three stars can be used.
    """
    radius = np.hypot(*np.mgrid[-_HALF : _HALF + 1, -_HALF : _HALF + 1])
    stamps, fluxes = [], []
    for px, py in zip(x, y, strict=True):
        stamp = _centred(image, bad, px, py)
        # By the core: in the whole stamp, neighbours would count.
        if stamp is not None and (core := float(stamp[radius < _CORE].sum())) > 0:
            stamps.append(stamp / core)
            fluxes.append(core)
    if len(stamps) < 3:
        raise ValueError(f"only {len(stamps)} stars are fit for a PSF")
    cube, flux = np.array(stamps), np.array(fluxes)
    # Variables' companions and galaxies: leave out the fifth that fits worst.
    misfit = np.abs(cube - np.median(cube, axis=0))[:, radius < _WINGS].sum(axis=1) * np.sqrt(flux)
    keep = misfit <= np.quantile(misfit, 0.8)
    cube, flux = cube[keep], flux[keep]
    # A neighbour is an outlier among the stars at its pixels.
    middle = np.median(cube, axis=0)
    deviation = np.abs(cube - middle)
    weight = flux[:, None, None] * (deviation <= 4.5 * np.median(deviation, axis=0) + 1e-9)
    psf = (weight * cube).sum(axis=0) / weight.sum(axis=0)
    # Beyond the core a pixel of the stack is noise; a ring's median is not.
    rings = np.rint(radius).astype(int)
    profile = [float(np.median(psf[rings == ring])) for ring in range(_HALF + 1)]
    psf = np.where(radius > _WINGS, np.interp(radius, np.arange(_HALF + 1), profile), psf)
    psf -= np.median(psf[(radius > _HALF - 1.5) & (radius <= _HALF)])
    psf = np.where(radius > _WINGS, np.clip(psf, 0.0, None), psf)
    psf = np.where(radius > _HALF, 0.0, psf)
    return psf / psf.sum()


def psf_fwhm(psf: np.ndarray) -> float:
    """FWHM of a PSF stamp, from the area above half of the peak, pixels."""
    fine = ndimage.zoom(psf, 5, order=3)
    return 2.0 * math.sqrt((fine > 0.5 * fine.max()).sum() / 25.0 / math.pi)


def shift_psf(psf: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Move a PSF stamp by a part of a pixel."""
    return ndimage.shift(psf, (dy, dx), order=3, mode="constant")


def psf_flux(
    image: np.ndarray, variance: np.ndarray, bad: np.ndarray, psf: np.ndarray, x: float, y: float
) -> tuple[float, float, float, int]:
    """Measure a flux by fitting the PSF at a position.

    Parameters
    ----------
    image, variance : `numpy.ndarray`
        Background-subtracted pixels and their variance.
    bad : `numpy.ndarray`
        `bool`: pixels not to use.
    psf : `numpy.ndarray`
        PSF stamp.
    x, y : `float`
        Position, pixels.

    Returns
    -------
    flux, error, chi2, n : `float`, `float`, `float`, `int`
        Flux, its error, chi-square and number of pixels; NaN if no pixel
        could be used.
    """
    half = 6
    ix, iy = round(x), round(y)
    ny, nx = image.shape
    if not (half <= ix < nx - half and half <= iy < ny - half):
        return math.nan, math.nan, math.nan, 0
    box = slice(iy - half, iy + half + 1), slice(ix - half, ix + half + 1)
    centre = psf.shape[0] // 2
    model = shift_psf(psf, x - ix, y - iy)[
        centre - half : centre + half + 1, centre - half : centre + half + 1
    ]
    good = ~bad[box]
    if good.sum() < 20:
        return math.nan, math.nan, math.nan, 0
    data, p = image[box][good], model[good]
    # Equal weights within the stamp: with the source's own noise in the
    # weights, bright fluxes would be biased.
    v = float(np.median(variance[box][good]))
    norm = float((p * p).sum())
    flux = float((p * data).sum()) / norm
    pixel_variance = variance[box][good]
    error = math.sqrt(float((p * p * pixel_variance).sum())) / norm
    chi2 = float(((data - flux * p) ** 2 / np.maximum(pixel_variance, 0.5 * v)).sum())
    return flux, error, chi2, int(good.sum())


def _centred(image: np.ndarray, bad: np.ndarray, x: float, y: float) -> np.ndarray | None:
    half = _HALF + 2
    ix, iy = round(float(x)), round(float(y))
    ny, nx = image.shape
    if not (half <= ix < nx - half and half <= iy < ny - half):
        return None
    box = slice(iy - half, iy + half + 1), slice(ix - half, ix + half + 1)
    if bad[box][2:-2, 2:-2][5:-5, 5:-5].any() or bad[box].mean() > 0.02:
        return None
    stamp = ndimage.shift(image[box], (iy - y, ix - x), order=3, mode="nearest")[2:-2, 2:-2]
    edge = np.concatenate([stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1]])
    stamp = stamp - np.median(edge)
    return stamp if stamp.sum() > 0 else None
