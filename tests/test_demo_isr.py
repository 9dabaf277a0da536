"""Instrument signature removal: the electrons come back, and what is bad is masked."""

from __future__ import annotations

import astropy.io.fits
import astropy.units as u
import numpy as np
import pytest
from demo_support import Field, Observed, shared_field
from lsst.images import Image, MaskedImage

from ppd.demo.calibs import Calibs, camera_dict, measure_calibs, spoil
from ppd.demo.camera import CAMERA
from ppd.demo.drawing import Psf, draw_points
from ppd.demo.tasks.isr import IsrTask, fill_holes, find_cosmic_rays
from ppd.demo.tasks.masks import any_of


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=range(4))
def observed(request: pytest.FixtureRequest, field: Field) -> Observed:
    return field.observed[request.param]


@pytest.fixture(scope="module")
def image(field: Field, observed: Observed) -> MaskedImage:
    return field.get("post_isr_image", observed)


def _good(image: MaskedImage) -> np.ndarray:
    return ~any_of(image.mask, ("BAD", "SAT", "CR"))


def _run(observed: Observed, calibs: Calibs) -> tuple[MaskedImage, IsrTask]:
    with astropy.io.fits.open(observed.raw) as hdus:
        raw = Image(hdus[0].data.astype(np.float32), unit=u.adu, metadata={"FILTER": "demo-r"})
    task = IsrTask(config=IsrTask.ConfigClass())
    result = task.run(raw, camera_dict(), calibs.bias, calibs.flats["demo-r"], calibs.defects, calibs.gains)
    return result.post_isr_image, task


def test_electrons_of_sky_and_stars(image: MaskedImage, observed: Observed) -> None:
    good = _good(image)
    pixels, scene = image.image.array, observed.scene
    level = observed.conditions.sky_level()
    # The sky has a slope of a per cent and the overscan an offset of electrons.
    sky = good & (scene < 1.02 * level)
    assert np.median(pixels[sky]) == pytest.approx(np.median(scene[sky]), rel=0.02)
    for part in (slice(0, 256), slice(256, 512)):
        bright = good[:, part] & (scene[:, part] > 1.5 * level)
        assert bright.sum() > 50
        above = (pixels[:, part] - np.median(pixels[sky]))[bright]
        true = (scene[:, part] - np.median(scene[sky]))[bright]
        assert above.sum() / true.sum() == pytest.approx(1.0, abs=0.015)


def test_glow_of_the_bias_is_gone(image: MaskedImage, observed: Observed) -> None:
    """The readout's glow is 14 electrons in the first rows."""
    left = np.where(_good(image), image.image.array - observed.scene, np.nan)
    assert abs(np.nanmedian(left[:4]) - np.nanmedian(left[60:100])) < 5.0


def test_variance_is_that_of_the_noise(image: MaskedImage, observed: Observed) -> None:
    good = _good(image)
    left = (image.image.array - observed.scene) / np.sqrt(image.variance.array)
    # Differences of neighbours, so that the sky's slope is none.
    pairs = (left[:, 1:] - left[:, :-1])[good[:, 1:] & good[:, :-1]]
    assert 1.4826 * np.median(np.abs(pairs)) / np.sqrt(2) == pytest.approx(1.0, abs=0.02)


def test_bad_columns_are_masked(image: MaskedImage, observed: Observed) -> None:
    bad = image.mask.get("BAD")
    assert np.array_equal(np.flatnonzero(bad.all(axis=0)), CAMERA.bad_columns(observed.detector))
    assert bad.sum() == 3 * CAMERA.side
    # And filled with what is around them.
    level = observed.conditions.sky_level()
    assert np.median(image.image.array[bad]) == pytest.approx(level, rel=0.05)


def test_saturated_stars_are_masked(image: MaskedImage, observed: Observed) -> None:
    saturated = image.mask.get("SAT")
    over = observed.scene > 1.03 * CAMERA.full_well
    over[:, CAMERA.bad_columns(observed.detector)] = False
    assert saturated[over].all()
    assert saturated.sum() <= 200 + 80 * over.sum()


def test_cosmic_rays_are_masked(image: MaskedImage, observed: Observed) -> None:
    excess = (image.image.array - observed.scene) / np.sqrt(image.variance.array)
    good = _good(image)
    assert (excess[good] > 7.0).sum() <= 3
    assert 5 <= image.mask.get("CR").sum() < 1000


def test_units_and_header(image: MaskedImage, observed: Observed) -> None:
    assert image.unit == u.electron
    assert image.metadata["EXPID"] == observed.conditions.exposure


def test_overscan_level_is_noted(field: Field) -> None:
    first = field.observed[0]
    _, task = _run(first, measure_calibs(first.detector, 20))
    found = [task.metadata[f"overscan_{name}_adu"] for name in ("C0", "C1")]
    assert found == pytest.approx(CAMERA.bias_level(first.detector), abs=8.0)


def test_spoilt_calibs_do_not_do(field: Field) -> None:
    """Were the wrong validity range chosen, one would see it."""
    first = field.observed[0]
    image, _ = _run(first, spoil(measure_calibs(first.detector, 20)))
    off = image.image.array - observed_level(first)
    assert np.median(np.abs(off)) > 100.0
    assert image.mask.get("BAD").mean() > 0.4


def observed_level(observed: Observed) -> float:
    return float(np.median(observed.scene))


@pytest.mark.parametrize("fwhm", [2.6, 3.8])
def test_no_star_is_taken_for_a_cosmic_ray(fwhm: float) -> None:
    image = np.full((60, 60), 1000.0)
    draw_points(image, np.array([30.2]), np.array([29.6]), np.array([3e5]), Psf(fwhm), 1.0)
    nothing = np.zeros(image.shape, dtype=bool)
    assert not find_cosmic_rays(image, image + 40.0, nothing, 4.5, 2.6).any()
    image[30, 50] += 800.0
    found = find_cosmic_rays(image, image + 40.0, nothing, 4.5, 2.6)
    assert found[29:32, 49:52].all()
    assert found.sum() == 9


def test_holes_are_filled_with_what_is_around() -> None:
    y, x = np.mgrid[0:40, 0:40]
    image = 100.0 + 1.0 * x
    hole = (x == 20) | ((x > 30) & (y > 30))
    filled = fill_holes(np.where(hole, 1e6, image), hole)
    assert np.array_equal(filled[~hole], image[~hole])
    assert np.abs(filled - image)[x == 20].max() < 1.0
    assert filled.max() < 141.0
    assert fill_holes(image, np.zeros_like(hole)) is image
