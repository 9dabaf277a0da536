"""Drawing a sky through a PSF onto a pixel grid."""

from __future__ import annotations

__all__ = ["Psf", "TanGrid", "draw_galaxies", "draw_points", "stack_fwhm"]

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..focalplane import FocalPlane

# An exponential disk as a sum of Gaussians: weights and sigmas in half-light
# radii.  Least squares over log r between 0.05 and 4 half-light radii; the
# curve of growth is right to 0.6 % of the total (the form of such mixtures is
# Hogg & Lang 2013, PASP 125, 719).
_DISK = ((0.0113, 0.1397), (0.1124, 0.3552), (0.4460, 0.7253), (0.4303, 1.3401))

_FWHM_TO_SIGMA = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))


@dataclasses.dataclass(frozen=True)
class Psf:
    """Two Gaussians, core and halo, slightly elongated along the pixel axes."""

    fwhm: float
    """Of the core, pixels."""
    halo_fraction: float = 0.12
    halo_scale: float = 1.9
    elongation: float = 0.0
    """(sigma_x - sigma_y) / sum."""

    def components(self) -> tuple[tuple[float, float, float], ...]:
        """Weight, sigma_x and sigma_y of each Gaussian; pixels."""
        sigma = self.fwhm * _FWHM_TO_SIGMA
        sx, sy = sigma * (1 + self.elongation), sigma * (1 - self.elongation)
        k = self.halo_scale
        return ((1 - self.halo_fraction, sx, sy), (self.halo_fraction, k * sx, k * sy))

    def effective_area(self) -> float:
        """Pixels of background in an optimal flux measurement, 1 / sum(p²)."""
        total = 0.0
        for wa, ax, ay in self.components():
            for wb, bx, by in self.components():
                total += wa * wb / (2 * math.pi * math.sqrt((ax**2 + bx**2) * (ay**2 + by**2)))
        return 1.0 / total


def stack_fwhm(psfs: Sequence[Psf]) -> float:
    """Find the full width at half maximum of a mean of PSFs along x, halo and all; pixels."""
    radius = np.linspace(0.0, 2.0 * max(psf.fwhm for psf in psfs), 4001)
    profile = np.zeros_like(radius)
    for psf in psfs:
        for weight, sx, sy in psf.components():
            profile += weight / (sx * sy) * np.exp(-0.5 * (radius / sx) ** 2)
    return float(2.0 * np.interp(-0.5 * profile[0], -profile, radius))


