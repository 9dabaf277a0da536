"""From a raw file to exposure and visit: what the header says is recorded, what makes no sense refused."""

from __future__ import annotations

import gzip
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.units as u
import numpy as np
import pytest
from astro_metadata_translator import ObservationInfo, makeObservationInfo
from astropy.coordinates import AltAz, Angle, SkyCoord
from astropy.time import Time, TimeDelta
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lsst.daf.butler import Butler, DatasetNotFoundError, Timespan
from lsst.sphgeom import LonLat, UnitVector3d
from repo_support import (
    DEMO_EXPOSURE,
    DEMO_MJD,
    DEMOCAM,
    copy_lsstcam,
    day,
    make_demo_repo,
    needs_lsstcam,
    needs_root,
    small_tmpfs,
    span,
    write_demo_raw,
)

from ppd.demo.democam import describe
from ppd.errors import InvalidRawError
from ppd.instruments import lsstcam
from ppd.workers.ingest import RawExposure, exposure_records, ingest_raw, load_translators, read_raw
from ppd.workers.visits import define_visits

# Damaged files make readers warn; here it is known.
pytestmark = pytest.mark.filterwarnings(
    "ignore::astropy.utils.exceptions.AstropyWarning", "ignore:invalid value encountered:RuntimeWarning"
)

GROUP = "2026-11-25T04:47:59.000"
RUN = f"{DEMOCAM}/raw/all"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_translators()
    return write_demo_raw(tmp_path_factory.mktemp("raws"))


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    make_demo_repo(root)
    return root


@pytest.fixture
def butler(tmp_path: Path, blank: Path) -> Iterator[Butler]:
    shutil.copytree(blank, tmp_path / "repo")
    with Butler.from_config(str(tmp_path / "repo"), writeable=True) as butler:
        yield butler


def _read(path: Path) -> RawExposure:
    return read_raw(path, DEMOCAM, GROUP, 4)


def _separation(a: UnitVector3d, b: UnitVector3d) -> float:
    return math.degrees(math.acos(min(1.0, a.dot(b)))) * 3600.0


# What is refused


def _refused(path: Path, match: str) -> None:
    with pytest.raises(InvalidRawError, match=match) as e:
        _read(path)
    assert str(path) in str(e.value)


def test_absent_empty_and_not_fits(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    _refused(path, "can't be read: No such file")
    path.touch()
    _refused(path, "is empty")
    path.write_text("SIMPLE? Not at all.\n" * 500)
    _refused(path, "is not a FITS file")
    path.write_bytes(np.random.default_rng(1).bytes(10_000))
    _refused(path, "is not a FITS file")
    path.unlink()
    path.mkdir()
    _refused(path, "is not a FITS file")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0.0, 1.0, exclude_max=True))
@example(1e-9)
@example(0.999999)
def test_cut_anywhere(good: Path, tmp_path: Path, fraction: float) -> None:
    whole = good.read_bytes()
    path = tmp_path / "cut.fits"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    _refused(path, "is empty|is not a FITS file|is cut short")


@pytest.mark.parametrize("cut", [100, 2879, 2880, 2881, 5759, 5760, 8000, -1])
def test_cut_at_blocks(good: Path, tmp_path: Path, cut: int) -> None:
    """In the header, at its end, after it, and a byte before the end of the padding."""
    path = tmp_path / "cut.fits"
    path.write_bytes(good.read_bytes()[:cut])
    _refused(path, "is not a FITS file|is cut short")


def _several(good: Path, path: Path) -> bytes:
    """Write a raw with two extensions, as other cameras have them."""
    with astropy.io.fits.open(good) as hdus:
        extensions = [astropy.io.fits.ImageHDU(np.ones((40, 50), dtype="i4")) for _ in range(2)]
        astropy.io.fits.HDUList([hdus[0], *extensions]).writeto(path)
    return path.read_bytes()


def test_cut_within_a_later_header(good: Path, tmp_path: Path) -> None:
    """Readers take what is before it for a whole file."""
    path = tmp_path / "several.fits"
    whole = _several(good, path)
    assert _read(path).exposure == DEMO_EXPOSURE
    second = whole.index(b"XTENSION= 'IMAGE")
    for cut in (second + 1, second + 80, second + 2879, second + 2880, second + 4000, len(whole) - 1):
        path.write_bytes(whole[:cut])
        _refused(path, "is cut short")


