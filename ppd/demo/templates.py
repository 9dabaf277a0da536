"""Templates and reference catalogs, from what the survey saw before tonight."""

from __future__ import annotations

__all__ = [
    "EPOCHS",
    "TemplatePixels",
    "draw_template",
    "make_refcat",
    "make_template",
    "template_star_factor",
]

import dataclasses
import math

import astropy.units as u
import numpy as np
from astropy.table import Table
from lsst.images import Image, Mask, MaskedImage, MaskPlane, MaskSchema, SkyProjection, TractFrame
from lsst.sphgeom import HtmPixelization, LonLat, UnitVector3d

from .camera import CAMERA
from .drawing import Psf, stack_fwhm
from .raws import SKY_MAG, ZERO_POINT, draw_scene
from .sky import BANDS, Sky
from .skymap import SKYMAP, Patch

EPOCHS = 6
"""Exposures that were stacked for each template."""

_EPOCH_DAYS = np.array([-120.3, -113.1, -98.7, -96.2, -71.4, -60.8])
_EPOCH_FWHM = (2.1, 2.4, 2.2, 2.3, 2.15, 2.35)  # pixels; the best seeing goes into templates
_NJY_ZERO_POINT = 31.4  # AB magnitude of 1 nJy
_REFCAT_LIMIT = 21.9


def template_star_factor(sky: Sky, night_mjd: float) -> np.ndarray:
    """Mean flux of each star over the template's epochs, relative to its mean."""
    return np.mean([sky.star_flux_factor(night_mjd + day) for day in _EPOCH_DAYS], axis=0)


@dataclasses.dataclass(frozen=True)
class TemplatePixels:
    """The pixels of a template."""

    flux: np.ndarray
    """nJy."""
    variance: np.ndarray
    """nJy²."""
    saturated: np.ndarray
    """`bool`: saturated in an epoch."""


def draw_template(sky: Sky, patch: Patch, band: str, seed: int, night_mjd: float) -> TemplatePixels:
    """Simulate the stack of earlier exposures on a patch.

    Each epoch has its own seeing, and sky noise, read noise and source noise
    from the same zero points, sky and detectors as tonight's raws; tonight's
    supernovae and movers are not in it.

    Parameters
    ----------
    sky : `ppd.demo.sky.Sky`
        The field's sources.
    patch : `ppd.demo.skymap.Patch`
        The patch.
    band : `str`
        Band.
    seed : `int`
        Seed of the simulation.
    night_mjd : `float`
        Time of the night; the epochs are before it.

    Returns
    -------
    pixels : `TemplatePixels`
        The stack.
    """
    rng = np.random.default_rng([seed, 200, patch.tract, patch.patch, BANDS.index(band)])
    to_njy = 10 ** (0.4 * (_NJY_ZERO_POINT - ZERO_POINT[band]))
    level = CAMERA.pixel_scale**2 * 10 ** (0.4 * (ZERO_POINT[band] - SKY_MAG[band]))
    scale = 10 ** (0.4 * ZERO_POINT[band])
    noise = math.sqrt((level + 40.0) / EPOCHS)
    total = np.zeros((patch.side, patch.side))
    saturated = np.zeros(total.shape, dtype=bool)
    for day, fwhm in zip(_EPOCH_DAYS, _EPOCH_FWHM, strict=True):
        scene = draw_scene(
            sky, patch.grid(), band, Psf(fwhm), night_mjd + day, scale, noise, transients=False
        )
        saturated |= scene + level > CAMERA.full_well
        total += scene
    # The noise of the sum, at once: of independent epochs the variances add.
    variance = total + EPOCHS * (level + 40.0)
    total += np.sqrt(variance) * rng.normal(size=total.shape)
    return TemplatePixels(
        flux=(total / EPOCHS * to_njy).astype(np.float32),
        variance=(variance / EPOCHS**2 * to_njy**2).astype(np.float32),
        saturated=saturated,
    )


def make_template(patch: Patch, pixels: TemplatePixels) -> MaskedImage:
    """Make a template of its pixels.

    Parameters
    ----------
    patch : `ppd.demo.skymap.Patch`
        The patch.
    pixels : `TemplatePixels`
        What `draw_template` made of it.

    Returns
    -------
    template : `lsst.images.MaskedImage`
        In nJy; metadata ``PSF_FWHM`` (pixels) and ``PHOT_ZP`` (AB magnitude
        of 1 unit).
    """
    schema = MaskSchema([MaskPlane("SAT", "A pixel was saturated in an epoch.")])
    image = Image(pixels.flux, unit=u.nJy)
    mask = Mask(schema=schema, bbox=image.bbox)
    mask.set("SAT", pixels.saturated)
    return MaskedImage(
        image,
        mask=mask,
        variance=Image(pixels.variance, unit=u.nJy**2),
        sky_projection=SkyProjection.from_fits_wcs(
            patch.wcs(), TractFrame(skymap=SKYMAP, tract=patch.tract, bbox=image.bbox)
        ),
        metadata={
            "PSF_FWHM": stack_fwhm([Psf(fwhm) for fwhm in _EPOCH_FWHM]),
            "PHOT_ZP": _NJY_ZERO_POINT,
            "NEPOCHS": EPOCHS,
        },
    )


def make_refcat(skies: list[Sky], seed: int) -> dict[int, Table]:
    """Make the reference catalog, in HTM level 7 shards.

    Parameters
    ----------
    skies : `list` [ `ppd.demo.sky.Sky` ]
        All fields.
    seed : `int`
        Seed of the simulation.

    Returns
    -------
    shards : `dict` [ `int`, `astropy.table.Table` ]
        By HTM7 pixel: id, ra, dec (degrees), g_mag, r_mag.  Its stars are
        the bright ones that were not seen to vary; positions are good to
        0.02 arcsec and magnitudes to 0.01.
    """
    rng = np.random.default_rng([seed, 300])
    htm = HtmPixelization(7)
    rows: dict[int, list[tuple[int, float, float, float, float]]] = {}
    for number, sky in enumerate(skies):
        bright = (sky.star_mag[:, 1] < _REFCAT_LIMIT) & (sky.star_amplitude == 0.0)
        for i in np.flatnonzero(bright):
            shift = rng.normal(0.0, 0.02 / 3600.0, 2)
            dec = float(sky.star_dec[i] + shift[1])
            ra = float((sky.star_ra[i] + shift[0] / math.cos(math.radians(dec))) % 360.0)
            pixel = htm.index(UnitVector3d(LonLat.fromDegrees(ra, dec)))
            g, r = (float(m) for m in sky.star_mag[i] + rng.normal(0.0, 0.01, 2))
            rows.setdefault(pixel, []).append((number * 1_000_000 + int(i), ra, dec, g, r))
    names = ("id", "ra", "dec", "g_mag", "r_mag")
    return {pixel: Table(rows=stars, names=names) for pixel, stars in rows.items()}
