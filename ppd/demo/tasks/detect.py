"""Detecting and measuring on the difference image."""

from __future__ import annotations

__all__ = ["DetectAndMeasureConfig", "DetectAndMeasureConnections", "DetectAndMeasureTask", "reliability"]

import math
from typing import Any

import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
from lsst.images import Image, MaskedImage
from lsst.pex.config import Field
from lsst.pipe.base import (
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
)
from scipy import ndimage, signal

from .masks import any_of
from .photometry import psf_flux

_VISIT = ("instrument", "visit", "detector")

_COLUMNS: dict[str, Any] = {
    "diaSourceId": np.int64,
    "x": float,
    "y": float,
    "ra": float,
    "dec": float,
    "psfFlux": float,
    "psfFluxErr": float,
    "psfChi2": float,
    "psfNdata": np.int32,
    "snr": float,
    "isNegative": bool,
    "templateFlux": float,
    "scienceFlux": float,
    "isDipole": bool,
    "nearMasked": bool,
    "reliability": float,
}


class DetectAndMeasureConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `DetectAndMeasureTask`."""

    difference = cT.Input(
        doc="Difference image, nJy.",
        name="difference_image",
        storageClass="MaskedImageV2",
        dimensions=_VISIT,
    )
    # Image minus difference is the matched template: it need not be stored.
    science = cT.Input(
        doc="Pixels of the calibrated image, nJy.",
        name="preliminary_visit_image.image",
        storageClass="ImageV2",
        dimensions=_VISIT,
    )
    psf = cT.Input(doc="PSF stamp.", name="preliminary_visit_psf", storageClass="ImageV2", dimensions=_VISIT)
    sources = cT.Output(
        doc="All candidates, before the cut on reliability.",
        name="dia_source_unfiltered",
        storageClass="ArrowAstropy",
        dimensions=_VISIT,
    )


class DetectAndMeasureConfig(PipelineTaskConfig, pipelineConnections=DetectAndMeasureConnections):
    """Config of `DetectAndMeasureTask`."""

    threshold = Field[float](doc="Detection threshold, sigma.", default=5.0)
    templateError = Field[float](
        doc="Part of the template's PSF flux at a place that PSF matching may leave there.", default=0.015
    )
    edge = Field[int](doc="Pixels at the edge that are not searched.", default=10)


class DetectAndMeasureTask(PipelineTask):
    """Finds peaks of either sign by a matched filter and measures them."""

    ConfigClass = DetectAndMeasureConfig
    _DefaultName = "detectAndMeasure"

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        inputs = butlerQC.get(inputRefs)
        data_id = butlerQC.quantum.dataId
        visit, detector = int(data_id["visit"]), int(data_id["detector"])
        # Up to 4096 sources of 16 detectors: IDs fit into 63 bits with ease.
        butlerQC.put(self.run(**inputs, first_id=(visit * 16 + detector) * 4096), outputRefs)

    def run(self, difference: MaskedImage, science: Image, psf: Image, first_id: int) -> Struct:
        """Detect and measure.

        Parameters
        ----------
        difference : `lsst.images.MaskedImage`
            Difference image, nJy.
        science : `lsst.images.Image`
            The image that the template was subtracted from, nJy.
        psf : `lsst.images.Image`
            PSF stamp of the image.
        first_id : `int`
            ID of the first source.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``sources``: `astropy.table.Table` of candidates.

        Notes
        -----
        The significance map is that of the matched filter
        F = sum(p d / v) / sum(p² / v), sigma² = 1 / sum(p² / v), and sigma is
        scaled by the map's own robust width, since warped templates have
        correlated noise.  A part of the template's flux is added to sigma in
        quadrature: where a bright star was subtracted, more is left than noise.
        """
        image = difference.image.array.astype(np.float64)
        variance = difference.variance.array.astype(np.float64)
        bad = any_of(difference.mask, ("BAD", "SAT", "CR", "NO_DATA", "SAT_TEMPLATE"))
        stamp = psf.array.astype(np.float64)
        weight = np.where(bad, 0.0, 1.0 / np.maximum(variance, 1e-6))
        flipped = stamp[::-1, ::-1]
        norm = np.clip(signal.fftconvolve(weight, flipped**2, mode="same"), 1e-30, None)
        flux = signal.fftconvolve(weight * image, flipped, mode="same") / norm
        matched = np.where(difference.mask.get("NO_DATA"), 0.0, science.array - image)
        template_flux = signal.fftconvolve(matched, flipped, mode="same") / float((stamp**2).sum())
        sigma = 1.0 / np.sqrt(norm)
        quiet = ~bad
        scale = 1.48 * float(np.median(np.abs(flux[quiet] / sigma[quiet])))
        self.metadata["noise_scale"] = scale
        sigma = sigma * max(scale, 1.0)
        total = np.hypot(sigma, self.config.templateError * np.clip(template_flux, 0.0, None))
        snr = flux / total
        peaks = self._peaks(snr)
        rows = []
        for number, (y, x) in enumerate(peaks[:4096]):
            rows.append(
                self._measure(
                    number + first_id, x, y, image, variance, bad, stamp, flux, snr, total, template_flux
                )
            )
        table = _as_table(rows)
        if len(table):
            wcs = difference.sky_projection.as_fits_wcs(difference.bbox)
            ra, dec = wcs.wcs_pix2world(table["x"], table["y"], 0)
            table["ra"], table["dec"] = ra % 360.0, dec
        self.metadata["candidates"] = len(table)
        return Struct(sources=table)

    def _peaks(self, snr: np.ndarray) -> np.ndarray:
        size = np.abs(snr)
        top = ndimage.maximum_filter(size, 7)
        found = (size == top) & (size > self.config.threshold)
        edge = self.config.edge
        inner = np.zeros(snr.shape, dtype=bool)
        inner[edge:-edge, edge:-edge] = True
        places = np.argwhere(found & inner)
        return places[np.argsort(-size[tuple(places.T)])]

    def _measure(
        self,
        identity: int,
        x: int,
        y: int,
        image: np.ndarray,
        variance: np.ndarray,
        bad: np.ndarray,
        stamp: np.ndarray,
        flux: np.ndarray,
        snr: np.ndarray,
        total: np.ndarray,
        template_flux: np.ndarray,
    ) -> dict[str, Any]:
        sign = 1.0 if snr[y, x] > 0 else -1.0
        dx, dy = _vertex(sign * flux[y - 1 : y + 2, x - 1 : x + 2])
        px, py = x + dx, y + dy
        f, error, chi2, n = psf_flux(image, variance, bad, stamp, px, py)
        if not math.isfinite(f) or f * sign <= 0:
            f, error, chi2, n = float(flux[y, x]), float(total[y, x]), float("nan"), 0
        # The systematic part of the error, as in the significance.
        error = math.hypot(error, self.config.templateError * max(float(template_flux[y, x]), 0.0))
        near = snr[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7]
        opposite = float((-sign * near).max())
        masked = bool(bad[y - 2 : y + 3, x - 2 : x + 3].any())
        features = {
            "chi2dof": chi2 / n if n else 9.0,
            "dipole_ratio": max(opposite, 0.0) / abs(float(snr[y, x])),
            "masked_fraction": float(bad[y - 3 : y + 4, x - 3 : x + 4].mean()),
            "snr": abs(f) / error,
        }
        return {
            "diaSourceId": identity,
            "x": px,
            "y": py,
            "ra": 0.0,
            "dec": 0.0,
            "psfFlux": f,
            "psfFluxErr": error,
            "psfChi2": chi2,
            "psfNdata": n,
            "snr": abs(f) / error,
            "isNegative": sign < 0,
            "templateFlux": float(template_flux[y, x]),
            "scienceFlux": float(template_flux[y, x]) + f,
            "isDipole": features["dipole_ratio"] > 0.6,
            "nearMasked": masked,
            "reliability": reliability(**features),
        }


def reliability(chi2dof: float, dipole_ratio: float, masked_fraction: float, snr: float) -> float:
    """Score how much a candidate looks like a point source that changed.

    Parameters
    ----------
    chi2dof : `float`
        Of the PSF fit, per pixel.
    dipole_ratio : `float`
        Significance of the strongest opposite peak next to it, relative to
        its own.
    masked_fraction : `float`
        Part of the 7×7 pixels around it that is masked.
    snr : `float`
        Signal to noise.

    Returns
    -------
    score : `float`
        Between 0 (artifact) and 1.

    Notes
    -----
    A product of logistic functions, one per feature.  A good fit of a bright
    source may have a larger chi-square: the PSF is known to a few per cent.
    """
    allowed = 2.0 + (0.06 * snr) ** 2
    parts = (
        (allowed - chi2dof) / (0.25 * allowed),
        (0.55 - dipole_ratio) / 0.10,
        (0.30 - masked_fraction) / 0.06,
    )
    score = 1.0
    for value in parts:
        score /= 1.0 + math.exp(-min(max(value, -50.0), 50.0))
    return score


def _vertex(patch: np.ndarray) -> tuple[float, float]:
    """Vertex of the parabolas through a peak and its neighbours, within half a pixel."""
    shifts = []
    for low, middle, high in (
        (patch[1, 0], patch[1, 1], patch[1, 2]),
        (patch[0, 1], patch[1, 1], patch[2, 1]),
    ):
        curvature = low - 2.0 * middle + high
        shift = 0.5 * (low - high) / curvature if curvature < 0 else 0.0
        shifts.append(float(min(max(shift, -0.5), 0.5)))
    return shifts[0], shifts[1]


def _as_table(rows: list[dict[str, Any]]) -> Table:
    return Table({name: np.array([r[name] for r in rows], dtype=kind) for name, kind in _COLUMNS.items()})
