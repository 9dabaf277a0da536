"""Instrument signature removal: from a raw to electrons."""

from __future__ import annotations

__all__ = ["IsrConfig", "IsrConnections", "IsrTask", "fill_holes", "find_cosmic_rays"]

from typing import Any

import astropy.units as u
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
from lsst.images import Image, Mask, MaskedImage
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from scipy import ndimage

from .masks import SCIENCE_SCHEMA

_DETECTOR = ("instrument", "detector")


class IsrConnections(PipelineTaskConnections, dimensions=("instrument", "exposure", "detector")):
    """Connections of `IsrTask`."""

    raw = cT.Input(
        doc="Raw image, overscan and all, ADU.",
        name="raw",
        storageClass="ImageV2",
        dimensions=("instrument", "exposure", "detector"),
    )
    camera = cT.PrerequisiteInput(
        doc="Camera geometry.",
        name="camera",
        storageClass="StructuredDataDict",
        dimensions=("instrument",),
        isCalibration=True,
    )
    bias = cT.PrerequisiteInput(
        doc="Bias structure, ADU.",
        name="bias",
        storageClass="ImageV2",
        dimensions=_DETECTOR,
        isCalibration=True,
    )
    flat = cT.PrerequisiteInput(
        doc="Relative response.",
        name="flat",
        storageClass="ImageV2",
        dimensions=("instrument", "detector", "physical_filter"),
        isCalibration=True,
    )
    defects = cT.PrerequisiteInput(
        doc="Boxes of bad pixels.",
        name="defects",
        storageClass="ArrowAstropy",
        dimensions=_DETECTOR,
        isCalibration=True,
    )
    gains = cT.PrerequisiteInput(
        doc="Gain and read noise per amplifier.",
        name="gains",
        storageClass="StructuredDataDict",
        dimensions=_DETECTOR,
        isCalibration=True,
    )
    post_isr_image = cT.Output(
        doc="Assembled image, electrons, with mask and variance.",
        name="post_isr_image",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "exposure", "detector"),
    )


class IsrConfig(PipelineTaskConfig, pipelineConnections=IsrConnections):
    """Config of `IsrTask`."""

    saturationFraction = Field[float](doc="Saturated above this part of the full well.", default=0.97)
    cosmicRaySigma = Field[float](doc="Significance of a cosmic ray above sky and neighbours.", default=4.5)
    cosmicRayContrast = Field[float](
        doc="A cosmic ray is above the mean of two opposite neighbours by this factor.", default=2.6
    )


class IsrTask(PipelineTask):
    """Subtracts overscan and bias, divides by the flat, masks what is bad."""

    ConfigClass = IsrConfig
    _DefaultName = "isr"

    def run(self, raw: Image, camera: dict, bias: Image, flat: Image, defects: Table, gains: dict) -> Struct:
        """Remove the instrument's signature.

        Parameters
        ----------
        raw : `lsst.images.Image`
            Raw pixels, ADU; the header is its metadata.
        camera : `dict`
            Amplifier boxes.
        bias, flat : `lsst.images.Image`
            Calibs, assembled.
        defects : `astropy.table.Table`
            x0, y0, width, height, pixels.
        gains : `dict`
            Per amplifier: gain (electrons per ADU), read noise and
            saturation (electrons).

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``post_isr_image``: `lsst.images.MaskedImage`, electrons.
        """
        side = int(camera["side"])
        electrons = np.empty((side, side))
        read_variance = np.empty((side, side))
        saturated = np.zeros((side, side), dtype=bool)
        pixels = raw.array.astype(float)
        for amp in camera["amplifiers"]:
            values = gains["amplifiers"][amp["name"]]
            over = pixels[:, amp["overscan_x0"] : amp["overscan_x0"] + amp["overscan_width"]]
            # Row by row, smoothed: the level drifts slowly, 16 columns are noisy.
            level = ndimage.uniform_filter1d(np.median(over, axis=1), 9, mode="nearest")
            data = pixels[:, amp["raw_x0"] : amp["raw_x0"] + amp["width"]] - level[:, None]
            part = slice(amp["x0"], amp["x0"] + amp["width"])
            electrons[:, part] = (data - bias.array[:, part]) * values["gain"]
            read_variance[:, part] = values["read_noise"] ** 2
            limit = self.config.saturationFraction * values["saturation"]
            saturated[:, part] = electrons[:, part] > limit
            self.metadata[f"overscan_{amp['name']}_adu"] = float(np.median(level))
        response = flat.array.astype(float)
        variance = (np.clip(electrons, 0.0, None) + read_variance) / response**2
        electrons /= response
        bad = np.zeros((side, side), dtype=bool)
        for row in defects:
            y0, x0 = int(row["y0"]), int(row["x0"])
            bad[y0 : y0 + int(row["height"]), x0 : x0 + int(row["width"])] = True
        bad |= ~np.isfinite(electrons)
        saturated = ndimage.binary_dilation(saturated, iterations=2)
        cosmic = find_cosmic_rays(
            electrons, variance, bad | saturated, self.config.cosmicRaySigma, self.config.cosmicRayContrast
        )
        # Filled by the local median, so that resampling and convolution do
        # not smear them; the mask still says that nothing was measured here.
        hole = bad | cosmic
        electrons = fill_holes(electrons, hole)
        mask = Mask(schema=SCIENCE_SCHEMA, shape=(side, side))
        mask.set("BAD", bad)
        mask.set("SAT", saturated)
        mask.set("CR", cosmic)
        self.metadata["cosmic_ray_pixels"] = int(cosmic.sum())
        self.metadata["saturated_pixels"] = int(saturated.sum())
        self.metadata["bad_pixels"] = int(bad.sum())
        image = MaskedImage(
            Image(electrons.astype(np.float32), unit=u.electron),
            mask=mask,
            variance=Image(variance.astype(np.float32), unit=u.electron**2),
            metadata=_keep(raw.metadata),
        )
        return Struct(post_isr_image=image)


