"""DemoCam's detectors and electronics: one model for simulator and instrument."""

from __future__ import annotations

__all__ = ["CAMERA", "INSTRUMENT", "Amplifier", "Camera", "focal_plane"]

import numpy as np
import pydantic

from ..focalplane import DetectorOutline, FocalPlane

INSTRUMENT = "DemoCam"
"""Short name."""

_PIXEL_MM = 0.010
_SIDE = 512
_GAP_MM = 0.3


class Amplifier(pydantic.BaseModel):
    """One readout channel; it reads half a detector and its own overscan."""

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    x0: int
    """First column of its part of the assembled image, pixels."""
    width: int
    """Columns of its part, pixels."""
    raw_x0: int
    """First column of its part of the raw image, pixels."""
    overscan_x0: int
    """First overscan column in the raw image, pixels."""
    overscan_width: int
    """Overscan columns, pixels."""


class Camera(pydantic.BaseModel):
    """What is the same for all detectors of DemoCam."""

    model_config = pydantic.ConfigDict(frozen=True)

    side: int = _SIDE
    """Rows and columns of the imaging area, pixels."""
    pixel_scale: float = 0.4
    """arcsec per pixel."""
    overscan: int = 16
    """Overscan columns of each amplifier, pixels."""
    full_well: float = 80_000.0
    """Saturation, electrons: below the range of the 16-bit converter at every amplifier's gain."""

    @property
    def amplifiers(self) -> tuple[Amplifier, Amplifier]:
        """Left and right half; the overscan of both is between them."""
        half, over = self.side // 2, self.overscan
        return (
            Amplifier(name="C0", x0=0, width=half, raw_x0=0, overscan_x0=half, overscan_width=over),
            Amplifier(
                name="C1",
                x0=half,
                width=half,
                raw_x0=half + 2 * over,
                overscan_x0=half + over,
                overscan_width=over,
            ),
        )

    @property
    def raw_width(self) -> int:
        """Columns of a raw image, pixels."""
        return self.side + 2 * self.overscan

    def gains(self, detector: int) -> tuple[float, float]:
        """Gains of a detector's amplifiers, electrons per ADU."""
        rng = np.random.default_rng([7, detector])
        left, right = 1.6 + 0.12 * rng.standard_normal(2)
        return float(left), float(right)

    def read_noise(self, detector: int) -> tuple[float, float]:
        """Read noise of a detector's amplifiers, electrons."""
        rng = np.random.default_rng([8, detector])
        left, right = rng.uniform(5.0, 8.0, 2)
        return float(left), float(right)

    def bias_level(self, detector: int) -> tuple[float, float]:
        """Mean bias level of a detector's amplifiers, ADU."""
        rng = np.random.default_rng([9, detector])
        left, right = rng.uniform(900.0, 1300.0, 2)
        return float(left), float(right)

    def bias_structure(self, detector: int) -> np.ndarray:
        """Fixed pattern on the level, ADU, shape (side, side)."""
        rng = np.random.default_rng([10, detector])
        rows = np.linspace(0.0, 1.0, self.side)[:, None]
        columns = rng.normal(0.0, 1.2, self.side)[None, :]
        glow = 9.0 * np.exp(-rows / 0.05) * np.ones((1, self.side))
        return (columns + glow).astype(np.float32)

    def flat_structure(self, detector: int, physical_filter: str) -> np.ndarray:
        """Relative response of the pixels, mean about 1, shape (side, side)."""
        shade = {"demo-g": 0.08, "demo-r": 0.05}[physical_filter]
        rng = np.random.default_rng([11, detector, len(physical_filter), ord(physical_filter[-1])])
        y, x = np.mgrid[0 : self.side, 0 : self.side] / (self.side - 1) - 0.5
        tilt = rng.uniform(-0.5, 0.5, 2)
        smooth = 1.0 + shade * (tilt[0] * x + tilt[1] * y - 2.0 * (x**2 + y**2 - 1.0 / 6.0))
        pixels = 1.0 + rng.normal(0.0, 0.008, (self.side, self.side))
        return (smooth * pixels).astype(np.float32)

    def bad_columns(self, detector: int) -> list[int]:
        """Dead columns of a detector."""
        rng = np.random.default_rng([12, detector])
        return sorted(int(c) for c in rng.choice(np.arange(8, self.side - 8), 3, replace=False))


CAMERA = Camera()


def focal_plane() -> FocalPlane:
    """Return DemoCam's geometry: 3×3 detectors, row by row.

    Returns
    -------
    plane : `ppd.focalplane.FocalPlane`
        The focal plane.
    """
    size = CAMERA.side * _PIXEL_MM
    pitch = size + _GAP_MM
    outlines = []
    for number in range(9):
        row, column = divmod(number, 3)
        x, y = (column - 1) * pitch, (row - 1) * pitch
        outlines.append(
            DetectorOutline(
                id=number,
                name=f"R00_S{row}{column}",
                x_min=x - size / 2,
                y_min=y - size / 2,
                x_max=x + size / 2,
                y_max=y + size / 2,
                nx=CAMERA.side,
                ny=CAMERA.side,
            )
        )
    return FocalPlane(detectors=tuple(outlines), scale=CAMERA.pixel_scale / _PIXEL_MM, flip_x=True)
