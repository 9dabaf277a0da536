"""Simulating raws: from the sky through telescope and electronics to FITS."""

from __future__ import annotations

__all__ = ["SKY_MAG", "ZERO_POINT", "Conditions", "draw_scene", "set_times", "simulate_raw", "write_raw"]

import dataclasses
import datetime
import math
import re
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
from astropy.time import Time

from ..visit import TAI_MINUS_UTC
from .camera import CAMERA, INSTRUMENT, focal_plane
from .drawing import Psf, TanGrid, draw_galaxies, draw_points
from .sky import BANDS, Sky

ZERO_POINT = {"g": 31.0, "r": 30.8}
"""AB magnitude that gives one electron in an exposure."""

SKY_MAG = {"g": 21.8, "r": 21.0}
"""Sky brightness, AB magnitudes per square arcsec."""

_COSMIC_RAYS = 9.0
# As `_header` writes them: a time of 23 characters, so that another fits.
_TIME_CARD = re.compile(rb"(DATE-(?:BEG|END)= ')([^']{23})(?=')")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The state of telescope and atmosphere during one exposure."""

    exposure: int
    obs_id: str
    group: str
    snap: int
    field: str
    physical_filter: str
    ra: float
    """Commanded boresight, degrees; the header says it."""
    dec: float
    true_ra: float
    """Where the telescope looked, degrees."""
    true_dec: float
    rotation: float
    """Sky angle, degrees."""
    begin_mjd: float
    """TAI."""
    exposure_time: float
    """Seconds."""
    fwhm: float
    """Of the PSF's core, pixels."""
    elongation: float
    sky_factor: float
    transparency: float
    day_obs: int
    seq_num: int
    seed: int

    @property
    def band(self) -> str:
        """Band of the filter."""
        return self.physical_filter.removeprefix("demo-")

    @property
    def middle_mjd(self) -> float:
        """Middle of the exposure, MJD in TAI."""
        return self.begin_mjd + self.exposure_time / 2 / 86400.0

    @property
    def psf(self) -> Psf:
        """The PSF."""
        return Psf(self.fwhm, elongation=self.elongation)

    def electrons(self, mag: np.ndarray) -> np.ndarray:
        """Electrons that a source of a magnitude gives."""
        return self.transparency * 10 ** (0.4 * (ZERO_POINT[self.band] - mag))

    def sky_level(self) -> float:
        """Sky, electrons per pixel."""
        area = CAMERA.pixel_scale**2
        return self.sky_factor * area * 10 ** (0.4 * (ZERO_POINT[self.band] - SKY_MAG[self.band]))

    def grid(self, detector: int) -> TanGrid:
        """Where a detector's pixels truly look."""
        return TanGrid.of_detector(focal_plane(), detector, self.true_ra, self.true_dec, self.rotation)


def draw_scene(
    sky: Sky, grid: TanGrid, band: str, psf: Psf, mjd: float, scale: float, noise: float, *, transients: bool
) -> np.ndarray:
    """Draw the sky without its glow.

    Parameters
    ----------
    sky : `ppd.demo.sky.Sky`
        The sources.
    grid : `ppd.demo.drawing.TanGrid`
        Pixel grid.
    band : `str`
        Band.
    psf : `ppd.demo.drawing.Psf`
        PSF.
    mjd : `float`
        Time, for what varies and moves.
    scale : `float`
        Flux of a source of magnitude 0.
    noise : `float`
        Noise of a pixel in the same unit; profiles end below it.
    transients : `bool`
        Whether supernovae and movers are there.

    Returns
    -------
    scene : `numpy.ndarray`
        Flux per pixel, in the unit of ``scale``.
    """
    b = BANDS.index(band)
    scene = np.zeros(grid.shape)

    def points(ra: np.ndarray, dec: np.ndarray, flux: np.ndarray) -> None:
        x, y = grid.to_pixels(ra, dec)
        near = (x > -60) & (x < grid.shape[1] + 60) & (y > -60) & (y < grid.shape[0] + 60)
        draw_points(scene, x[near], y[near], flux[near], psf, noise)

    flux = scale * 10 ** (-0.4 * sky.star_mag[:, b]) * sky.star_flux_factor(mjd)
    points(sky.star_ra, sky.star_dec, flux)
    draw_galaxies(
        scene,
        grid,
        sky.galaxy_ra,
        sky.galaxy_dec,
        scale * 10 ** (-0.4 * sky.galaxy_mag[:, b]),
        sky.galaxy_radius,
        sky.galaxy_ratio,
        sky.galaxy_angle,
        psf,
        noise,
    )
    if transients:
        points(sky.supernova_ra, sky.supernova_dec, scale * 10 ** (-0.4 * sky.supernova_mag[:, b]))
        points(*sky.mover_positions(mjd), scale * 10 ** (-0.4 * sky.mover_mag[:, b]))
    return scene


