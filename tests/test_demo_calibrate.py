"""Calibration of an image: astrometry, zero point and PSF against the truth."""

from __future__ import annotations

import dataclasses

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from demo_support import Field, Observed, shared_field
from lsst.images import Image, MaskedImage
from lsst.pipe.base import AlgorithmError
from scipy.spatial import cKDTree

from ppd.demo.calibs import camera_dict
from ppd.demo.camera import INSTRUMENT
from ppd.demo.central import REFCAT
from ppd.demo.drawing import stack_fwhm
from ppd.demo.raws import ZERO_POINT
from ppd.demo.tasks.astrometry import fit_wcs, header_wcs, match_offset
from ppd.demo.tasks.calibrate import CalibrateImageTask, CalibrationError


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=range(4))
def observed(request: pytest.FixtureRequest, field: Field) -> Observed:
    return field.observed[request.param]


def test_every_pixel_is_where_it_truly_was(field: Field, observed: Observed) -> None:
    image = field.get("preliminary_visit_image", observed)
    wcs = image.sky_projection.as_fits_wcs(image.bbox)
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(5, 506, 6), np.linspace(5, 506, 6)))
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    true_x, true_y = observed.conditions.grid(observed.detector).to_pixels(ra, dec)
    off = np.hypot(true_x - x, true_y - y) * 0.4
    assert off.max() < 0.1
    # The commanded pointing, which the header has, would not do.
    commanded = header_wcs(image.metadata, camera_dict(), observed.detector)
    assert np.hypot(*(np.array(commanded.wcs_world2pix(ra, dec, 0)) - [x, y])).min() * 0.4 > 0.3


def test_zero_point(field: Field, observed: Observed) -> None:
    summary = field.get("preliminary_visit_summary", observed)
    true = ZERO_POINT["r"] + 2.5 * np.log10(observed.conditions.transparency)
    assert summary["zero_point"] == pytest.approx(true, abs=0.03)
    assert summary["zero_point_scatter"] < 0.05
    assert summary["n_photometry"] >= 10


def test_figures_of_the_summary(field: Field, observed: Observed) -> None:
    summary = field.get("preliminary_visit_summary", observed)
    c = observed.conditions
    assert 0.0 < summary["astrometric_rms_arcsec"] < 0.1
    assert summary["n_astrometry"] >= 12
    assert summary["sky_level_electron"] == pytest.approx(c.sky_level(), rel=0.02)
    assert summary["sky_noise_electron"] == pytest.approx(np.sqrt(c.sky_level() + 40.0), rel=0.05)
    assert summary["exposure_time"] == 30.0
    metadata = field.get("calibrateImage_metadata", observed)["calibrateImage"]
    assert metadata["zero_point"] == summary["zero_point"]


def test_psf(field: Field, observed: Observed) -> None:
    psf = field.get("preliminary_visit_psf", observed).array
    assert psf.shape == (21, 21)
    assert psf.sum() == pytest.approx(1.0, abs=1e-4)
    y, x = np.mgrid[-10:11, -10:11]
    assert abs((psf * x).sum()) < 0.1
    assert abs((psf * y).sum()) < 0.1
    true = observed.conditions.psf
    assert 1.0 / (psf**2).sum() == pytest.approx(true.effective_area(), rel=0.04)
    width = field.get("preliminary_visit_summary", observed)["psf_fwhm_pixel"]
    assert width == pytest.approx(stack_fwhm([true]), rel=0.06)


def test_stars_have_their_catalog_fluxes(field: Field, observed: Observed) -> None:
    stars, sky, c = field.get("single_visit_star", observed), field.sky, observed.conditions
    x, y = c.grid(observed.detector).to_pixels(sky.star_ra, sky.star_dec)
    flux = 10 ** (0.4 * (31.4 - sky.star_mag[:, 1])) * sky.star_flux_factor(c.middle_mjd)
    bright = flux > 2000.0
    distance, index = cKDTree(np.column_stack([x, y])[bright]).query(
        np.column_stack([stars["x"], stars["y"]])
    )
    near = distance < 0.5
    assert near.mean() > 0.8  # some are small galaxies
    ratio = np.asarray(stars["psfFlux"])[near] / flux[bright][index[near]]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.02)
    ra = np.asarray(stars["ra"])
    assert ((ra >= 0) & (ra < 360)).all()