def find_cosmic_rays(
    image: np.ndarray, variance: np.ndarray, ignore: np.ndarray, sigma: float, contrast: float
) -> np.ndarray:
    """Find cosmic rays by their edges, sharper than any PSF.

    Parameters
    ----------
    image, variance : `numpy.ndarray`
        Pixels and their variance.
    ignore : `numpy.ndarray`
        Pixels not to look at.
    sigma : `float`
        Significance above the sky, and of the contrast with the neighbours.
    contrast : `float`
        By which factor it is above the mean of two opposite neighbours; the
        sharpest PSF stays below it.

    Returns
    -------
    found : `numpy.ndarray`
        `bool`; grown by one pixel.

    Notes
    -----
    The test is that of the SDSS photometric pipeline, as in RHL's notes and
    LSST's ``findCosmicRays``: a pixel is hit if, in one of four directions,
    the mean of its two neighbours is lower than any PSF would leave it.
    Only shifts are needed, so it costs milliseconds.
    """
    level = float(np.median(image[~ignore]))
    above = image - level
    noise = np.sqrt(np.clip(variance, 1.0, None))
    padded = np.pad(above, 1, mode="edge")
    ny, nx = image.shape

    def shifted(dy: int, dx: int) -> np.ndarray:
        return padded[1 + dy : 1 + dy + ny, 1 + dx : 1 + dx + nx]

    found = np.zeros(image.shape, dtype=bool)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        neighbours = 0.5 * (shifted(dy, dx) + shifted(-dy, -dx))
        found |= neighbours + sigma * noise / np.sqrt(2.0) < above / contrast
    found &= (above > sigma * noise) & ~ignore
    # The ends of a track are fainter and have only one bright neighbour.
    near = ndimage.binary_dilation(found, np.ones((3, 3)))
    return near & ~ignore


def fill_holes(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill pixels with a Gaussian-weighted mean of the good ones around them.

    Parameters
    ----------
    image : `numpy.ndarray`
        The image.
    hole : `numpy.ndarray`
        `bool`: what to fill.

    Returns
    -------
    filled : `numpy.ndarray`
        The image with its holes filled; else unchanged.
    """
    if not hole.any():
        return image
    good = (~hole).astype(float)
    weight = ndimage.gaussian_filter(good, 2.0, truncate=2.5)
    mean = ndimage.gaussian_filter(np.where(hole, 0.0, image), 2.0, truncate=2.5)
    level = float(np.median(image[~hole])) if not hole.all() else 0.0
    estimate = np.where(weight > 1e-3, mean / np.maximum(weight, 1e-3), level)
    return np.where(hole, estimate, image)


def _keep(metadata: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(metadata).items() if isinstance(v, str | int | float | bool)}