@dataclasses.dataclass(frozen=True)
class TanGrid:
    """A pixel grid in the tangent plane of a point."""

    ra: float
    dec: float
    cd: np.ndarray
    """Matrix from pixels to (xi, eta), radians per pixel, shape (2, 2)."""
    x0: float
    """Pixel coordinates of the tangent point."""
    y0: float
    shape: tuple[int, int]
    """Rows, columns."""

    @classmethod
    def of_detector(cls, plane: FocalPlane, detector: int, ra: float, dec: float, rotation: float) -> TanGrid:
        """Grid of a detector's imaging pixels; ``plane`` must be undistorted."""
        d = plane.outline(detector)
        pixel = (d.x_max - d.x_min) / d.nx
        edge = np.array([0.0, pixel, 0.0]), np.array([0.0, 0.0, pixel])
        xi, eta = plane.to_plane(*edge, rotation)
        cd = np.array([[xi[1], xi[2]], [eta[1], eta[2]]])
        return cls(ra, dec, cd, -d.x_min / pixel - 0.5, -d.y_min / pixel - 0.5, (d.ny, d.nx))

    def to_pixels(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map positions in degrees to pixels (gnomonic projection)."""
        a, d = np.radians(np.asarray(ra) - self.ra), np.radians(dec)
        d0 = math.radians(self.dec)
        cosine = math.sin(d0) * np.sin(d) + math.cos(d0) * np.cos(d) * np.cos(a)
        xi = np.cos(d) * np.sin(a) / cosine
        eta = (math.cos(d0) * np.sin(d) - math.sin(d0) * np.cos(d) * np.cos(a)) / cosine
        inverse = np.linalg.inv(self.cd)
        x = inverse[0, 0] * xi + inverse[0, 1] * eta + self.x0
        y = inverse[1, 0] * xi + inverse[1, 1] * eta + self.y0
        return x, y

    @property
    def scale(self) -> float:
        """Arcsec per pixel."""
        return math.degrees(math.sqrt(abs(np.linalg.det(self.cd)))) * 3600.0


def draw_points(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, psf: Psf, noise: float
) -> None:
    """Add point sources to an image.

    Parameters
    ----------
    image : `numpy.ndarray`
        Changed in place.
    x, y : `numpy.ndarray`
        Positions, pixels.
    flux : `numpy.ndarray`
        Total flux of each, in the image's unit.
    psf : `Psf`
        The PSF.
    noise : `float`
        Noise of a pixel: stamps end where the profile is far below it.
    """
    ny, nx = image.shape
    for px, py, f in zip(x, y, flux, strict=True):
        for weight, sx, sy in psf.components():
            peak = abs(f) * weight / (2 * math.pi * sx * sy)
            reach = math.sqrt(2.0 * math.log(max(peak / (0.02 * noise), 2.0))) * max(sx, sy)
            box = _box(px, py, reach, nx, ny)
            if box is None:
                continue
            xa, xb, ya, yb = box
            gx = np.exp(-0.5 * ((np.arange(xa, xb) - px) / sx) ** 2) / (math.sqrt(2 * math.pi) * sx)
            gy = np.exp(-0.5 * ((np.arange(ya, yb) - py) / sy) ** 2) / (math.sqrt(2 * math.pi) * sy)
            image[ya:yb, xa:xb] += (f * weight) * gy[:, None] * gx[None, :]


def draw_galaxies(
    image: np.ndarray,
    grid: TanGrid,
    ra: np.ndarray,
    dec: np.ndarray,
    flux: np.ndarray,
    radius: np.ndarray,
    ratio: np.ndarray,
    angle: np.ndarray,
    psf: Psf,
    noise: float,
) -> None:
    """Add exponential disks to an image.

    Parameters
    ----------
    image : `numpy.ndarray`
        Changed in place.
    grid : `TanGrid`
        The image's grid.
    ra, dec : `numpy.ndarray`
        Positions, degrees.
    flux : `numpy.ndarray`
        Total fluxes, in the image's unit.
    radius : `numpy.ndarray`
        Half-light radii of the major axis, arcsec.
    ratio, angle : `numpy.ndarray`
        Axis ratios, and position angles in radians.
    psf : `Psf`
        The PSF.
    noise : `float`
        Noise of a pixel.
    """
    ny, nx = image.shape
    x, y = grid.to_pixels(ra, dec)
    inverse = np.linalg.inv(grid.cd)
    arcsec = math.radians(1.0 / 3600.0)
    for i in range(len(x)):
        if not (-40 < x[i] < nx + 40 and -40 < y[i] < ny + 40):
            continue
        c, s = math.cos(angle[i]), math.sin(angle[i])
        axes = np.array([[s, -c], [c, s]]) * arcsec  # major axis at the position angle east of north
        shape = inverse @ axes @ np.diag([1.0, ratio[i]]) * radius[i]
        unit = shape @ shape.T
        for disk_weight, disk_sigma in _DISK:
            for psf_weight, sx, sy in psf.components():
                cov = unit * disk_sigma**2 + np.diag([sx**2, sy**2])
                determinant = np.linalg.det(cov)
                f = flux[i] * disk_weight * psf_weight
                peak = f / (2 * math.pi * math.sqrt(determinant))
                if peak < 0.02 * noise:
                    continue
                sigma = math.sqrt(max(cov[0, 0], cov[1, 1]))
                reach = math.sqrt(2.0 * math.log(max(peak / (0.02 * noise), 2.0))) * sigma
                box = _box(x[i], y[i], reach, nx, ny)
                if box is None:
                    continue
                xa, xb, ya, yb = box
                p = np.linalg.inv(cov)
                dx = (np.arange(xa, xb) - x[i])[None, :]
                dy = (np.arange(ya, yb) - y[i])[:, None]
                q = p[0, 0] * dx**2 + 2 * p[0, 1] * dx * dy + p[1, 1] * dy**2
                image[ya:yb, xa:xb] += peak * np.exp(-0.5 * q)


def _box(x: float, y: float, reach: float, nx: int, ny: int) -> tuple[int, int, int, int] | None:
    xa, xb = max(0, int(x - reach)), min(nx, int(x + reach) + 2)
    ya, yb = max(0, int(y - reach)), min(ny, int(y + reach) + 2)
    return (xa, xb, ya, yb) if xa < xb and ya < yb else None
