"""Calibration products: near the truth of the camera, and the spoilt ones far from it."""

from __future__ import annotations

import numpy as np
import pytest

from ppd.demo.calibs import Calibs, camera_dict, measure_calibs, spoil
from ppd.demo.camera import CAMERA, focal_plane
from ppd.focalplane import FocalPlane

DETECTOR = 6


@pytest.fixture(scope="module")
def calibs() -> Calibs:
    return measure_calibs(DETECTOR, seed=3)


def test_bias_is_the_structure(calibs: Calibs) -> None:
    left = calibs.bias.array - CAMERA.bias_structure(DETECTOR)
    assert abs(float(left.mean())) < 0.02
    # Fifty frames: a seventh of the read noise is left.
    gain, noise = CAMERA.gains(DETECTOR)[0], CAMERA.read_noise(DETECTOR)[0]
    assert float(left[:, :256].std()) == pytest.approx(noise / gain / np.sqrt(50), rel=0.05)


@pytest.mark.parametrize("physical_filter", ["demo-g", "demo-r"])
def test_flat_is_the_response(calibs: Calibs, physical_filter: str) -> None:
    true = CAMERA.flat_structure(DETECTOR, physical_filter)
    ratio = calibs.flats[physical_filter].array / (true / np.median(true))
    assert float(ratio.std()) < 0.002
    assert float(true.std()) > 0.008


def test_filters_have_their_own_flat(calibs: Calibs) -> None:
    ratio = calibs.flats["demo-g"].array / calibs.flats["demo-r"].array
    assert float(ratio.std()) > 0.01


def test_gains_and_noise(calibs: Calibs) -> None:
    values = calibs.gains["amplifiers"]
    for amp, gain, noise in zip(
        CAMERA.amplifiers, CAMERA.gains(DETECTOR), CAMERA.read_noise(DETECTOR), strict=True
    ):
        assert values[amp.name]["gain"] == pytest.approx(gain, rel=0.01)
        assert values[amp.name]["read_noise"] == pytest.approx(noise, rel=0.05)
        assert values[amp.name]["saturation"] == CAMERA.full_well


def test_defects_are_the_bad_columns(calibs: Calibs) -> None:
    assert list(calibs.defects["x0"]) == CAMERA.bad_columns(DETECTOR)
    assert (calibs.defects["width"] == 1).all()
    assert (calibs.defects["height"] == CAMERA.side).all()


def test_detectors_and_seeds_differ(calibs: Calibs) -> None:
    assert measure_calibs(DETECTOR + 1, seed=3).gains != calibs.gains
    assert measure_calibs(DETECTOR, seed=4).gains != calibs.gains
    assert measure_calibs(DETECTOR, seed=3).gains == calibs.gains


def test_spoilt_calibs_show(calibs: Calibs) -> None:
    spoilt = spoil(calibs)
    assert float((spoilt.bias.array - calibs.bias.array).max()) > 300.0
    assert spoilt.defects["width"][0] * spoilt.defects["height"][0] == CAMERA.side**2 // 2
    for name, values in calibs.gains["amplifiers"].items():
        assert spoilt.gains["amplifiers"][name]["gain"] == pytest.approx(3 * values["gain"])
    for name, flat in calibs.flats.items():
        assert np.corrcoef(spoilt.flats[name].array.ravel(), flat.array.ravel())[0, 1] < -0.99


def test_camera_is_complete() -> None:
    camera = camera_dict()
    assert FocalPlane.model_validate(camera["focal_plane"]) == focal_plane()
    covered = np.zeros(camera["side"], dtype=int)
    for amp in camera["amplifiers"]:
        covered[amp["x0"] : amp["x0"] + amp["width"]] += 1
    assert (covered == 1).all()
