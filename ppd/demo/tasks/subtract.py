"""Template warp, PSF matching and subtraction."""

from __future__ import annotations

__all__ = ["SubtractImagesConfig", "SubtractImagesConnections", "SubtractImagesTask", "SubtractionError"]

from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
from lsst.daf.butler import DeferredDatasetHandle
from lsst.images import Image, Mask, MaskedImage
from lsst.pex.config import Field, ListField
from lsst.pipe.base import (
    AlgorithmError,
    NoWorkFound,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
)
from scipy import ndimage, signal

from .isr import fill_holes
from .kernel import fit_kernel
from .masks import DIFFERENCE_SCHEMA, any_of
from .warp import WarpedTemplate, warp_patches

_VISIT = ("instrument", "visit", "detector")


class SubtractionError(AlgorithmError):
    """Raised when no matching kernel can be fitted."""

    def __init__(self, found: int, needed: int):
        self.found, self.needed = found, needed
        super().__init__(f"only {found} stars are fit for PSF matching, {needed} are needed")

    @property
    def metadata(self) -> dict[str, Any]:
        return {"found": self.found, "needed": self.needed}


class SubtractImagesConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `SubtractImagesTask`."""

    visit_image = cT.Input(
        doc="Calibrated image, nJy.",
        name="preliminary_visit_image",
        storageClass="MaskedImageV2",
        dimensions=_VISIT,
    )
    stars = cT.Input(
        doc="Stars of the image.", name="single_visit_star", storageClass="ArrowAstropy", dimensions=_VISIT
    )
    templates = cT.Input(
        doc="Templates that overlap the image, nJy.",
        name="template_coadd",
        storageClass="MaskedImageV2",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    sky_map = cT.Input(
        doc="Where the templates' patches are.",
        name="skyMap",
        storageClass="StructuredDataDict",
        dimensions=("skymap",),
    )
    template = cT.Output(
        doc="Template on the image's pixels, nJy; not matched.",
        name="template_detector",
        storageClass="MaskedImageV2",
        dimensions=_VISIT,
    )
    difference = cT.Output(
        doc="Image minus matched template, nJy.",
        name="difference_image",
        storageClass="MaskedImageV2",
        dimensions=_VISIT,
    )


class SubtractImagesConfig(PipelineTaskConfig, pipelineConnections=SubtractImagesConnections):
    """Config of `SubtractImagesTask`."""

    kernelSigmas = ListField[float](doc="Sigmas of the kernel's Gaussians, pixels.", default=[0.7, 1.4, 2.6])
    kernelDegrees = ListField[int](doc="Degree of the polynomial on each Gaussian.", default=[2, 2, 1])
    kernelHalf = Field[int](doc="Half the kernel's side, pixels.", default=9)
    minStars = Field[int](doc="Fewest stars to fit the kernel with.", default=5)
    maxStars = Field[int](doc="Most stars to fit the kernel with.", default=50)
    minCover = Field[float](doc="Smallest part of the image that templates must cover.", default=0.2)


class SubtractImagesTask(PipelineTask):
    """Subtracts the template, convolved to the image's PSF.

    The method is that of Alard & Lupton 1998, ApJ 503, 325, with a kernel
    that is the same all over the detector.
    """

    ConfigClass = SubtractImagesConfig
    _DefaultName = "subtractImages"

    def run(
        self,
        visit_image: MaskedImage,
        stars: Table,
        templates: Sequence[DeferredDatasetHandle],
        sky_map: Mapping[str, Any],
    ) -> Struct:
        """Subtract the template.

        Parameters
        ----------
        visit_image : `lsst.images.MaskedImage`
            Calibrated image.
        stars : `astropy.table.Table`
            Its stars: x, y, snr.
        templates : sequence of `lsst.daf.butler.DeferredDatasetHandle`
            Template patches; only what is needed of them is read.
        sky_map : `~collections.abc.Mapping`
            Geometry of the patches.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``template`` and ``difference``.  Where there is a template, their
            like on the image's pixels, matched, is image minus difference.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            Raised if the templates do not cover enough of the image.
        SubtractionError
            Raised if there are too few stars.
        """
        shape = visit_image.image.array.shape
        wcs = visit_image.sky_projection.as_fits_wcs(visit_image.bbox)
        template = warp_patches(wcs, shape, templates, sky_map)
        cover = float(template.covered.mean())
        self.metadata["template_cover"] = cover
        if cover < self.config.minCover:
            raise NoWorkFound(f"templates cover {100 * cover:.0f} % of the image")
        science = visit_image.image.array.astype(np.float64)
        variance = visit_image.variance.array.astype(np.float64)
        missing = ~template.covered
        filled = fill_holes(template.flux, missing)
        fit = fit_kernel(
            science,
            variance,
            any_of(visit_image.mask, ("BAD", "SAT", "CR")) | template.saturated | missing,
            filled,
            stars,
            tuple(self.config.kernelSigmas),
            tuple(self.config.kernelDegrees),
            self.config.kernelHalf,
            self.config.maxStars,
        )
        if fit.used < self.config.minStars:
            raise SubtractionError(fit.used, self.config.minStars)
        self.metadata["kernel_sum"] = float(fit.kernel.sum())
        self.metadata["kernel_chi2dof"] = fit.chi2
        self.metadata["kernel_stars"] = fit.used
        convolved = signal.fftconvolve(filled, fit.kernel, mode="same") + fit.offset
        # The template's noise goes through the square of the kernel.
        noise = signal.fftconvolve(fill_holes(template.variance, missing), fit.kernel**2, mode="same")
        difference = MaskedImage(
            Image(np.where(missing, 0.0, science - convolved).astype(np.float32), unit=u.nJy),
            mask=_difference_mask(visit_image.mask, template),
            variance=Image((variance + np.clip(noise, 0.0, None)).astype(np.float32), unit=u.nJy**2),
            sky_projection=visit_image.sky_projection,
            metadata=dict(visit_image.metadata),
        )
        return Struct(template=_as_image(template, visit_image), difference=difference)


def _difference_mask(science: Mask, template: WarpedTemplate) -> Mask:
    mask = Mask(schema=DIFFERENCE_SCHEMA, shape=template.covered.shape)
    for plane in ("BAD", "SAT", "CR"):
        mask.set(plane, science.get(plane))
    mask.set("NO_DATA", ~template.covered)
    mask.set("SAT_TEMPLATE", ndimage.binary_dilation(template.saturated, iterations=2))
    return mask


def _as_image(template: WarpedTemplate, visit_image: MaskedImage) -> MaskedImage:
    mask = Mask(schema=visit_image.mask.schema, shape=template.covered.shape)
    mask.set("NO_DATA", ~template.covered)
    mask.set("SAT", template.saturated)
    return MaskedImage(
        Image(template.flux.astype(np.float32), unit=u.nJy),
        mask=mask,
        variance=Image(template.variance.astype(np.float32), unit=u.nJy**2),
        sky_projection=visit_image.sky_projection,
    )
