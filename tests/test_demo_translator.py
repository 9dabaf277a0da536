"""The header translator: found through its entry point, and complete."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points

import astropy.io.fits
import astropy.units as u
import pytest
from astro_metadata_translator import MetadataTranslator, ObservationInfo
from demo_support import Field, shared_field

from ppd.demo.camera import focal_plane
from ppd.demo.translator import DemoCamTranslator


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def header(field: Field) -> dict:
    return dict(astropy.io.fits.getheader(field.observed[1].raw))


@pytest.fixture(scope="module")
def info(header: dict) -> ObservationInfo:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a card that is missed is a warning only
        return ObservationInfo(header, pedantic=True)


def test_entry_point_names_it() -> None:
    (plugin,) = (p for p in entry_points(group="astro_metadata_translators") if p.name == "democam")
    assert plugin.load()() == ["DemoCam"]
    assert MetadataTranslator.translators["DemoCam"] is DemoCamTranslator


def test_nothing_is_missing(info: ObservationInfo) -> None:
    missing = {name for name in info.all_properties if getattr(info, name) is None}
    assert not missing


def test_values(info: ObservationInfo, field: Field) -> None:
    observed = field.observed[1]
    c = observed.conditions
    assert (info.instrument, info.telescope) == ("DemoCam", "Demo Telescope")
    assert (info.exposure_id, info.visit_id, info.exposure_group) == (c.exposure, c.exposure, c.group)
    assert (info.detector_num, info.detector_unique_name) == (8, focal_plane().outline(8).name)
    assert (info.physical_filter, info.observing_day) == (c.physical_filter, c.day_obs)
    assert info.tracking_radec.icrs.ra.deg == pytest.approx(c.ra)
    assert info.tracking_radec.icrs.dec.deg == pytest.approx(c.dec)
    assert info.boresight_rotation_angle.deg % 360.0 == pytest.approx(c.rotation)
    assert info.exposure_time == c.exposure_time * u.s
    assert info.datetime_begin.tai.mjd == pytest.approx(c.begin_mjd, abs=1e-8)
    assert (info.datetime_end - info.datetime_begin).to_value(u.s) == pytest.approx(30.0, abs=0.01)


def test_detector_exposure_ids_are_unique(header: dict) -> None:
    ids = {
        ObservationInfo({**header, "DETNUM": d, "EXPID": header["EXPID"] + e}).detector_exposure_id
        for d in range(9)
        for e in range(3)
    }
    assert len(ids) == 27


def test_headers_of_others_are_left_alone(header: dict) -> None:
    assert DemoCamTranslator.can_translate(header)
    assert not DemoCamTranslator.can_translate({**header, "INSTRUME": "LSSTCam"})
    assert not DemoCamTranslator.can_translate({})


def test_a_header_without_its_cards_is_refused(header: dict) -> None:
    del header["DATE-BEG"]
    with pytest.raises(KeyError):
        ObservationInfo(header, pedantic=True)