def test_background_is_gone(field: Field, observed: Observed) -> None:
    image = field.get("preliminary_visit_image", observed)
    assert image.unit == u.nJy
    sigma = np.sqrt(np.median(image.variance.array))
    empty = observed.scene < 1.01 * observed.conditions.sky_level()
    assert abs(np.median(image.image.array[empty])) < 0.15 * sigma


def _calibrate(field: Field, exposure: MaskedImage, refcat: list[Table]):
    first = field.observed[0]
    task = CalibrateImageTask(config=CalibrateImageTask.ConfigClass())
    return task.run([exposure], camera_dict(), refcat, first.detector, 1, INSTRUMENT, "r")


def _refcat(field: Field) -> list[Table]:
    return [field.butler.get(ref) for ref in field.butler.query_datasets(REFCAT, collections="refcats")]


def test_an_empty_image_is_refused(field: Field) -> None:
    exposure = field.get("post_isr_image", field.observed[0])
    noise = np.random.default_rng(1).normal(1500.0, 39.0, exposure.image.array.shape)
    empty = MaskedImage(
        Image(noise.astype(np.float32), unit=u.electron),
        mask=exposure.mask,
        variance=exposure.variance,
        metadata=dict(exposure.metadata),
    )
    with pytest.raises(CalibrationError, match="PSF") as caught:
        _calibrate(field, empty, _refcat(field))
    assert isinstance(caught.value, AlgorithmError)
    assert caught.value.metadata["found"] < caught.value.metadata["needed"]


def test_stars_elsewhere_do_not_match(field: Field) -> None:
    """A catalog half a minute of arc off: further than any pointing error."""
    shifted = [Table(shard, copy=True) for shard in _refcat(field)]
    for shard in shifted:
        shard["dec"] += 30.0 / 3600.0
    with pytest.raises(CalibrationError, match="astrometric match"):
        _calibrate(field, field.get("post_isr_image", field.observed[0]), shifted)


def test_wcs_fit_without_noise(field: Field) -> None:
    c = field.observed[0].conditions
    header = {"RA": c.ra, "DEC": c.dec, "ROTSKY": c.rotation}
    start = header_wcs(header, camera_dict(), 4)
    x, y = np.random.default_rng(2).uniform(0, 512, (2, 30))
    true = header_wcs(dict(header, ROTSKY=c.rotation + 0.05, RA=c.ra + 1e-4), camera_dict(), 4)
    ra, dec = true.wcs_pix2world(x, y, 0)
    ra[0] += 0.01  # a wrong match
    wcs, rms, used = fit_wcs(start, x, y, ra, dec)
    assert not used[0]
    assert used[1:].all()
    assert rms < 1e-3
    assert np.array(wcs.wcs_world2pix(ra[1:], dec[1:], 0)) == pytest.approx(np.array([x, y])[:, 1:], abs=0.01)


def test_offset_among_strangers() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 512, (2, 25))
    ref = rng.uniform(0, 512, (2, 40))
    ref[:, :15] = x[:15] - 7.0, y[:15] + 4.5
    dx, dy, votes = match_offset(x, y, *ref, reach=20.0)
    assert (dx, dy) == pytest.approx((7.0, -4.5), abs=0.3)
    assert votes >= 15
    assert match_offset(x, y, ref[0] + 5000.0, ref[1], reach=20.0)[2] == 0


def test_conditions_are_those_of_the_simulation(field: Field) -> None:
    """The truth that these tests compare with is not what a task could read."""
    c = field.observed[0].conditions
    names = {f.name for f in dataclasses.fields(c)}
    assert {"true_ra", "fwhm", "transparency"} <= names
    image = field.get("post_isr_image", field.observed[0])
    assert not {"FWHM", "ZP", "TRUERA"} & set(image.metadata)
