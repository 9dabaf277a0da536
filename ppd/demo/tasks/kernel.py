"""Fitting the kernel that takes one PSF to another."""

from __future__ import annotations

__all__ = ["KernelFit", "fit_kernel"]

import dataclasses
import math

import numpy as np
from astropy.table import Table

_REACH = 9
"""Half the side of the stamps on which the fit is made, pixels."""

_MIN_SNR = 15.0


@dataclasses.dataclass(frozen=True)
class KernelFit:
    """A matching kernel and how well it fits."""

    kernel: np.ndarray
    """Shape (2 half + 1, 2 half + 1)."""
    offset: float
    """Constant background difference."""
    chi2: float
    """Median over the stars that were used, per pixel."""
    used: int
    """Stars that were used; fewer than three: there is no fit."""


def fit_kernel(
    science: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    template: np.ndarray,
    stars: Table,
    sigmas: tuple[float, ...],
    degrees: tuple[int, ...],
    half: int,
    most: int,
) -> KernelFit:
    """Fit the kernel that takes the template's PSF to the image's.

    Parameters
    ----------
    science, variance : `numpy.ndarray`
        The image.
    bad : `numpy.ndarray`
        `bool`: pixels not to use.
    template : `numpy.ndarray`
        The template on the same pixels.
    stars : `astropy.table.Table`
        Columns x, y and snr.
    sigmas, degrees : `tuple`
        Gaussians of the basis and the polynomials on them.
    half : `int`
        Half the kernel's side.
    most : `int`
        Stars to use at most.

    Returns
    -------
    fit : `KernelFit`
        The kernel.

    Notes
    -----
    Only stamps around stars are convolved with the basis.  Each function of
    the basis is a product of one of x and one of y, so that its convolution
    with all stamps is two matrix products.
    """
    basis = _basis(sigmas, degrees, half)
    places = _choose_stars(stars, bad, science.shape, _REACH + half, most)
    if len(places) < 3:
        return KernelFit(np.outer(*basis[0]), 0.0, math.nan, len(places))
    outer = _REACH + half
    stamps = np.array([template[y - outer : y + outer + 1, x - outer : x + outer + 1] for x, y in places])
    boxes = [(slice(y - _REACH, y + _REACH + 1), slice(x - _REACH, x + _REACH + 1)) for x, y in places]
    data = np.array([science[box].ravel() for box in boxes])
    # A floor on the error of bright pixels: no kernel fits to a per mille.
    weights = 1.0 / (np.array([variance[box].ravel() for box in boxes]) + (0.01 * data) ** 2)
    weights[np.array([bad[box].ravel() for box in boxes])] = 0.0
    design = np.ones((len(places), data.shape[1], len(basis) + 1))
    for k, (vertical, horizontal) in enumerate(basis):
        convolved = _valid(vertical, 2 * _REACH + 1) @ stamps @ _valid(horizontal, 2 * _REACH + 1).T
        design[:, :, k] = convolved.reshape(len(places), -1)
    weighted = (design * weights[:, :, None]).transpose(0, 2, 1)
    normal = weighted @ design
    right = (weighted @ data[:, :, None])[:, :, 0]
    used = np.ones(len(places), dtype=bool)
    pixels = np.maximum((weights > 0).sum(axis=1), 1)
    for _ in range(4):
        matrix, vector = normal[used].sum(axis=0), right[used].sum(axis=0)
        ridge = 1e-9 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        solution = np.linalg.solve(matrix + ridge, vector)
        chi2 = (weights * (data - design @ solution) ** 2).sum(axis=1) / pixels
        # Variable stars and stars next to something new do not fit.
        fits = chi2 < max(2.0 * float(np.median(chi2[used])), 1.5)
        if fits.sum() < 3 or (fits == used).all():
            break
        used = fits
    kernel = np.tensordot(solution[:-1], np.array([np.outer(v, h) for v, h in basis]), axes=1)
    return KernelFit(kernel, float(solution[-1]), float(np.median(chi2[used])), int(used.sum()))


def _choose_stars(
    stars: Table, bad: np.ndarray, shape: tuple[int, ...], margin: int, most: int
) -> list[tuple[int, int]]:
    """Pixels of the brightest stars that nothing bad is near."""
    ny, nx = shape
    places: list[tuple[int, int]] = []
    snr = np.asarray(stars["snr"])
    columns, rows = np.rint(stars["x"]).astype(int), np.rint(stars["y"]).astype(int)
    for i in np.argsort(-snr):
        x, y = int(columns[i]), int(rows[i])
        # Written so that a star without a flux (NaN) is left out.
        if not (margin <= x < nx - margin and margin <= y < ny - margin and snr[i] >= _MIN_SNR):
            continue
        box = slice(y - _REACH, y + _REACH + 1), slice(x - _REACH, x + _REACH + 1)
        if bad[box].mean() > 0.05 or bad[y - 2 : y + 3, x - 2 : x + 3].any():
            continue
        places.append((x, y))
        if len(places) == most:
            break
    return places


def _basis(
    sigmas: tuple[float, ...], degrees: tuple[int, ...], half: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Factors in y and x of each function of the basis."""
    r = np.arange(-half, half + 1.0)
    basis = []
    for sigma, degree in zip(sigmas, degrees, strict=True):
        powers = [np.exp(-0.5 * (r / sigma) ** 2) * (r / sigma) ** i for i in range(degree + 1)]
        powers = [p / np.abs(p).sum() for p in powers]
        basis += [(powers[j], powers[i]) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return basis


def _valid(function: np.ndarray, rows: int) -> np.ndarray:
    """The convolution with a function as a matrix, where the function fits in wholly."""
    matrix = np.zeros((rows, rows + len(function) - 1))
    for row in range(rows):
        matrix[row, row : row + len(function)] = function[::-1]
    return matrix
