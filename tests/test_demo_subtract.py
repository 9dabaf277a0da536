"""Template warp, PSF matching and subtraction: what is left is noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from demo_support import Field, Observed, shared_field
from lsst.daf.butler import Butler, DeferredDatasetHandle
from lsst.pipe.base import NoWorkFound
from scipy import ndimage

from ppd.demo.camera import INSTRUMENT
from ppd.demo.drawing import Psf, draw_points
from ppd.demo.skymap import SKYMAP, make_patches
from ppd.demo.tasks.kernel import fit_kernel
from ppd.demo.tasks.masks import any_of
from ppd.demo.tasks.subtract import SubtractImagesTask, SubtractionError
from ppd.demo.tasks.warp import pixel_map, warp_patches

BASIS = ((0.7, 1.4, 2.6), (2, 2, 1), 9)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=range(4))
def observed(request: pytest.FixtureRequest, field: Field) -> Observed:
    return field.observed[request.param]


class _Handles:
    """Handles of all patches, that note what is read."""

    def __init__(self, butler: Butler):
        self.read: dict[int, Any] = {}
        refs = butler.query_datasets("template_coadd", collections=f"{INSTRUMENT}/defaults")
        self.all = [_Handle(butler.getDeferred(ref), self.read) for ref in refs]


class _Handle:
    def __init__(self, handle: DeferredDatasetHandle, read: dict[int, Any]):
        self.dataId = handle.dataId
        self._handle, self._read = handle, read

    def get(self, **kwargs: Any) -> Any:
        image = self._handle.get(**kwargs)
        self._read[int(self.dataId["patch"])] = image.bbox
        return image


@pytest.fixture
def handles(field: Field) -> _Handles:
    return _Handles(field.butler)


def _sky_map(field: Field) -> dict:
    return field.butler.get("skyMap", skymap=SKYMAP, collections="skymaps")


def test_noise_is_that_of_the_variance(field: Field, observed: Observed) -> None:
    image = field.get("difference_image", observed)
    good = ~any_of(image.mask, ("BAD", "SAT", "CR", "NO_DATA", "SAT_TEMPLATE"))
    assert good.mean() > 0.9
    pulls = image.image.array[good] / np.sqrt(image.variance.array[good])
    assert 1.4826 * np.median(np.abs(pulls)) == pytest.approx(1.0, abs=0.06)
    assert abs(np.median(pulls)) < 0.05
    # Stars are gone: hardly a pixel is left that is not noise or a change.
    assert (np.abs(pulls) > 5).mean() < 2e-3


def test_variance_has_the_templates_too(field: Field, observed: Observed) -> None:
    names = ("preliminary_visit_image", "template_detector", "difference_image")
    science, template, difference = (float(np.median(field.get(n, observed).variance.array)) for n in names)
    # The kernel is a mean over pixels: less noise comes through it than goes in.
    assert science + 0.05 * template < difference < science + template


def test_kernel(field: Field, observed: Observed) -> None:
    metadata = field.get("subtractImages_metadata", observed)["subtractImages"]
    assert metadata["template_cover"] == 1.0
    # Both are in nJy, so that the kernel keeps fluxes.
    assert metadata["kernel_sum"] == pytest.approx(1.0, abs=0.03)
    assert metadata["kernel_chi2dof"] == pytest.approx(1.0, abs=0.1)
    assert metadata["kernel_stars"] >= 8


def test_template_on_the_detectors_pixels(field: Field, observed: Observed) -> None:
    template, image = (field.get(n, observed) for n in ("template_detector", "preliminary_visit_image"))
    good = ~any_of(image.mask, ("BAD", "SAT", "CR"))
    blurred = [ndimage.gaussian_filter(i.image.array.astype(float), 2.0) for i in (template, image)]
    bright = good & (blurred[0] > 20 * np.sqrt(np.median(image.variance.array)))
    assert bright.sum() > 100
    assert np.corrcoef(blurred[0][bright], blurred[1][bright])[0, 1] > 0.98


def test_map_between_pixels(field: Field) -> None:
    image = field.get("preliminary_visit_image", field.observed[0])
    wcs = image.sky_projection.as_fits_wcs(image.bbox)
    target = make_patches(field.sky.field)[4].wcs()
    x, y = pixel_map(wcs, target, (512, 500))
    assert x.shape == (512, 500)
    rng = np.random.default_rng(1)
    columns, rows = rng.integers(0, 500, 50), rng.integers(0, 512, 50)
    exact = target.wcs_world2pix(*wcs.wcs_pix2world(columns, rows, 0), 0)
    assert np.abs(np.array([x[rows, columns], y[rows, columns]]) - exact).max() < 1e-4


def test_only_what_is_needed_is_read(field: Field, handles: _Handles) -> None:
    image = field.get("preliminary_visit_image", field.observed[0])
    wcs = image.sky_projection.as_fits_wcs(image.bbox)
    warped = warp_patches(wcs, (512, 512), handles.all, _sky_map(field))
    assert warped.covered.all()
    assert 1 <= len(handles.read) <= 4 < len(handles.all)
    # The middle detector looks at the middle of the tract.
    assert 4 in handles.read
    pixels = sum(box.shape[0] * box.shape[1] for box in handles.read.values())
    assert pixels < 2.0 * 512 * 512


def test_patches_join_without_a_seam(field: Field, handles: _Handles) -> None:
    """The same from other patches, where two overlap."""
    corner = field.observed[1]
    image = field.get("preliminary_visit_image", corner)
    wcs = image.sky_projection.as_fits_wcs(image.bbox)
    sky_map = _sky_map(field)
    whole = warp_patches(wcs, (512, 512), handles.all, sky_map)
    compared = 0
    for handle in handles.all:
        one = warp_patches(wcs, (512, 512), [handle], sky_map)
        both = one.covered & whole.covered
        if both.any() and not both.all():
            compared += 1
            # Patches have noise of their own: they agree on stars.
            star = both & (whole.flux > 60 * np.sqrt(whole.variance))
            if star.sum() > 20:
                ratio = one.flux[star] / whole.flux[star]
                assert np.median(ratio) == pytest.approx(1.0, abs=0.03)
    assert compared >= 2


def test_no_template_no_work(field: Field, handles: _Handles) -> None:
    first = field.observed[0]
    task = SubtractImagesTask(config=SubtractImagesTask.ConfigClass())
    image, stars = (field.get(n, first) for n in ("preliminary_visit_image", "single_visit_star"))
    far = [h for h in handles.all if h.dataId["patch"] == 0]
    with pytest.raises(NoWorkFound, match="cover"):
        task.run(image, stars, far, _sky_map(field))


def test_half_a_template(field: Field, handles: _Handles) -> None:
    """Where there is no template there is no difference, and the mask says so."""
    corner = field.observed[1]
    task = SubtractImagesTask(config=SubtractImagesTask.ConfigClass())
    image, stars = (field.get(n, corner) for n in ("preliminary_visit_image", "single_visit_star"))
    for handle in handles.all:
        try:
            result = task.run(image, stars, [handle], _sky_map(field))
        except (NoWorkFound, SubtractionError):
            continue
        missing = result.difference.mask.get("NO_DATA")
        if missing.any():
            break
    assert 0.0 < missing.mean() < 0.8
    assert (result.difference.image.array[missing] == 0).all()
    assert result.template.mask.get("NO_DATA")[missing].all()
    pulls = (result.difference.image.array / np.sqrt(result.difference.variance.array))[~missing]
    assert 1.4826 * np.median(np.abs(pulls)) == pytest.approx(1.0, abs=0.08)


def test_too_few_stars(field: Field, handles: _Handles) -> None:
    first = field.observed[0]
    task = SubtractImagesTask(config=SubtractImagesTask.ConfigClass())
    image, stars = (field.get(n, first) for n in ("preliminary_visit_image", "single_visit_star"))
    with pytest.raises(SubtractionError) as caught:
        task.run(image, stars[:4], handles.all, _sky_map(field))
    assert caught.value.metadata["needed"] == 5


def _scene(fwhm: float, seed: int = 7) -> tuple[np.ndarray, Table]:
    rng = np.random.default_rng(seed)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(40.0, 300, 50), np.arange(40.0, 300, 50)))
    x, y = x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, x.size)
    image = np.zeros((340, 340))
    draw_points(image, x, y, np.linspace(2e4, 1e5, x.size), Psf(fwhm), 0.01)
    return image, Table({"x": x, "y": y, "snr": np.linspace(100.0, 500.0, x.size)})


@pytest.mark.parametrize("fwhm", [2.6, 3.6])
def test_kernel_that_is_known(fwhm: float) -> None:
    template, stars = _scene(2.2)
    science, _ = _scene(fwhm)
    rng = np.random.default_rng(8)
    science = 1.1 * science + 12.0 + rng.normal(0.0, 5.0, science.shape)
    bad = np.zeros(science.shape, dtype=bool)
    fit = fit_kernel(science, np.full(science.shape, 25.0), bad, template, stars, *BASIS, most=50)
    assert fit.kernel.shape == (19, 19)
    assert fit.kernel.sum() == pytest.approx(1.1, abs=0.005)
    assert fit.offset == pytest.approx(12.0, abs=0.3)
    assert fit.used == len(stars)
    assert fit.chi2 < 1.3


def test_a_variable_star_does_not_spoil_the_kernel() -> None:
    template, stars = _scene(2.2)
    science, _ = _scene(3.2)
    draw_points(science, stars["x"][-1:], stars["y"][-1:], np.array([8e4]), Psf(3.2), 0.01)
    science += np.random.default_rng(8).normal(0.0, 5.0, science.shape)
    bad = np.zeros(science.shape, dtype=bool)
    fit = fit_kernel(science, np.full(science.shape, 25.0), bad, template, stars, *BASIS, most=50)
    assert fit.used == len(stars) - 1
    assert fit.kernel.sum() == pytest.approx(1.0, abs=0.005)


def test_stars_at_bad_pixels_are_not_used() -> None:
    template, stars = _scene(2.2)
    science, _ = _scene(3.2)
    bad = np.zeros(science.shape, dtype=bool)
    bad[:, round(float(stars["x"][3]))] = True
    variance = np.full(science.shape, 25.0)
    few = fit_kernel(science, variance, bad, template, stars, *BASIS, most=50)
    assert few.used <= len(stars) - 6
    stars["snr"][:] = np.nan
    none = fit_kernel(science, variance, bad, template, stars, *BASIS, most=50)
    assert none.used == 0
