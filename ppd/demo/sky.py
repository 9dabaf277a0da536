"""The sky over the demo observatory, and what changes in it.

Every source is a sum of round or elliptical Gaussians, so that the image of
it through a Gaussian-mixture PSF is one too and costs microseconds to draw.
"""

from __future__ import annotations

__all__ = ["BANDS", "FIELDS", "Field", "Sky", "make_sky"]

import dataclasses

import numpy as np

BANDS = ("g", "r")
"""Bands of the survey."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A pointing that the survey comes back to."""

    name: str
    ra: float
    dec: float


FIELDS = (
    Field("D1", 149.95, -24.8),
    Field("D2", 214.10, -31.2),
    Field("D3", 359.98, -12.4),
)
"""Fields of the survey; the last lies across right ascension 0."""

HALF_WIDTH = 0.16
"""Half the side of the square of sky that is simulated around a field, degrees."""

# Per square arcmin.
_STARS = 14.0
_GALAXIES = 2.2
_VARIABLES = 0.20
_SUPERNOVAE = 0.26
_MOVERS = 0.10


@dataclasses.dataclass(frozen=True)
class Sky:
    """All sources of one field; arrays are parallel, one entry per source."""

    field: Field
    star_ra: np.ndarray
    """Degrees."""
    star_dec: np.ndarray
    """Degrees."""
    star_mag: np.ndarray
    """AB magnitudes, shape (n, 2): g and r."""
    star_amplitude: np.ndarray
    """Relative amplitude of the flux; 0: constant."""
    star_period: np.ndarray
    """Days."""
    star_phase: np.ndarray
    """Cycles at MJD 61000."""
    galaxy_ra: np.ndarray
    galaxy_dec: np.ndarray
    galaxy_mag: np.ndarray
    galaxy_radius: np.ndarray
    """Half-light radius of the major axis, arcsec."""
    galaxy_ratio: np.ndarray
    """Minor to major axis."""
    galaxy_angle: np.ndarray
    """Position angle, radians."""
    supernova_ra: np.ndarray
    supernova_dec: np.ndarray
    supernova_mag: np.ndarray
    mover_ra: np.ndarray
    """Degrees at `mover_epoch`."""
    mover_dec: np.ndarray
    mover_rate_ra: np.ndarray
    """Times cos(dec), arcsec per hour."""
    mover_rate_dec: np.ndarray
    """Arcsec per hour."""
    mover_mag: np.ndarray
    mover_epoch: float
    """MJD, TAI."""

    def star_flux_factor(self, mjd: float) -> np.ndarray:
        """Flux of each star relative to its mean, at a time (MJD, TAI)."""
        cycles = (mjd - 61000.0) / self.star_period + self.star_phase
        return 1.0 + self.star_amplitude * np.sin(2 * np.pi * cycles)

    def mover_positions(self, mjd: float) -> tuple[np.ndarray, np.ndarray]:
        """Right ascension and declination of the movers at a time, degrees."""
        hours = (mjd - self.mover_epoch) * 24.0
        dec = self.mover_dec + self.mover_rate_dec * hours / 3600.0
        ra = self.mover_ra + self.mover_rate_ra * hours / 3600.0 / np.cos(np.radians(self.mover_dec))
        return ra % 360.0, dec


def make_sky(field: Field, seed: int, night_mjd: float) -> Sky:
    """Draw the sources of a field.

    Parameters
    ----------
    field : `Field`
        The field.
    seed : `int`
        Seed of the simulation.
    night_mjd : `float`
        Time of the night, MJD: the movers cross the field then.

    Returns
    -------
    sky : `Sky`
        The sources.
    """
    rng = np.random.default_rng([seed, int(field.ra * 100)])
    area = (2 * HALF_WIDTH * 60.0) ** 2

    def positions(n: int) -> tuple[np.ndarray, np.ndarray]:
        dec = field.dec + rng.uniform(-HALF_WIDTH, HALF_WIDTH, n)
        ra = field.ra + rng.uniform(-HALF_WIDTH, HALF_WIDTH, n) / np.cos(np.radians(dec))
        return ra % 360.0, dec

    # Star counts rise as 10^(0.25 m).
    n = rng.poisson(_STARS * area)
    star_ra, star_dec = positions(n)
    r_mag = 24.0 + 4.0 * np.log10(rng.uniform(10 ** (-0.25 * 9.0), 1.0, n))
    star_mag = np.column_stack([r_mag + rng.uniform(0.0, 1.4, n), r_mag])
    amplitude = np.zeros(n)
    candidates = np.flatnonzero((r_mag > 16.8) & (r_mag < 21.0))
    variables = rng.choice(candidates, min(len(candidates), rng.poisson(_VARIABLES * area)), replace=False)
    amplitude[variables] = rng.uniform(0.10, 0.5, len(variables))

    n = rng.poisson(_GALAXIES * area)
    galaxy_ra, galaxy_dec = positions(n)
    g_r = 23.5 + 3.3 * np.log10(rng.uniform(10 ** (-5.5 / 3.3), 1.0, n))
    galaxy_mag = np.column_stack([g_r + rng.uniform(0.3, 1.2, n), g_r])
    radius = np.clip(rng.lognormal(np.log(0.9), 0.35, n) * 10 ** (-0.06 * (g_r - 22.0)), 0.4, 3.0)
    ratio = rng.uniform(0.35, 1.0, n)
    angle = rng.uniform(0.0, np.pi, n)

    n = min(rng.poisson(_SUPERNOVAE * area), len(galaxy_ra))
    hosts = rng.choice(len(galaxy_ra), n, replace=False)
    offset = rng.exponential(0.8, n) * radius[hosts] / 3600.0
    direction = rng.uniform(0.0, 2 * np.pi, n)
    sn_dec = galaxy_dec[hosts] + offset * np.sin(direction)
    sn_ra = galaxy_ra[hosts] + offset * np.cos(direction) / np.cos(np.radians(sn_dec))
    sn_r = rng.uniform(18.5, 23.8, n)

    n = rng.poisson(_MOVERS * area)
    mover_ra, mover_dec = positions(n)
    speed, heading = rng.uniform(15.0, 60.0, n), rng.uniform(0.0, 2 * np.pi, n)
    mover_r = rng.uniform(18.5, 23.3, n)

    return Sky(
        field=field,
        star_ra=star_ra,
        star_dec=star_dec,
        star_mag=star_mag,
        star_amplitude=amplitude,
        star_period=rng.uniform(0.3, 8.0, len(star_ra)),
        star_phase=rng.uniform(0.0, 1.0, len(star_ra)),
        galaxy_ra=galaxy_ra,
        galaxy_dec=galaxy_dec,
        galaxy_mag=galaxy_mag,
        galaxy_radius=radius,
        galaxy_ratio=ratio,
        galaxy_angle=angle,
        supernova_ra=sn_ra % 360.0,
        supernova_dec=sn_dec,
        supernova_mag=np.column_stack([sn_r + rng.uniform(-0.2, 0.6, len(sn_r)), sn_r]),
        mover_ra=mover_ra,
        mover_dec=mover_dec,
        mover_rate_ra=speed * np.cos(heading),
        mover_rate_dec=speed * np.sin(heading),
        mover_mag=np.column_stack([mover_r + 0.5, mover_r]),
        mover_epoch=night_mjd,
    )