def simulate_raw(
    sky: Sky, conditions: Conditions, detector: int
) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    """Simulate one raw.

    Parameters
    ----------
    sky : `ppd.demo.sky.Sky`
        The field's sources.
    conditions : `Conditions`
        The exposure.
    detector : `int`
        Detector ID.

    Returns
    -------
    pixels : `numpy.ndarray`
        ADU, unsigned 16 bits, overscan and all.
    header : `dict`
        Header cards.
    scene : `numpy.ndarray`
        Electrons of sky and sources before any noise, for the truth table.
    """
    c = conditions
    rng = np.random.default_rng([c.seed, c.exposure % 100_000, detector])
    side = CAMERA.side
    level = c.sky_level()
    noise = math.sqrt(level + 40.0)
    scale = float(c.electrons(np.array(0.0)))
    scene = draw_scene(sky, c.grid(detector), c.band, c.psf, c.middle_mjd, scale, noise, transients=True)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    slope = rng.normal(0.0, 0.01, 2)
    light = (scene + level * (1.0 + slope[0] * x + slope[1] * y)) * CAMERA.flat_structure(
        detector, c.physical_filter
    )
    electrons = rng.poisson(np.clip(light, 0.0, None)).astype(float)
    _add_cosmic_rays(electrons, rng)
    np.clip(electrons, None, CAMERA.full_well, out=electrons)
    columns = CAMERA.bad_columns(detector)
    electrons[:, columns] *= rng.uniform(0.0, 0.25, len(columns))
    raw = np.empty((side, CAMERA.raw_width))
    structure = CAMERA.bias_structure(detector)
    parameters = zip(
        CAMERA.amplifiers,
        CAMERA.gains(detector),
        CAMERA.read_noise(detector),
        CAMERA.bias_level(detector),
        strict=True,
    )
    for amp, gain, read_noise, bias in parameters:
        drift = bias + rng.normal(0.0, 2.0) + rng.normal(0.0, 0.4, side)[:, None]
        part = slice(amp.x0, amp.x0 + amp.width)
        image = electrons[:, part] / gain + structure[:, part]
        over = np.zeros((side, amp.overscan_width))
        for data, start in ((image, amp.raw_x0), (over, amp.overscan_x0)):
            read = data + drift + rng.normal(0.0, read_noise / gain, data.shape)
            raw[:, start : start + data.shape[1]] = read
    return np.clip(np.rint(raw), 0, 65535).astype(np.uint16), _header(c, detector), scene + level


def write_raw(path: Path, pixels: np.ndarray, header: dict[str, Any]) -> None:
    """Write a raw as FITS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu = astropy.io.fits.PrimaryHDU(pixels)
    for card, value in header.items():
        hdu.header[card] = value
    hdu.writeto(path, overwrite=True)


def set_times(raw: bytes, end: float) -> bytes:
    """Let the exposure of a raw be over at a time; nothing but two cards of its header changes.

    Parameters
    ----------
    raw : `bytes`
        What `write_raw` has written; it has no checksums.
    end : `float`
        When the shutter has closed, Unix seconds.

    Returns
    -------
    raw : `bytes`
        As long as before. ``DATE-SKY`` still says of when the sky is that was drawn.

    Raises
    ------
    ValueError
        Raised if it has no such cards.
    """
    cards = _TIME_CARD.findall(raw, 0, raw.find(b"END" + b" " * 77))
    if len(cards) != 2:
        raise ValueError("the raw has no DATE-BEG and DATE-END")
    times = {name: datetime.datetime.fromisoformat(time.decode()) for name, time in cards}
    tai = datetime.datetime.fromtimestamp(end + TAI_MINUS_UTC, datetime.UTC).replace(tzinfo=None)
    later = tai - max(times.values())

    def moved(card: re.Match[bytes]) -> bytes:
        return card[1] + (times[card[1]] + later).isoformat(timespec="milliseconds").encode()

    return _TIME_CARD.sub(moved, raw, count=2)


def _add_cosmic_rays(electrons: np.ndarray, rng: np.random.Generator) -> None:
    side = electrons.shape[0]
    for _ in range(rng.poisson(_COSMIC_RAYS)):
        x, y = rng.uniform(0, side, 2)
        angle, length = rng.uniform(0, 2 * math.pi), 1.0 + rng.exponential(4.0)
        charge = rng.lognormal(math.log(2500.0), 0.7)
        for step in np.arange(0.0, length, 0.5):
            ix, iy = int(x + step * math.cos(angle)), int(y + step * math.sin(angle))
            if 0 <= ix < side and 0 <= iy < side:
                electrons[iy, ix] += charge * rng.uniform(0.3, 0.7)


def _header(c: Conditions, detector: int) -> dict[str, Any]:
    outline = focal_plane().outline(detector)
    begin = Time(c.begin_mjd, format="mjd", scale="tai")
    end = Time(c.begin_mjd + c.exposure_time / 86400.0, format="mjd", scale="tai")
    middle = Time(c.middle_mjd, format="mjd", scale="tai")
    return {
        "INSTRUME": INSTRUMENT,
        "OBSID": c.obs_id,
        "EXPID": c.exposure,
        "GROUPID": c.group,
        "SNAP": c.snap,
        "DETNUM": detector,
        "DETNAME": outline.name,
        "FILTER": c.physical_filter,
        "DATE-BEG": begin.isot,
        "DATE-END": end.isot,
        # Where the movers are; the night may be played at another time than was thought.
        "DATE-SKY": middle.isot,
        "TIMESYS": "TAI",
        "EXPTIME": c.exposure_time,
        "DARKTIME": c.exposure_time + 0.5,
        "RA": c.ra,
        "DEC": c.dec,
        "ROTSKY": c.rotation,
        # Nominal: fields are fixed and the clock is real, so a field may be
        # below the horizon at the site.
        "AZ": 120.0,
        "EL": 62.0,
        "AIRMASS": 1.13,
        "OBJECT": c.field,
        "PROGRAM": "DEMO",
        "DAYOBS": c.day_obs,
        "SEQNUM": c.seq_num,
        "SEQSTART": c.seq_num,
        "SEQEND": c.seq_num,
    }
