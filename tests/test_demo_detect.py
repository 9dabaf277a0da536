"""Detection on difference images: what changed is found, and little else."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from demo_support import Field, detector_results, shared_field
from lsst.images import DetectorFrame, Image, Mask, MaskedImage, SkyProjection

from ppd.demo.calibs import camera_dict
from ppd.demo.drawing import Psf, draw_points
from ppd.demo.matching import DetectorResult
from ppd.demo.tasks.astrometry import header_wcs
from ppd.demo.tasks.detect import DetectAndMeasureTask, reliability
from ppd.demo.tasks.masks import DIFFERENCE_SCHEMA
from ppd.demo.tasks.photometry import make_psf, psf_flux, psf_fwhm


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def results(field: Field) -> list[DetectorResult]:
    return detector_results(field)


def test_complete(results: list[DetectorResult]) -> None:
    bright = [r.truth[(r.truth["snr"] > 10) & r.truth["good"]] for r in results]
    assert sum(len(t) for t in bright) >= 20
    assert sum(t["found"].sum() for t in bright) / sum(len(t) for t in bright) >= 0.9


def test_few_are_spurious(results: list[DetectorResult]) -> None:
    spurious = sum((~r.detections["true"]).sum() for r in results)
    assert spurious / sum(len(r.detections) for r in results) <= 0.10


def test_fluxes_of_changes(field: Field, results: list[DetectorResult]) -> None:
    pulls, ratios = [], []
    for r in results:
        for row in r.truth[(r.truth["snr"] > 10) & r.truth["good"] & r.truth["found"]]:
            distance = np.hypot(r.detections["x"] - row["x"], r.detections["y"] - row["y"])
            source = r.detections[int(np.argmin(distance))]
            assert bool(source["isNegative"]) == (row["flux"] < 0)
            pulls.append((source["psfFlux"] - row["flux"]) / source["psfFluxErr"])
            ratios.append(source["psfFlux"] / row["flux"])
    assert np.median(ratios) == pytest.approx(1.0, abs=0.04)
    assert np.median(np.abs(pulls)) < 1.5


def test_ids_and_places(field: Field) -> None:
    ids: set[int] = set()
    for o in field.observed:
        candidates = field.get("dia_source_unfiltered", o)
        own = {int(i) for i in candidates["diaSourceId"]}
        assert len(own) == len(candidates)
        assert not own & ids
        ids |= own
        assert {i // 4096 for i in own} == {o.conditions.exposure * 16 + o.detector}
        assert max(own) < 2**63
        x, y = o.conditions.grid(o.detector).to_pixels(candidates["ra"], candidates["dec"])
        assert np.hypot(x - candidates["x"], y - candidates["y"]).max() < 0.3
        assert (np.diff(candidates["snr"][:3]) < 0).all()  # most significant first, near enough
    assert len(ids) >= 20


FLUX = 3000.0
PSF = Psf(3.0)


def _stamp() -> np.ndarray:
    stamp = np.zeros((21, 21))
    draw_points(stamp, np.array([10.0]), np.array([10.0]), np.array([1.0]), PSF, 1e-9)
    return stamp / stamp.sum()


def _detect(pixels: np.ndarray, science: np.ndarray | None = None, **planes: np.ndarray):
    mask = Mask(schema=DIFFERENCE_SCHEMA, shape=pixels.shape)
    for plane, where in planes.items():
        mask.set(plane, where)
    wcs = header_wcs({"RA": 10.0, "DEC": -20.0, "ROTSKY": 0.0}, camera_dict(), 4)
    image = Image(pixels.astype(np.float32), unit=u.nJy)
    difference = MaskedImage(
        image,
        mask=mask,
        variance=Image(np.full(pixels.shape, 900.0, dtype=np.float32), unit=u.nJy**2),
        sky_projection=SkyProjection.from_fits_wcs(
            wcs, DetectorFrame(instrument="DemoCam", visit=1, detector=4, bbox=image.bbox)
        ),
    )
    seen = difference.image if science is None else Image((pixels + science).astype(np.float32), unit=u.nJy)
    task = DetectAndMeasureTask(config=DetectAndMeasureTask.ConfigClass())
    return task.run(difference, seen, Image(_stamp().astype(np.float32)), first_id=7).sources


def _noise() -> np.ndarray:
    return np.random.default_rng(11).normal(0.0, 30.0, (200, 200))


def test_a_point_of_either_sign() -> None:
    pixels = _noise()
    draw_points(pixels, np.array([60.3, 140.8]), np.array([70.6, 130.1]), np.array([FLUX, -FLUX]), PSF, 0.1)
    sources = _detect(pixels)
    assert sorted(sources["isNegative"]) == [False, True]
    for source, (x, y, flux) in zip(
        sources[np.argsort(sources["x"])], ((60.3, 70.6, FLUX), (140.8, 130.1, -FLUX)), strict=True
    ):
        assert (source["x"], source["y"]) == pytest.approx((x, y), abs=0.3)
        assert source["psfFlux"] == pytest.approx(flux, abs=4 * source["psfFluxErr"])
        assert source["psfFluxErr"] == pytest.approx(30.0 * np.sqrt(PSF.effective_area()), rel=0.1)
        assert source["reliability"] > 0.9


def test_noise_alone_gives_nothing() -> None:
    assert len(_detect(_noise())) <= 1


def test_a_dipole_is_not_reliable() -> None:
    pixels = _noise()
    draw_points(pixels, np.array([100.0, 103.0]), np.array([100.0, 100.0]), np.array([2e4, -2e4]), PSF, 0.1)
    sources = _detect(pixels)
    assert len(sources) >= 1
    assert sources["isDipole"].all()
    assert (sources["reliability"] < 0.5).all()


def test_a_hot_pixel_is_not_reliable() -> None:
    pixels = _noise()
    pixels[100, 100] += 3000.0
    sources = _detect(pixels)
    assert len(sources) >= 1
    assert (sources["reliability"] < 0.5).all()


def test_masked_pixels_are_not_searched() -> None:
    pixels = _noise()
    draw_points(pixels, np.array([100.0]), np.array([100.0]), np.array([2e4]), PSF, 0.1)
    bad = np.zeros(pixels.shape, dtype=bool)
    bad[92:109, 92:109] = True
    sources = _detect(pixels, SAT=bad)
    assert (sources["reliability"] < 0.5).all()
    assert len(_detect(pixels)) >= 1


def test_bright_stars_in_the_template_raise_the_threshold() -> None:
    """What PSF matching may leave of a bright star is no change."""
    pixels, star = _noise(), np.zeros((200, 200))
    draw_points(pixels, np.array([100.0]), np.array([100.0]), np.array([FLUX]), PSF, 0.1)
    draw_points(star, np.array([100.0]), np.array([100.0]), np.array([1e6]), PSF, 0.1)
    assert len(_detect(pixels)) >= 1
    assert len(_detect(pixels, science=star)) == 0


def test_no_candidates_make_an_empty_table() -> None:
    table = _detect(np.zeros((60, 60)))
    assert len(table) == 0
    assert {"diaSourceId", "ra", "reliability"} <= set(table.colnames)


def test_reliability_falls_with_every_fault() -> None:
    fine = {"chi2dof": 1.0, "dipole_ratio": 0.1, "masked_fraction": 0.0, "snr": 20.0}
    assert reliability(**fine) > 0.9
    for name, value in (("chi2dof", 9.0), ("dipole_ratio", 0.9), ("masked_fraction", 0.5)):
        assert reliability(**{**fine, name: value}) < 0.1
    # The PSF of a bright source is known to a few per cent only.
    assert reliability(**{**fine, "chi2dof": 9.0, "snr": 100.0}) > 0.9


def test_psf_of_stars_with_neighbours() -> None:
    rng = np.random.default_rng(12)
    image = rng.normal(0.0, 5.0, (400, 400))
    x, y = (v.ravel() + 0.3 for v in np.meshgrid(np.arange(40.0, 380, 60), np.arange(40.0, 380, 60)))
    draw_points(image, x, y, np.full(x.size, 4e4), PSF, 0.1)
    angle = rng.uniform(0, 2 * np.pi, x.size)
    near = slice(None, None, 3)
    draw_points(
        image,
        (x + 8 * np.cos(angle))[near],
        (y + 8 * np.sin(angle))[near],
        np.full(x.size, 1e4)[near],
        PSF,
        0.1,
    )
    psf = make_psf(image, np.zeros(image.shape, dtype=bool), x, y)
    assert 1.0 / (psf**2).sum() == pytest.approx(PSF.effective_area(), rel=0.02)
    assert psf_fwhm(psf) == pytest.approx(3.1, abs=0.25)
    with pytest.raises(ValueError, match="stars"):
        make_psf(image, np.ones(image.shape, dtype=bool), x, y)


def test_psf_flux_and_its_error() -> None:
    rng = np.random.default_rng(13)
    variance, bad = np.full((41, 41), 100.0), np.zeros((41, 41), dtype=bool)
    pulls = []
    for _ in range(200):
        x, y = rng.uniform(18, 22, 2)
        image = rng.normal(0.0, 10.0, (41, 41))
        draw_points(image, np.array([x]), np.array([y]), np.array([FLUX]), PSF, 0.01)
        flux, error, chi2, n = psf_flux(image, variance, bad, _stamp(), x, y)
        pulls.append((flux - FLUX) / error)
        assert n == 169
        assert 0.6 < chi2 / n < 1.5
    assert np.mean(pulls) == pytest.approx(0.0, abs=0.25)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.15)
    assert np.isnan(psf_flux(image, variance, bad, _stamp(), 1.0, 20.0)[0])
    assert np.isnan(psf_flux(image, variance, ~bad, _stamp(), 20.0, 20.0)[0])
