"""Pre-processing: predicted movers, and what the APDB knows of a region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.time import Time, TimeDelta
from demo_support import SEED, Field, region_time_info, shared_field
from lsst.daf.butler import Timespan
from lsst.pipe.base.utils import RegionTimeInfo
from lsst.sphgeom import LonLat, UnitVector3d

from ppd.demo.camera import INSTRUMENT
from ppd.demo.central import build_apdb, known_movers
from ppd.demo.tasks.preprocess import OBJECT_COLUMNS, SOURCE_COLUMNS, LoadDiaCatalogsTask, PredictMoversTask


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


def _separation(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Small angles, arcsec."""
    x = ((ra - ra0 + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec0))
    return np.hypot(x, dec - dec0) * 3600.0


def test_movers_are_predicted_where_they_are(field: Field) -> None:
    known = known_movers(field.sky, SEED)
    total = 0
    for observed in field.observed:
        predicted = field.get("preloaded_ss_objects", observed)
        ra, dec = field.sky.mover_positions(observed.conditions.middle_mjd)
        for row in predicted:
            index = int(row["ssObjectId"]) - 100_000
            assert known[index]
            assert _separation(ra[index], dec[index], row["ra"], row["dec"]) < 1.5
        total += len(predicted)
        # And none that is on the detector is missing.
        here = observed.truth[(observed.truth["kind"] == "mover") & observed.truth["known"]]
        assert {100_000 + int(i) for i in here["source"]} <= set(predicted["ssObjectId"])
    assert total >= 6


def test_only_movers_of_the_region(field: Field) -> None:
    orbits = field.butler.get("solar_system_orbits", collections=f"{INSTRUMENT}/defaults")
    info = region_time_info(field.observed[0])
    task = PredictMoversTask(config=PredictMoversTask.ConfigClass())
    predicted = task.run(info, orbits).predicted
    assert 0 < len(predicted) < len(orbits)
    for row in predicted:
        assert 0 <= row["ra"] < 360
        place = UnitVector3d(LonLat.fromDegrees(float(row["ra"]), float(row["dec"])))
        assert info.region.contains(place)
    middle = field.observed[0].conditions.middle_mjd
    assert np.asarray(predicted["mjd_tai"]) == pytest.approx(middle, abs=1e-6)


def test_movers_leave_the_region_with_time(field: Field) -> None:
    """A day is many detectors: hardly one is still there."""
    orbits = field.butler.get("solar_system_orbits", collections=f"{INSTRUMENT}/defaults")
    info = region_time_info(field.observed[0])
    later = info.timespan.begin + TimeDelta(1.0, format="jd")
    task = PredictMoversTask(config=PredictMoversTask.ConfigClass())
    now = set(task.run(info, orbits).predicted["ssObjectId"])
    span = Timespan(later, later + TimeDelta(30.0, format="sec"))
    then = task.run(RegionTimeInfo(region=info.region, timespan=span), orbits).predicted
    assert not now & set(then["ssObjectId"])


def test_an_empty_apdb_gives_empty_tables(field: Field, tmp_path: Path) -> None:
    config = LoadDiaCatalogsTask.ConfigClass()
    config.apdbConfigUrl = str(build_apdb(tmp_path))
    task = LoadDiaCatalogsTask(config=config)
    result = task.run(region_time_info(field.observed[0]))
    assert (len(result.objects), len(result.sources)) == (0, 0)
    assert tuple(result.objects.colnames) == OBJECT_COLUMNS
    assert tuple(result.sources.colnames) == SOURCE_COLUMNS


def test_first_visit_knew_nothing_and_the_second_the_first(field: Field) -> None:
    for detector in (4, 8):
        first, second = field.seen_by(detector)
        before, after = (field.get("preloaded_dia_objects", o) for o in (first, second))
        assert before.colnames == after.colnames
        own = set(field.get("dia_object_detector", first)["diaObjectId"])
        assert not own & set(before["diaObjectId"])
        inside = own & set(after["diaObjectId"])
        # The pointing is dithered: a few at the edge are in another region.
        assert len(inside) >= len(own) - 2
        sources = field.get("preloaded_dia_sources", second)
        assert inside <= set(sources["diaObjectId"])
        assert set(sources["visit"]) == {first.conditions.exposure}


def test_tables_have_the_same_kinds_with_and_without_rows(field: Field) -> None:
    first, second = field.seen_by(4)
    for name in ("preloaded_dia_objects", "preloaded_dia_sources"):
        empty, full = field.get(name, first), field.get(name, second)
        assert len(empty) == 0
        assert len(full) > 0
        assert [empty[c].dtype.kind for c in empty.colnames] == [full[c].dtype.kind for c in full.colnames]


def test_sources_after_the_visit_are_not_history(field: Field) -> None:
    """A look back from before the first visit finds objects without a past."""
    config = LoadDiaCatalogsTask.ConfigClass()
    config.apdbConfigUrl = str(field.apdb_config)
    info = region_time_info(field.observed[0])
    later = Time(field.night_mjd + 800.0, format="mjd", scale="tai")
    far = RegionTimeInfo(region=info.region, timespan=Timespan(later, later + TimeDelta(30.0, format="sec")))
    task = LoadDiaCatalogsTask(config=config)
    assert len(task.run(info).sources) > 0
    # The APDB keeps a year's history for alerts.
    assert len(task.run(far).sources) == 0
