"""Simulated raws: overscan, gain, saturation, bad columns, and the same pixels for the same seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest
from astropy.time import Time

from ppd.demo.camera import CAMERA
from ppd.demo.night import plan_conditions
from ppd.demo.raws import Conditions, set_times, simulate_raw, write_raw
from ppd.demo.sky import FIELDS, Sky, make_sky
from ppd.visit import TAI_MINUS_UTC

BEGIN = 1_795_500_000.0
DETECTOR = 3


def _conditions(number: int = 0, **changes) -> Conditions:
    return dataclasses.replace(plan_conditions(number, 1, BEGIN, 30.0), **changes)


def _only(stars: list[tuple[float, float, float]]) -> Sky:
    """A sky of a few stars and nothing else: ra, dec, magnitude."""
    sky = make_sky(FIELDS[0], 1, 61_368.0)
    none = {
        f.name: getattr(sky, f.name)[:0]
        for f in dataclasses.fields(Sky)
        if isinstance(getattr(sky, f.name), np.ndarray)
    }
    table = np.array(stars, dtype=float).reshape(-1, 3)
    n = len(table)
    none |= {
        "star_ra": table[:, 0],
        "star_dec": table[:, 1],
        "star_mag": np.column_stack([table[:, 2], table[:, 2]]),
        "star_amplitude": np.zeros(n),
        "star_period": np.ones(n),
        "star_phase": np.zeros(n),
    }
    return dataclasses.replace(sky, **none)


def _halves(pixels: np.ndarray):
    """Imaging and overscan pixels of each amplifier, ADU."""
    for amp in CAMERA.amplifiers:
        over = pixels[:, amp.overscan_x0 : amp.overscan_x0 + amp.overscan_width].astype(float)
        yield amp, pixels[:, amp.raw_x0 : amp.raw_x0 + amp.width].astype(float), over


@pytest.fixture(scope="module")
def empty_sky() -> Sky:
    return _only([])


@pytest.fixture(scope="module")
def pair(empty_sky: Sky) -> tuple[np.ndarray, np.ndarray]:
    """Two exposures of nothing but sky."""
    c = _conditions()
    first, _, _ = simulate_raw(empty_sky, c, DETECTOR)
    second, _, _ = simulate_raw(empty_sky, dataclasses.replace(c, exposure=c.exposure + 1), DETECTOR)
    return first, second


def test_same_seed_same_pixels(empty_sky: Sky, pair: tuple[np.ndarray, np.ndarray]) -> None:
    again, _, _ = simulate_raw(empty_sky, _conditions(), DETECTOR)
    assert np.array_equal(again, pair[0])


@pytest.mark.parametrize("change", [{"seed": 2}, {"exposure": 17}])
def test_other_seed_or_exposure_other_pixels(empty_sky: Sky, pair, change: dict) -> None:
    other, _, _ = simulate_raw(empty_sky, _conditions(**change), DETECTOR)
    assert (other != pair[0]).mean() > 0.9


def test_shape(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert pair[0].shape == (CAMERA.side, CAMERA.side + 2 * CAMERA.overscan)
    assert pair[0].dtype == np.uint16


def test_overscan_is_the_bias_level(pair: tuple[np.ndarray, np.ndarray]) -> None:
    levels = CAMERA.bias_level(DETECTOR)
    assert levels[0] != pytest.approx(levels[1], abs=5.0)
    noise = CAMERA.read_noise(DETECTOR)
    gains = CAMERA.gains(DETECTOR)
    for (_, image, over), level, sigma, gain in zip(_halves(pair[0]), levels, noise, gains, strict=True):
        assert over.mean() == pytest.approx(level, abs=8.0)
        assert image.mean() > level + 400.0
        # Within a row only the read noise is left, and rounding.
        rows = over - over.mean(axis=1, keepdims=True)
        assert rows.std() == pytest.approx(np.hypot(sigma / gain, 0.29), rel=0.05)


def test_gain_by_photon_transfer(pair: tuple[np.ndarray, np.ndarray]) -> None:
    gains, noise = CAMERA.gains(DETECTOR), CAMERA.read_noise(DETECTOR)
    for (_, one, over), (_, two, _), gain, sigma in zip(
        _halves(pair[0]), _halves(pair[1]), gains, noise, strict=True
    ):
        signal = np.median(one) - np.median(over)
        # Without the slope of each exposure, and not by cosmic rays.
        difference = (one - two)[100:400] - np.median((one - two)[100:400], axis=1, keepdims=True)
        spread = 1.4826 * np.median(np.abs(difference)) / np.sqrt(2.0)
        variance = spread**2 - (sigma / gain) ** 2
        assert signal / variance == pytest.approx(gain, rel=0.05)


def test_bad_columns_are_dark(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for amp, image, over in _halves(pair[0]):
        light = image - over.mean(axis=1, keepdims=True)
        columns = np.median(light, axis=0)
        bad = [c - amp.x0 for c in CAMERA.bad_columns(DETECTOR) if amp.x0 <= c < amp.x0 + amp.width]
        dark = np.flatnonzero(columns < 0.35 * np.median(columns))
        assert sorted(dark) == sorted(bad)


def test_saturation() -> None:
    c = _conditions()
    grid = c.grid(4)
    pixels, _, scene = simulate_raw(_only([(c.true_ra, c.true_dec, 15.0)]), c, 4)
    assert scene.max() > 1.5 * CAMERA.full_well
    at = [round(float(v)) for v in grid.to_pixels(c.true_ra, c.true_dec)]
    for (amp, image, over), gain, sigma in zip(
        _halves(pixels), CAMERA.gains(4), CAMERA.read_noise(4), strict=True
    ):
        electrons = (image - over.mean(axis=1, keepdims=True)) * gain
        assert electrons.max() < CAMERA.full_well + 40.0 * gain + 6.0 * sigma
        if amp.x0 <= at[0] < amp.x0 + amp.width:
            assert electrons[at[1], at[0] - amp.x0] == pytest.approx(CAMERA.full_well, abs=200.0)


def test_star_has_the_electrons_of_its_magnitude() -> None:
    c = _conditions(transparency=0.9)
    _, _, scene = simulate_raw(_only([(c.true_ra, c.true_dec, 19.0)]), c, 4)
    electrons = (scene - c.sky_level()).sum()
    assert electrons == pytest.approx(0.9 * 10 ** (0.4 * (30.8 - 19.0)), rel=0.002)


def test_sky_is_as_bright_as_asked(pair: tuple[np.ndarray, np.ndarray]) -> None:
    level = _conditions().sky_level()
    gains = CAMERA.gains(DETECTOR)
    found = [
        float(np.median(image) - np.median(over)) * g
        for (_, image, over), g in zip(_halves(pair[0]), gains, strict=True)
    ]
    assert np.mean(found) == pytest.approx(level, rel=0.03)


def test_file_is_what_was_simulated(tmp_path: Path, empty_sky: Sky) -> None:
    c = _conditions()
    pixels, header, _ = simulate_raw(empty_sky, c, DETECTOR)
    write_raw(tmp_path / "deep" / "raw.fits", pixels, header)
    with astropy.io.fits.open(tmp_path / "deep" / "raw.fits") as hdus:
        assert np.array_equal(hdus[0].data, pixels)
        read = hdus[0].header
        assert (read["INSTRUME"], read["DETNUM"], read["EXPID"]) == ("DemoCam", DETECTOR, c.exposure)
        assert (read["GROUPID"], read["FILTER"]) == (c.group, "demo-r")
        assert (read["RA"], read["DEC"], read["ROTSKY"]) == pytest.approx((c.ra, c.dec, c.rotation))
        begin, end = (Time(read[k], format="isot", scale="tai").mjd for k in ("DATE-BEG", "DATE-END"))
    assert (end - begin) * 86400.0 == pytest.approx(c.exposure_time, abs=0.01)
    assert begin == pytest.approx(c.begin_mjd, abs=1e-8)


def test_exposure_at_another_time(tmp_path: Path, empty_sky: Sky) -> None:
    """Two cards are others; of when the sky is stands there as before."""
    c = _conditions()
    pixels, header, _ = simulate_raw(empty_sky, c, DETECTOR)
    write_raw(tmp_path / "raw.fits", pixels, header)
    raw = (tmp_path / "raw.fits").read_bytes()
    moved = set_times(raw, BEGIN + 1000.0)
    (tmp_path / "moved.fits").write_bytes(moved)
    with astropy.io.fits.open(tmp_path / "moved.fits") as hdus:
        assert np.array_equal(hdus[0].data, pixels)
        read = hdus[0].header
        begin, end, sky = (
            Time(read[k], format="isot", scale="tai") for k in ("DATE-BEG", "DATE-END", "DATE-SKY")
        )
        other = {card for card, value in header.items() if read[card] != pytest.approx(value)}
    assert end.unix_tai - TAI_MINUS_UTC == pytest.approx(BEGIN + 1000.0, abs=0.001)
    assert (end - begin).sec == pytest.approx(c.exposure_time, abs=0.002)
    assert sky.mjd == pytest.approx(c.middle_mjd, abs=1e-7)
    assert other == {"DATE-BEG", "DATE-END"}
    assert len(moved) == len(raw)
    with pytest.raises(ValueError, match="DATE-BEG"):
        set_times(raw.replace(b"DATE-BEG", b"DATE-BEH"), BEGIN)


def test_truth_of_the_pointing_is_not_in_the_header(empty_sky: Sky) -> None:
    c = _conditions()
    _, header, _ = simulate_raw(empty_sky, c, DETECTOR)
    assert np.hypot(c.true_ra - c.ra, c.true_dec - c.dec) * 3600.0 > 0.02
    assert header["RA"] == c.ra
    assert c.true_ra not in header.values()
