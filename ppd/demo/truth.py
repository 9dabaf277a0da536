"""What truly changed on the sky: for the report alone, never for a pipeline."""

from __future__ import annotations

__all__ = ["TRUTH_COLUMNS", "true_changes"]

import math
from typing import Any

import numpy as np

from .camera import CAMERA
from .raws import Conditions
from .sky import BANDS, Sky
from .templates import EPOCHS, template_star_factor

TRUTH_COLUMNS = (
    "group",
    "exposure",
    "detector",
    "band",
    "kind",
    "source",
    "ra",
    "dec",
    "x",
    "y",
    "flux",
    "mag",
    "snr",
    "good",
    "known",
)
"""Columns of the truth table; flux is tonight's minus the template's, nJy."""

_NJY_ZERO_POINT = 31.4
_EDGE = 14
_COLUMN = 3


def true_changes(
    sky: Sky, c: Conditions, detector: int, scene: np.ndarray, night_mjd: float, known_movers: np.ndarray
) -> list[dict[str, Any]]:
    """List what differs between an exposure and the template.

    Parameters
    ----------
    sky : `ppd.demo.sky.Sky`
        The field's sources.
    c : `ppd.demo.raws.Conditions`
        The exposure.
    detector : `int`
        Detector ID.
    scene : `numpy.ndarray`
        Electrons expected per pixel, sky and sources.
    night_mjd : `float`
        Time of the night, for the template's epochs.
    known_movers : `numpy.ndarray`
        Which movers are in the orbit catalog.

    Returns
    -------
    rows : `list` [ `dict` ]
        One per changed source on the detector, with `TRUTH_COLUMNS`.

    Notes
    -----
    The signal-to-noise ratio is that of a matched filter on the difference:
    flux / sqrt(A v), A = 1 / sum(p²) the PSF's effective area and v the
    variance of a pixel: sky, read noise and local light of both exposures
    (2/3 of the central pixel's: the mean over a Gaussian PSF weighted by its
    square).
    """
    b = BANDS.index(c.band)
    grid = c.grid(detector)
    njy = lambda mag: 10 ** (0.4 * (_NJY_ZERO_POINT - mag))  # noqa: E731
    factor = sky.star_flux_factor(c.middle_mjd) - template_star_factor(sky, night_mjd)
    varying = np.flatnonzero(sky.star_amplitude > 0)
    mover_ra, mover_dec = sky.mover_positions(c.middle_mjd)
    groups = (
        ("variable", varying, sky.star_ra, sky.star_dec, njy(sky.star_mag[:, b]) * factor),
        (
            "supernova",
            np.arange(len(sky.supernova_ra)),
            sky.supernova_ra,
            sky.supernova_dec,
            njy(sky.supernova_mag[:, b]),
        ),
        ("mover", np.arange(len(mover_ra)), mover_ra, mover_dec, njy(sky.mover_mag[:, b])),
    )
    per_njy = float(c.electrons(np.array(_NJY_ZERO_POINT)))
    area = c.psf.effective_area()
    columns = np.array(CAMERA.bad_columns(detector))
    side = CAMERA.side
    rows = []
    for kind, indices, ra, dec, flux in groups:
        x, y = grid.to_pixels(ra, dec)
        for i in indices:
            if not (0 <= x[i] < side - 0.5 and 0 <= y[i] < side - 0.5):
                continue
            column, row = round(float(x[i])), round(float(y[i]))
            near = scene[max(0, row - 6) : row + 7, max(0, column - 6) : column + 7]
            level = c.sky_level()
            local = level + 40.0 + 0.67 * max(float(scene[row, column]) - level, 0.0)
            variance = area * local * (1.0 + 1.0 / EPOCHS)
            good = (
                _EDGE < x[i] < side - _EDGE
                and _EDGE < y[i] < side - _EDGE
                and bool(np.abs(columns - x[i]).min() > _COLUMN)
                and float(near.max()) < 0.9 * CAMERA.full_well
            )
            rows.append(
                {
                    "group": c.group,
                    "exposure": c.exposure,
                    "detector": detector,
                    "band": c.band,
                    "kind": kind,
                    "source": int(i),
                    "ra": float(ra[i]),
                    "dec": float(dec[i]),
                    "x": float(x[i]),
                    "y": float(y[i]),
                    "flux": float(flux[i]),
                    "mag": float(_NJY_ZERO_POINT - 2.5 * math.log10(max(abs(float(flux[i])), 1e-3))),
                    "snr": float(abs(flux[i]) * per_njy / math.sqrt(variance)),
                    "good": good,
                    "known": bool(kind == "mover" and known_movers[i]),
                }
            )
    return rows
