"""Template warp, PSF matching and subtraction."""

from __future__ import annotations

__all__ = ["SubtractImagesConfig", "SubtractImagesConnections", "SubtractImagesTask", "fit_kernel"]

from collections.abc import Sequence
from typing import Any

import astropy.units as u
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
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
from .masks import DIFFERENCE_SCHEMA, any_of

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
    matched = cT.Output(
        doc="The matched template that was subtracted, nJy.",
        name="template_matched",
        storageClass="ImageV2",
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

    def run(self, visit_image: MaskedImage, stars: Table, templates: Sequence[MaskedImage]) -> Struct:
        """Subtract the template.

        Parameters
        ----------
        visit_image : `lsst.images.MaskedImage`
            Calibrated image.
        stars : `astropy.table.Table`
            Its stars: x, y, snr, matched.
        templates : sequence of `lsst.images.MaskedImage`
            Template patches.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``template``, ``matched``, ``difference``.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            Raised if the templates do not cover enough of the image.
        SubtractionError
            Raised if there are too few stars.
        """
        warped, warped_variance, covered, saturated = self._warp(visit_image, templates)
        cover = float(covered.mean())
        self.metadata["template_cover"] = cover
        if cover < self.config.minCover:
            raise NoWorkFound(f"templates cover {100 * cover:.0f} % of the image")
        science = visit_image.image.array.astype(np.float64)
        variance = visit_image.variance.array.astype(np.float64)
        bad = any_of(visit_image.mask, ("BAD", "SAT", "CR"))
        filled = fill_holes(warped, ~covered)
        kernel, offset, chi2, used = fit_kernel(
            science,
            variance,
            bad | saturated | ~covered,
            filled,
            stars,
            tuple(self.config.kernelSigmas),
            tuple(self.config.kernelDegrees),
            self.config.kernelHalf,
            self.config.maxStars,
        )
        if used < self.config.minStars:
            raise SubtractionError(used, self.config.minStars)
        self.metadata["kernel_sum"] = float(kernel.sum())
        self.metadata["kernel_chi2dof"] = float(chi2)
        self.metadata["kernel_stars"] = int(used)
        convolved = signal.fftconvolve(filled, kernel, mode="same") + offset
        # The template's noise goes through the square of the kernel.
        noise = signal.fftconvolve(fill_holes(warped_variance, ~covered), kernel**2, mode="same")
        difference = np.where(covered, science - convolved, 0.0)
        total = variance + np.clip(noise, 0.0, None)

        mask = Mask(schema=DIFFERENCE_SCHEMA, shape=science.shape)
        for plane in ("BAD", "SAT", "CR"):
            mask.set(plane, visit_image.mask.get(plane))
        mask.set("NO_DATA", ~covered)
        mask.set("SAT_TEMPLATE", ndimage.binary_dilation(saturated, iterations=2))
        projection = visit_image.sky_projection
        template_mask = Mask(schema=visit_image.mask.schema, shape=science.shape)
        template_mask.set("NO_DATA", ~covered)
        template_mask.set("SAT", saturated)
        template = MaskedImage(
            Image(warped.astype(np.float32), unit=u.nJy),
            mask=template_mask,
            variance=Image(warped_variance.astype(np.float32), unit=u.nJy**2),
            sky_projection=projection,
        )
        image = MaskedImage(
            Image(difference.astype(np.float32), unit=u.nJy),
            mask=mask,
            variance=Image(total.astype(np.float32), unit=u.nJy**2),
            sky_projection=projection,
            metadata=dict(visit_image.metadata),
        )
        matched = Image(convolved.astype(np.float32), unit=u.nJy)
        return Struct(template=template, difference=image, matched=matched)

    def _warp(
        self, visit_image: MaskedImage, templates: Sequence[MaskedImage]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Bring the patches onto the image's pixels."""
        shape = visit_image.image.array.shape
        wcs = visit_image.sky_projection.as_fits_wcs(visit_image.bbox)
        y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
        ra, dec = wcs.wcs_pix2world(x.ravel(), y.ravel(), 0)
        warped = np.zeros(shape)
        variance = np.ones(shape)
        covered = np.zeros(shape, dtype=bool)
        saturated = np.zeros(shape, dtype=bool)
        for patch in templates:
            patch_wcs = patch.sky_projection.as_fits_wcs(patch.bbox)
            px, py = patch_wcs.wcs_world2pix(ra, dec, 0)
            px, py = px.reshape(shape), py.reshape(shape)
            ny, nx = patch.image.array.shape
            # Patches overlap by more than the spline's edge effects reach.
            inside = (px > 4) & (px < nx - 5) & (py > 4) & (py < ny - 5) & ~covered
            if not inside.any():
                continue
            where = np.array([py[inside], px[inside]])
            warped[inside] = ndimage.map_coordinates(patch.image.array.astype(float), where, order=5)
            variance[inside] = ndimage.map_coordinates(patch.variance.array.astype(float), where, order=1)
            flags = patch.mask.get("SAT").astype(float)
            saturated[inside] = ndimage.map_coordinates(flags, where, order=1) > 0.01
            covered |= inside
        return warped, variance, covered, saturated


def fit_kernel(
    science: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    template: np.ndarray,
    stars: Table,
    sigmas: tuple[float, ...],
    degrees: tuple[int, ...],
    half: int,
    most: int,
) -> tuple[np.ndarray, float, float, int]:
    """Fit the kernel that takes the template's PSF to the image's.

    Parameters
    ----------
    science, variance : `numpy.ndarray`
        The image.
    bad : `numpy.ndarray`
        `bool`: pixels not to use.
    template : `numpy.ndarray`
        The template on the same pixels.
    stars : `astropy.table.Table`
        Columns x, y, snr and matched.
    sigmas, degrees : `tuple`
        Gaussians of the basis and the polynomials on them.
    half : `int`
        Half the kernel's side.
    most : `int`
        Stars to use at most.

    Returns
    -------
    kernel : `numpy.ndarray`
        Shape (2 half + 1, 2 half + 1).
    offset : `float`
        Constant background difference.
    chi2 : `float`
        Per degree of freedom, after clipping.
    used : `int`
        Stars that were used.
    """
    basis = _basis(sigmas, degrees, half)
    reach = 9
    outer = reach + half
    ny, nx = science.shape
    order = np.argsort(stars["snr"])[::-1]
    designs, data, weights = [], [], []
    for i in order:
        x, y = round(float(stars["x"][i])), round(float(stars["y"][i]))
        if not (outer <= x < nx - outer and outer <= y < ny - outer) or stars["snr"][i] < 15:
            continue
        box = slice(y - reach, y + reach + 1), slice(x - reach, x + reach + 1)
        if bad[box].mean() > 0.05 or bad[y - 2 : y + 3, x - 2 : x + 3].any():
            continue
        stamp = template[y - outer : y + outer + 1, x - outer : x + outer + 1]
        columns = [signal.fftconvolve(stamp, b, mode="valid").ravel() for b in basis]
        designs.append(np.column_stack([*columns, np.ones(columns[0].size)]))
        data.append(science[box].ravel())
        # A floor on the error of bright pixels: no kernel fits to a per mille.
        w = 1.0 / (variance[box].ravel() + (0.01 * science[box].ravel()) ** 2)
        weights.append(np.where(bad[box].ravel(), 0.0, w))
        if len(designs) >= most:
            break
    if len(designs) < 3:
        return basis[0], 0.0, float("nan"), len(designs)
    use = np.ones(len(designs), dtype=bool)
    normal = [d.T @ (w[:, None] * d) for d, w in zip(designs, weights, strict=True)]
    right = [d.T @ (w * s) for d, w, s in zip(designs, weights, data, strict=True)]
    chi2 = np.zeros(len(designs))
    for _ in range(4):
        matrix = sum(n for n, ok in zip(normal, use, strict=True) if ok)
        vector = sum(r for r, ok in zip(right, use, strict=True) if ok)
        ridge = 1e-9 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        solution = np.linalg.solve(matrix + ridge, vector)
        for k, (d, w, s) in enumerate(zip(designs, weights, data, strict=True)):
            chi2[k] = float((w * (s - d @ solution) ** 2).sum()) / max(int((w > 0).sum()), 1)
        # Variable stars and stars next to something new do not fit.
        limit = max(2.0 * float(np.median(chi2[use])), 1.5)
        new = chi2 < limit
        if new.sum() < 3 or (new == use).all():
            break
        use = new
    kernel = np.tensordot(solution[:-1], np.array(basis), axes=1)
    return kernel, float(solution[-1]), float(np.median(chi2[use])), int(use.sum())


def _basis(sigmas: tuple[float, ...], degrees: tuple[int, ...], half: int) -> list[np.ndarray]:
    v, h = np.mgrid[-half : half + 1, -half : half + 1] * 1.0
    basis = []
    for sigma, degree in zip(sigmas, degrees, strict=True):
        gauss = np.exp(-0.5 * (h**2 + v**2) / sigma**2)
        for i in range(degree + 1):
            for j in range(degree + 1 - i):
                term = gauss * (h / sigma) ** i * (v / sigma) ** j
                basis.append(term / (np.abs(term).sum()))
    return basis