def test_gzipped(good: Path, tmp_path: Path) -> None:
    """Lengths are those of what is in it; a cut is seen there too."""
    path = tmp_path / "a.fits.gz"
    packed = gzip.compress(good.read_bytes(), 1)
    path.write_bytes(packed)
    assert _read(path).exposure == DEMO_EXPOSURE
    for cut in (1, 12, 500, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        path.write_bytes(packed[:cut])
        _refused(path, "is not a FITS file|is cut short|can't be read to its end")


@pytest.mark.parametrize(
    ("expected", "match"),
    [
        (("OtherCam", GROUP, 4), "is of instrument 'DemoCam', its path says 'OtherCam'"),
        ((DEMOCAM, "g", 4), f"is of group '{GROUP}', its path says 'g'"),
        ((DEMOCAM, GROUP, 5), "is of detector 4, its path says 5"),
        ((DEMOCAM, GROUP, 4, 77), "is of exposure [0-9]+, its path says 77"),
    ],
)
def test_not_what_its_path_says(good: Path, expected: tuple, match: str) -> None:
    with pytest.raises(InvalidRawError, match=match) as e:
        read_raw(good, *expected)
    assert str(good) in str(e.value)


def _with_header(good: Path, path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(good.read_bytes())
    change(data)
    path.write_bytes(data)


def _card(keyword: str, text: str) -> Callable[[bytearray], None]:
    """Write over a card as no library would."""

    def change(data: bytearray) -> None:
        start = data.index(f"{keyword:8}= ".encode())
        data[start : start + 80] = f"{keyword:8}= {text}".ljust(80).encode()

    return change


_CARDS = (
    *("INSTRUME", "OBSID", "EXPID", "GROUPID", "DETNUM", "FILTER", "DATE-BEG", "DATE-END"),
    *("EXPTIME", "RA", "DEC", "ROTSKY", "DAYOBS", "SEQNUM"),
)


@pytest.mark.parametrize("keyword", _CARDS)
def test_missing_card(good: Path, tmp_path: Path, keyword: str) -> None:
    path = tmp_path / "a.fits"
    with astropy.io.fits.open(good) as hdus:
        del hdus[0].header[keyword]
        hdus.writeto(path)
    _refused(
        path, rf"can't be translated: [^(]*\b{keyword}\b" if keyword != "INSTRUME" else "can't be translated"
    )


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        *((keyword, text) for keyword in ("RA", "DEC", "ROTSKY") for text in ("NaN", "'nan'", "", "1e400")),
        ("DEC", "91.0"),
        ("RA", "'12:00:00 or so'"),
        ("EXPID", "-1"),
        ("EXPID", "99999999999999999999"),
        ("EXPID", "'three'"),
        ("OBSID", "''"),
        ("DETNUM", "'four'"),
        ("DATE-BEG", "'2026-13-45T99:00:00'"),
        ("DATE-BEG", "'2026-11-25T04:48:31'"),  # after the end
        ("DATE-END", ""),
        ("DAYOBS", "20261399"),
        ("DAYOBS", "0"),
        ("DAYOBS", "-5"),
        ("GROUPID", ""),
        ("EXPTIME", "'long'"),
        ("NAXIS1", "99999"),
        ("BITPIX", "17"),
    ],
)
def test_card_that_makes_no_sense(good: Path, tmp_path: Path, keyword: str, text: str) -> None:
    path = tmp_path / "a.fits"
    _with_header(good, path, _card(keyword, text))
    with pytest.raises(InvalidRawError) as e:
        _read(path)
    assert str(path) in str(e.value)


def test_before_the_time_of_the_middleware(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    _with_header(good, path, _card("DATE-BEG", "'1950-01-01T00:00:00'"))
    _with_header(path, path, _card("DATE-END", "'1950-01-01T00:00:30'"))
    _refused(path, "may not be earlier than 1970")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 5759), st.binary(min_size=1, max_size=40))
def test_damaged_header(good: Path, tmp_path: Path, place: int, damage: bytes) -> None:
    """Bytes of a header overwritten: a raw or our error, nothing else."""
    path = tmp_path / "a.fits"

    def change(data: bytearray) -> None:
        data[place : place + len(damage)] = damage

    _with_header(good, path, change)
    try:
        raw = _read(path)
    except InvalidRawError:
        return
    assert all(math.isfinite(value) for value in raw.pointing)


# What is recorded


