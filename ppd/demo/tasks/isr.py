"""Instrument signature removal: from a raw to electrons."""

from __future__ import annotations

__all__ = ["IsrConfig", "IsrConnections", "IsrTask"]

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
    cosmicRaySigma = Field[float](doc="Significance of a cosmic ray in the Laplacian.", default=5.0)
    cosmicRayContrast = Field[float](
        doc="A cosmic ray is sharper than fine structure by this factor.", default=2.2
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
        filled = ndimage.median_filter(np.where(hole, np.nan_to_num(np.median(electrons)), electrons), (1, 7))
        electrons = np.where(hole, filled, electrons)
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
        Significance that the Laplacian must have.
    contrast : `float`
        By which factor it must be above the fine structure that stars have.

    Returns
    -------
    found : `numpy.ndarray`
        `bool`; grown by one pixel.

    Notes
    -----
    After van Dokkum 2001, PASP 113, 1420: the Laplacian of the image sampled
    twice as fine, compared with the noise and with the fine structure image.
    """
    doubled = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    kernel = np.array([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]) / 4.0
    laplacian = np.clip(ndimage.convolve(doubled, kernel, mode="nearest"), 0.0, None)
    ny, nx = image.shape
    laplacian = laplacian.reshape(ny, 2, nx, 2).mean(axis=(1, 3)) * 2.0
    noise = np.sqrt(np.clip(ndimage.median_filter(variance, 5), 1.0, None))
    significance = laplacian / (2.0 * noise)
    significance -= ndimage.median_filter(significance, 5)
    smooth = ndimage.median_filter(image, 3)
    fine = np.clip(smooth - ndimage.median_filter(smooth, 7), noise, None)
    seeds = (significance > sigma) & (laplacian / fine > contrast) & ~ignore
    # Neighbours need less: the tails of a track.
    near = ndimage.binary_dilation(seeds, np.ones((3, 3)))
    found = near & (significance > 0.5 * sigma) & (laplacian / fine > 0.5 * contrast) & ~ignore
    return ndimage.binary_dilation(found | seeds, np.ones((3, 3))) & ~ignore


def _keep(metadata: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(metadata).items() if isinstance(v, str | int | float | bool)}
