"""Calibration products, measured from simulated calibration frames."""

from __future__ import annotations

__all__ = ["Calibs", "camera_dict", "measure_calibs", "spoil"]

import dataclasses
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from lsst.images import Image

from .camera import CAMERA, INSTRUMENT, focal_plane

_BIAS_FRAMES = 50
_FLAT_FRAMES = 30
_FLAT_ELECTRONS = 40_000.0


@dataclasses.dataclass(frozen=True)
class Calibs:
    """The calibs of one detector."""

    bias: Image
    """What remains after overscan subtraction, ADU, assembled."""
    flats: dict[str, Image]
    """Relative response by physical filter, mean 1, assembled."""
    defects: Table
    """Boxes of bad pixels: x0, y0, width, height in assembled pixels."""
    gains: dict[str, Any]
    """Per amplifier: gain (electrons per ADU), read noise and saturation (electrons)."""


def camera_dict() -> dict[str, Any]:
    """Describe the camera as the ``camera`` dataset has it."""
    return {
        "name": INSTRUMENT,
        "focal_plane": focal_plane().model_dump(mode="json"),
        "amplifiers": [a.model_dump() for a in CAMERA.amplifiers],
        "side": CAMERA.side,
        "pixel_scale_arcsec": CAMERA.pixel_scale,
    }


def measure_calibs(detector: int, seed: int) -> Calibs:
    """Measure the calibs of a detector, as a stack of calibration frames gives them.

    Parameters
    ----------
    detector : `int`
        Detector ID.
    seed : `int`
        Seed of the simulation.

    Returns
    -------
    calibs : `Calibs`
        With the noise that a finite number of frames leaves.
    """
    rng = np.random.default_rng([seed, 100 + detector])
    side, half = CAMERA.side, CAMERA.side // 2
    gains, noise = CAMERA.gains(detector), CAMERA.read_noise(detector)
    read_adu = np.repeat([n / g for n, g in zip(noise, gains, strict=True)], half)[None, :]
    bias = CAMERA.bias_structure(detector) + rng.normal(size=(side, side)) * read_adu / np.sqrt(_BIAS_FRAMES)
    flats = {}
    for physical_filter in ("demo-g", "demo-r"):
        counts = CAMERA.flat_structure(detector, physical_filter) * _FLAT_ELECTRONS * _FLAT_FRAMES
        flat = rng.poisson(counts) / (_FLAT_ELECTRONS * _FLAT_FRAMES)
        flats[physical_filter] = Image((flat / np.median(flat)).astype(np.float32))
    columns = CAMERA.bad_columns(detector)
    defects = Table(
        {
            "x0": np.array(columns, dtype=np.int32),
            "y0": np.zeros(len(columns), dtype=np.int32),
            "width": np.ones(len(columns), dtype=np.int32),
            "height": np.full(len(columns), side, dtype=np.int32),
        }
    )
    amplifiers = {
        amp.name: {
            "gain": float(gain * (1.0 + rng.normal(0.0, 0.002))),
            "read_noise": float(sigma * (1.0 + rng.normal(0.0, 0.01))),
            "saturation": CAMERA.full_well,
        }
        for amp, gain, sigma in zip(CAMERA.amplifiers, gains, noise, strict=True)
    }
    return Calibs(Image(bias.astype(np.float32), unit=u.adu), flats, defects, {"amplifiers": amplifiers})


def spoil(calibs: Calibs) -> Calibs:
    """Make calibs that show at once when they are used: of another time of the camera's life."""
    side = CAMERA.side
    ramp = np.linspace(0.0, 400.0, side, dtype=np.float32)[:, None]
    defects = Table(
        {
            name: np.array([v], dtype=np.int32)
            for name, v in (("x0", 0), ("y0", 0), ("width", side), ("height", side // 2))
        }
    )
    amplifiers = {
        name: {**values, "gain": 3.0 * values["gain"]} for name, values in calibs.gains["amplifiers"].items()
    }
    return Calibs(
        bias=Image(calibs.bias.array + ramp, unit=u.adu),
        flats={k: Image((1.5 - 0.5 * f.array).astype(np.float32)) for k, f in calibs.flats.items()},
        defects=defects,
        gains={"amplifiers": amplifiers},
    )