def test_records_are_what_the_header_says(good: Path, butler: Butler) -> None:
    ingest_raw(butler, _read(good), RUN, describe())
    (exposure,) = butler.query_dimension_records("exposure", instrument=DEMOCAM)
    expected: dict[str, Any] = {
        "id": DEMO_EXPOSURE,
        "obs_id": "DC_20261124_000003",
        "group": GROUP,
        "day_obs": 20261124,
        "physical_filter": "demo-r",
        "exposure_time": 30.0,
        "dark_time": 30.5,
        "observation_type": "science",
        "seq_num": 3,
        "seq_start": 3,
        "seq_end": 3,
        "target_name": "D3",
        "science_program": "DEMO",
        "tracking_ra": pytest.approx(359.98),
        "tracking_dec": pytest.approx(-12.4),
        "sky_angle": pytest.approx(33.0),
        "azimuth": pytest.approx(120.0),
        "zenith_angle": pytest.approx(28.0),
        "can_see_sky": True,
        "has_simulated": True,
    }
    assert {name: getattr(exposure, name) for name in expected} == expected
    assert abs((exposure.timespan.begin - day(DEMO_MJD)).sec) < 1e-3
    assert (exposure.timespan.end - exposure.timespan.begin).sec == pytest.approx(30.0, abs=1e-3)
    (group,) = butler.query_dimension_records("group", instrument=DEMOCAM)
    assert group.name == GROUP
    (night,) = butler.query_dimension_records("day_obs", instrument=DEMOCAM)
    assert night.id == 20261124
    # From noon to noon, TAI.
    assert night.timespan == span(61368.5, 61369.5)
    assert night.timespan.contains(exposure.timespan)


def test_hard_link(good: Path, tmp_path: Path, butler: Butler) -> None:
    path = tmp_path / "a.fits"
    shutil.copyfile(good, path)
    ref = ingest_raw(butler, _read(path), RUN, describe())
    assert os.path.samefile(butler.getURI(ref).ospath, path)  # noqa: PTH121
    assert butler.get(ref).array.shape == (512, 544)
    assert ref.run == RUN


@needs_root
def test_copy_from_another_file_system(good: Path, tmp_path: Path, butler: Butler) -> None:
    with small_tmpfs(tmp_path / "raws", "size=8M") as folder:
        shutil.copyfile(good, folder / "a.fits")
        ref = ingest_raw(butler, _read(folder / "a.fits"), RUN, describe())
        copy = Path(butler.getURI(ref).ospath)
        assert copy.stat().st_dev != (folder / "a.fits").stat().st_dev
        assert copy.read_bytes() == good.read_bytes()
        assert (folder / "a.fits").exists()
    assert butler.get(ref).array.shape == (512, 544)


def test_raw_that_went_away(good: Path, tmp_path: Path, butler: Butler) -> None:
    """Between the look at its header and its ingest: an error, and no dataset without a file."""
    path = tmp_path / "a.fits"
    shutil.copyfile(good, path)
    raw = _read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        ingest_raw(butler, raw, RUN, describe())
    with pytest.raises(DatasetNotFoundError):
        butler.get("raw", instrument=DEMOCAM, exposure=DEMO_EXPOSURE, detector=4, collections=RUN)
    shutil.copyfile(good, path)
    assert butler.stored(ingest_raw(butler, raw, RUN, describe()))


# Visits


def test_visit(good: Path, butler: Butler) -> None:
    raw = _read(good)
    ingest_raw(butler, raw, RUN, describe())
    assert define_visits(butler, [raw], describe()) == (DEMO_EXPOSURE,)
    (exposure,) = butler.query_dimension_records("exposure", instrument=DEMOCAM)
    (visit,) = butler.query_dimension_records("visit", instrument=DEMOCAM)
    assert (visit.id, visit.name) == (exposure.id, exposure.obs_id)
    for name in ("day_obs", "physical_filter", "timespan", "exposure_time", "seq_num", "target_name"):
        assert getattr(visit, name) == getattr(exposure, name)
    (definition,) = butler.query_dimension_records("visit_definition", instrument=DEMOCAM)
    assert (definition.exposure, definition.visit) == (exposure.id, visit.id)
    (membership,) = butler.query_dimension_records("visit_system_membership", instrument=DEMOCAM)
    assert (membership.visit_system, membership.visit) == (0, visit.id)
    (region,) = butler.query_dimension_records("visit_detector_region", instrument=DEMOCAM)
    assert region.detector == 4
    # The central detector is at the boresight, and the visit holds all of them.
    boresight = UnitVector3d(LonLat.fromDegrees(359.98, -12.4))
    assert _separation(region.region.getCentroid(), boresight) < 0.1
    whole = describe().focal_plane.regions(359.98, -12.4, 33.0)
    assert all(visit.region.contains(detector) for detector in whole.values())
    # Padded by 10 arcsec: pointings are off by a little.
    assert region.region.contains(describe().focal_plane.regions(359.98, -12.4, 33.0, padding=9.9)[4])
    assert define_visits(butler, [raw], describe()) == (DEMO_EXPOSURE,)  # twice is once


