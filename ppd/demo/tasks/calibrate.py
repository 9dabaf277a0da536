"""Calibrating one image: background, PSF, astrometry, photometry."""

from __future__ import annotations

__all__ = ["CalibrateImageConfig", "CalibrateImageConnections", "CalibrateImageTask", "CalibrationError"]

from collections.abc import Sequence
from typing import Any

import astropy.units as u
import astropy.wcs
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import sep
from astropy.table import Table, vstack
from lsst.images import DetectorFrame, Image, Mask, MaskedImage, SkyProjection
from lsst.pex.config import Field
from lsst.pipe.base import (
    AlgorithmError,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
)
from scipy.spatial import cKDTree

from .astrometry import fit_wcs, header_wcs, match_offset
from .masks import any_of
from .photometry import NJY_ZERO_POINT, make_psf, psf_flux, psf_fwhm

_VISIT = ("instrument", "visit", "detector")


class CalibrationError(AlgorithmError):
    """Raised when an image has too few stars to be calibrated."""

    def __init__(self, what: str, found: int, needed: int):
        self.found, self.needed, self.what = found, needed, what
        super().__init__(f"{what}: {found} stars, {needed} are needed")

    @property
    def metadata(self) -> dict[str, Any]:
        return {"what": self.what, "found": self.found, "needed": self.needed}


class CalibrateImageConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `CalibrateImageTask`."""

    exposures = cT.Input(
        doc="Images without instrument signature, one per snap.",
        name="post_isr_image",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "exposure", "detector"),
        multiple=True,
    )
    camera = cT.PrerequisiteInput(
        doc="Camera geometry.",
        name="camera",
        storageClass="StructuredDataDict",
        dimensions=("instrument",),
        isCalibration=True,
    )
    refcat = cT.PrerequisiteInput(
        doc="Reference stars.",
        name="demo_stars_2026",
        storageClass="ArrowAstropy",
        dimensions=("htm7",),
        multiple=True,
    )
    visit_image = cT.Output(
        doc="Calibrated image, nJy, background subtracted.",
        name="preliminary_visit_image",
        storageClass="MaskedImageV2",
        dimensions=_VISIT,
    )
    psf = cT.Output(
        doc="PSF stamp, sum 1.", name="preliminary_visit_psf", storageClass="ImageV2", dimensions=_VISIT
    )
    stars = cT.Output(
        doc="Stars and what was measured of them.",
        name="single_visit_star",
        storageClass="ArrowAstropy",
        dimensions=_VISIT,
    )
    summary = cT.Output(
        doc="Seeing, zero point and the like.",
        name="preliminary_visit_summary",
        storageClass="StructuredDataDict",
        dimensions=_VISIT,
    )


class CalibrateImageConfig(PipelineTaskConfig, pipelineConnections=CalibrateImageConnections):
    """Config of `CalibrateImageTask`."""

    backgroundCell = Field[int](doc="Side of a background cell, pixels.", default=64)
    threshold = Field[float](doc="Detection threshold, sigma of a pixel.", default=4.0)
    maxPointing = Field[float](doc="Largest pointing error, arcsec.", default=8.0)
    matchRadius = Field[float](doc="Match radius after the shift, pixels.", default=1.5)
    minMatches = Field[int](doc="Fewest matched stars.", default=8)


class CalibrateImageTask(PipelineTask):
    """Calibrates an image against the reference catalog."""

    ConfigClass = CalibrateImageConfig
    _DefaultName = "calibrateImage"

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        inputs = butlerQC.get(inputRefs)
        data_id = butlerQC.quantum.dataId
        result = self.run(
            exposures=inputs["exposures"],
            camera=inputs["camera"],
            refcat=inputs["refcat"],
            detector=int(data_id["detector"]),
            visit=int(data_id["visit"]),
            instrument=str(data_id["instrument"]),
            band=str(data_id["band"]),
        )
        butlerQC.put(result, outputRefs)

    def run(
        self,
        exposures: Sequence[MaskedImage],
        camera: dict,
        refcat: Sequence[Table],
        detector: int,
        visit: int,
        instrument: str,
        band: str,
    ) -> Struct:
        """Calibrate an image.

        Parameters
        ----------
        exposures : sequence of `lsst.images.MaskedImage`
            Snaps, electrons.  The visit is one-to-one: there is just one.
        camera : `dict`
            Camera geometry.
        refcat : sequence of `astropy.table.Table`
            Shards of the reference catalog.
        detector, visit : `int`
            Where and when.
        instrument, band : `str`
            With what.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``visit_image``, ``psf``, ``stars``, ``summary``.

        Raises
        ------
        CalibrationError
            Raised if there are too few stars.
        """
        exposure = exposures[0]
        pixels = exposure.image.array.astype(np.float64)
        variance = exposure.variance.array.astype(np.float64)
        bad = any_of(exposure.mask, ("BAD", "SAT", "CR"))
        cell = self.config.backgroundCell
        background = sep.Background(pixels, mask=bad, bw=cell, bh=cell)
        level = background.back()
        pixels = pixels - level
        sources = sep.extract(
            pixels, self.config.threshold, err=float(background.globalrms), mask=bad, minarea=5
        )
        candidates = self._star_candidates(sources, pixels, bad)
        if len(candidates) < 5:
            raise CalibrationError("PSF", len(candidates), 5)
        x, y = _centroids(pixels, candidates)
        try:
            psf = make_psf(pixels, bad, x[:60], y[:60])
        except ValueError as e:
            raise CalibrationError(f"PSF ({e})", len(candidates), 3) from e
        fwhm = psf_fwhm(psf)

        wcs = header_wcs(exposure.metadata, camera, detector)
        catalog = _on_image(vstack(list(refcat)), wcs, pixels.shape)
        ref_x, ref_y = wcs.wcs_world2pix(catalog["ra"], catalog["dec"], 0)
        # As many of the brightest as the catalog has: fainter ones only confuse.
        reach = self.config.maxPointing / float(camera["pixel_scale_arcsec"])
        bright = slice(0, 80)
        order = np.argsort(catalog[f"{band}_mag"])[bright]
        dx, dy, votes = match_offset(x[bright], y[bright], ref_x[order], ref_y[order], reach)
        if votes < self.config.minMatches:
            raise CalibrationError("astrometric match", votes, self.config.minMatches)
        tree = cKDTree(np.column_stack([ref_x + dx, ref_y + dy]))
        distance, index = tree.query(np.column_stack([x, y]), distance_upper_bound=self.config.matchRadius)
        matched = np.isfinite(distance)
        if matched.sum() < self.config.minMatches:
            raise CalibrationError("astrometric match", int(matched.sum()), self.config.minMatches)
        index = index[matched]
        wcs, rms, used = fit_wcs(
            wcs, x[matched], y[matched], np.asarray(catalog["ra"])[index], np.asarray(catalog["dec"])[index]
        )
        fluxes = np.array([psf_flux(pixels, variance, bad, psf, px, py) for px, py in zip(x, y, strict=True)])
        with np.errstate(invalid="ignore", divide="ignore"):
            instrumental = -2.5 * np.log10(fluxes[:, 0])
        good = used & np.isfinite(instrumental[matched]) & (fluxes[matched, 0] / fluxes[matched, 1] > 20)
        offsets = np.asarray(catalog[f"{band}_mag"])[index] - instrumental[matched]
        zero_point, scatter, n_phot = _clipped(offsets[good])
        if n_phot < 5:
            raise CalibrationError("photometric calibration", n_phot, 5)
        scale = 10 ** (0.4 * (NJY_ZERO_POINT - zero_point))

        sky = wcs.wcs_pix2world(x, y, 0)
        stars = Table(
            {
                "x": x,
                "y": y,
                "ra": sky[0] % 360.0,
                "dec": sky[1],
                "psfFlux": fluxes[:, 0] * scale,
                "psfFluxErr": fluxes[:, 1] * scale,
                "snr": fluxes[:, 0] / fluxes[:, 1],
                "chi2dof": fluxes[:, 2] / np.maximum(fluxes[:, 3], 1.0),
                "matched": matched,
            }
        )
        summary = {
            "psf_fwhm_pixel": float(fwhm),
            "zero_point": float(zero_point),
            "zero_point_scatter": float(scatter),
            "astrometric_rms_arcsec": float(rms),
            "pointing_offset_pixel": [float(dx), float(dy)],
            "sky_level_electron": float(background.globalback),
            "sky_noise_electron": float(background.globalrms),
            "n_stars": len(x),
            "n_astrometry": int(used.sum()),
            "n_photometry": int(n_phot),
            "begin_tai": str(exposure.metadata["DATE-BEG"]),
            "sky_tai": str(exposure.metadata["DATE-SKY"]),
            "exposure_time": float(exposure.metadata["EXPTIME"]),
        }
        for name in ("psf_fwhm_pixel", "zero_point", "astrometric_rms_arcsec", "n_stars", "n_photometry"):
            self.metadata[name] = summary[name]
        bbox = exposure.image.bbox
        projection = SkyProjection.from_fits_wcs(
            wcs, DetectorFrame(instrument=instrument, visit=visit, detector=detector, bbox=bbox)
        )
        image = MaskedImage(
            Image((pixels * scale).astype(np.float32), unit=u.nJy),
            mask=Mask(exposure.mask.array, schema=exposure.mask.schema),
            variance=Image((variance * scale**2).astype(np.float32), unit=u.nJy**2),
            sky_projection=projection,
            metadata={**exposure.metadata, "PSF_FWHM": float(fwhm), "PHOT_ZP": NJY_ZERO_POINT},
        )
        return Struct(visit_image=image, psf=Image(psf.astype(np.float32)), stars=stars, summary=summary)

    def _star_candidates(self, sources: np.ndarray, pixels: np.ndarray, bad: np.ndarray) -> np.ndarray:
        """Choose the sources that look like stars, brightest first."""
        ny, nx = pixels.shape
        edge = 12
        keep = (
            (sources["x"] > edge)
            & (sources["x"] < nx - edge)
            & (sources["y"] > edge)
            & (sources["y"] < ny - edge)
            & (sources["flag"] < 4)
            & (sources["flux"] > 0)
        )
        sources = sources[keep]
        near = np.array(
            [
                bad[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].any()
                for x, y in zip(sources["x"], sources["y"], strict=True)
            ],
            dtype=bool,
        )
        sources = sources[~near]
        sources = sources[np.argsort(sources["flux"])[::-1]]
        if len(sources) < 5:
            return sources
        radius, flag = sep.flux_radius(
            pixels, sources["x"], sources["y"], np.full(len(sources), 15.0), 0.5, normflux=None, subpix=5
        )
        bright = radius[: max(10, len(sources) // 3)]
        # Stars all have the same size and nothing is smaller.
        locus = np.median(np.sort(bright)[: max(5, len(bright) * 2 // 3)])
        round_enough = sources["b"] / np.maximum(sources["a"], 1e-6) > 0.7
        return sources[(np.abs(radius / locus - 1.0) < 0.2) & round_enough & (flag == 0)]


def _centroids(pixels: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Windowed centroids: as good as PSF fitting for isolated stars (SExtractor manual).
    x, y, flag = sep.winpos(pixels, sources["x"], sources["y"], np.full(len(sources), 1.5))
    ok = flag == 0
    return np.where(ok, x, sources["x"]), np.where(ok, y, sources["y"])


def _on_image(catalog: Table, wcs: astropy.wcs.WCS, shape: tuple[int, int]) -> Table:
    x, y = wcs.wcs_world2pix(catalog["ra"], catalog["dec"], 0)
    margin = 30
    inside = (x > -margin) & (x < shape[1] + margin) & (y > -margin) & (y < shape[0] + margin)
    return catalog[inside]


def _clipped(values: np.ndarray) -> tuple[float, float, int]:
    values = values[np.isfinite(values)]
    for _ in range(4):
        if len(values) < 3:
            break
        middle = np.median(values)
        sigma = max(1.48 * float(np.median(np.abs(values - middle))), 0.003)
        values = values[np.abs(values - middle) < 3.0 * sigma]
    if not len(values):
        return float("nan"), float("nan"), 0
    return float(np.mean(values)), float(np.std(values)), len(values)