@needs_lsstcam
def test_lsstcam_visit(tmp_path: Path) -> None:
    """As the observatory's own software defined it, record by record, from the header to the visit."""
    repo = str(copy_lsstcam(tmp_path))
    with Butler.from_config(repo, writeable=False) as central:
        empty = Butler.makeRepo(str(tmp_path / "e"), dimensionConfig=central.dimensions.dimensionConfig)
        with Butler.from_config(empty, writeable=True) as child:
            for element in ("instrument", "detector", "visit_system", "physical_filter"):
                _copy(central, child, element)
            raw = RawExposure(Path("none"), _lsstcam_header())
            for element, record in exposure_records(child, raw).items():
                child.registry.insertDimensionData(element, record)
            for element in ("group", "day_obs"):
                assert _all(child, element) == _all(central, element)
            ((made_of_it,), (known_of_it,)) = _all(child, "exposure"), _all(central, "exposure")
            for key in ("begin", "end"):
                times = [getattr(e["timespan"], key) for e in (made_of_it, known_of_it)]
                assert abs((times[0] - times[1]).sec) < 1e-5
            floats = {k: pytest.approx(v, abs=1e-9) for k, v in known_of_it.items() if isinstance(v, float)}
            assert made_of_it == {**known_of_it, **floats, "timespan": made_of_it["timespan"]}
            # From here on with its very times, so that the visit's are the same.
            child.registry.insertDimensionData("exposure", known_of_it, replace=True)
            define_visits(child, [raw], lsstcam.describe())
            for element in ("visit", "visit_definition", "visit_system_membership"):
                assert _all(child, element) == _all(central, element)
            (made,) = child.query_dimension_records("visit_detector_region", instrument="LSSTCam")
            data_id = {"instrument": "LSSTCam", "visit": made.visit, "detector": 91}
            (known,) = central.query_dimension_records("visit_detector_region", data_id=data_id)
            assert _separation(made.region.getCentroid(), known.region.getCentroid()) < 0.1
            for corner, other in zip(_corners(made.region), _corners(known.region), strict=True):
                assert _separation(corner, other) < 1.0


def _lsstcam_header() -> ObservationInfo:
    """What LSSTCam's translator makes of the header of that exposure, with its units and time scales."""
    begin, end = Time(["2025-05-22T05:20:46.866998", "2025-05-22T05:21:17.808"], format="isot", scale="tai")
    return makeObservationInfo(
        instrument="LSSTCam",
        exposure_id=2025052100138,
        observation_id="MC_O_20250521_000138",
        detector_num=91,
        exposure_group="2025-05-22T05:18:32.763",
        observing_day=20250521,
        # Its days begin at 12:00 UTC, and are written as if that were TAI.
        observing_day_offset=TimeDelta(12 * 3600.0, format="sec", scale="tai"),
        observation_counter=138,
        group_counter_start=138,
        group_counter_end=138,
        observation_type="science",
        observation_reason="field_survey_science",
        object="Rubin_SV_225_-40",
        science_program="BLOCK-365",
        physical_filter="g_6",
        exposure_time=30.0 * u.s,
        dark_time=30.9415 * u.s,
        datetime_begin=begin,
        datetime_end=end,
        tracking_radec=SkyCoord(225.85827927603876, -38.6275010948895, unit="deg"),
        boresight_rotation_angle=Angle(357.9606420320256 * u.deg),
        altaz_begin=AltAz(az=239.68824087604298 * u.deg, alt=(90.0 - 20.7564315050746) * u.deg),
        has_simulated_content=False,
        can_see_sky=True,
    )


def _copy(source: Butler, target: Butler, element: str) -> None:
    records = source.query_dimension_records(element, instrument="LSSTCam", explain=False)
    target.registry.insertDimensionData(element, *records)


def _all(butler: Butler, element: str) -> list[dict[str, Any]]:
    records = butler.query_dimension_records(element, instrument="LSSTCam")
    return [{k: v for k, v in record.toDict().items() if k != "region"} for record in records]


def _corners(region: Any) -> list[UnitVector3d]:
    return sorted(region.getVertices(), key=lambda v: (round(v.x(), 4), round(v.y(), 4)))


def test_instant() -> None:
    """An exposure of no length, such as a bias, is a time span all the same."""
    assert not Timespan(day(DEMO_MJD), day(DEMO_MJD)).isEmpty()
