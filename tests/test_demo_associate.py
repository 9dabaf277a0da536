"""Association: new objects, known ones, movers, and what the APDB then has."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
import sqlalchemy
import yaml
from astropy.table import Table
from astropy.time import Time
from demo_support import SEED, Field, region_time_info, shared_field
from lsst.dax.apdb import Apdb

from ppd.demo.central import build_apdb, known_movers
from ppd.demo.matching import match_night
from ppd.demo.tasks.associate import AssociateApdbTask
from ppd.demo.tasks.database import open_apdb, retried

SUMMARY = {
    "begin_tai": "2026-11-24T01:00:00.000",
    "sky_tai": "2026-11-24T01:00:15.000",
    "exposure_time": 30.0,
}
MIDDLE = Time("2026-11-24T01:00:15", format="isot", scale="tai").mjd


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def apdb(field: Field) -> Apdb:
    return Apdb.from_uri(str(field.apdb_config))


def _stored(field: Field, number: int) -> Table:
    return field.get("dia_source_detector", field.observed[number])


def test_first_visit_makes_new_objects(field: Field) -> None:
    for number in (0, 1):
        stored = _stored(field, number)
        fixed = stored[stored["ssObjectId"] == 0]
        assert len(fixed) >= 4
        # A new object is called after its first source.
        assert (fixed["diaObjectId"] == fixed["diaSourceId"]).all()
        objects = field.get("dia_object_detector", field.observed[number])
        assert set(objects["diaObjectId"]) == set(fixed["diaObjectId"])
        assert (objects["nDiaSources"] == 1).all()


def test_second_visit_finds_them_again(field: Field) -> None:
    for detector in (4, 8):
        first, second = field.seen_by(detector)
        tables = []
        for observed in (first, second):
            table = field.get("dia_source_detector", observed)
            c = observed.conditions
            tables.append(match_night(c.group, c.exposure, detector, "r", table, observed.truth))
        # What changed and stays in place, on good pixels of both visits.
        lasting = [
            {(r["kind"], r["source"]) for r in t.truth if r["found"] and r["good"] and r["snr"] > 8}
            for t in tables
        ]
        expected = {key for key in lasting[0] & lasting[1] if key[0] != "mover"}
        assert len(expected) >= 3
        known = set(tables[0].detections["diaObjectId"]) - {0}
        again = known & set(tables[1].detections["diaObjectId"])
        assert len(again) >= len(expected)
        objects = field.get("dia_object_detector", second)
        assert (objects["nDiaSources"][np.isin(objects["diaObjectId"], list(again))] == 2).all()


def test_known_movers_get_their_id(field: Field) -> None:
    known = known_movers(field.sky, SEED)
    checked = 0
    for number, observed in enumerate(field.observed):
        stored = _stored(field, number)
        for row in observed.truth[observed.truth["kind"] == "mover"]:
            near = np.hypot(stored["x"] - row["x"], stored["y"] - row["y"]) < 3
            if not near.any() or row["snr"] < 10:
                continue
            checked += 1
            (source,) = stored[near]
            if known[row["source"]]:
                assert source["ssObjectId"] == 100_000 + row["source"]
                assert source["diaObjectId"] == 0
            else:
                assert source["ssObjectId"] == 0
                assert source["diaObjectId"] != 0
    assert checked >= 8


def test_apdb_has_what_the_datasets_say(field: Field, apdb: Apdb) -> None:
    for number, observed in enumerate(field.observed):
        visit, detector = observed.conditions.exposure, observed.detector
        assert apdb.containsVisitDetector(visit, detector, None, None)
        region = region_time_info(observed).region
        sources = apdb.getDiaSources(region, None, Time(field.night_mjd - 1, format="mjd", scale="tai"))
        objects = apdb.getDiaObjects(region)
        own = sources[(sources["visit"] == visit) & (sources["detector"] == detector)]
        stored = _stored(field, number)
        assert set(own["diaSourceId"]) == set(stored["diaSourceId"])
        by_id = own.set_index("diaSourceId")
        for row in stored:
            there = by_id.loc[int(row["diaSourceId"])]
            assert there["psfFlux"] == pytest.approx(row["psfFlux"], rel=1e-5)
            assert int(there["diaObjectId"] if row["diaObjectId"] else 0) == int(row["diaObjectId"])
            assert int(there["ssObjectId"] if row["ssObjectId"] else 0) == int(row["ssObjectId"])
        assert set(stored["diaObjectId"]) - {0} <= set(objects["diaObjectId"])
    assert not apdb.containsVisitDetector(observed.conditions.exposure + 1, 4, None, None)


def test_no_source_is_of_object_zero(field: Field) -> None:
    """What the tables call 0 is NULL in the APDB, where 0 would be an ID."""
    with sqlite3.connect(field.root / "apdb.db") as db:
        (total, zero, none) = db.execute(
            'SELECT count(*), sum("diaObjectId" = 0 OR "ssObjectId" = 0),'
            ' sum("diaObjectId" IS NULL OR "ssObjectId" IS NULL) FROM "DiaSource"'
        ).fetchone()
    assert (zero or 0, none) == (0, total)


def _candidates(*places: tuple[float, float], first_id: int = 1000) -> Table:
    n = len(places)
    table = Table(
        {
            "diaSourceId": np.arange(first_id, first_id + n, dtype=np.int64),
            "ra": [p[0] for p in places],
            "dec": [p[1] for p in places],
        }
    )
    for name in ("x", "y", "psfFlux", "psfFluxErr", "psfChi2", "snr", "templateFlux", "scienceFlux"):
        table[name] = np.full(n, 100.0)
    table["psfNdata"] = np.full(n, 169, dtype=np.int32)
    table["isNegative"] = table["isDipole"] = table["nearMasked"] = np.zeros(n, dtype=bool)
    table["reliability"] = np.full(n, 0.9)
    return table


def _objects(*places: tuple[float, float], first_id: int, seen: int = 3) -> Table:
    n = len(places)
    return Table(
        {
            "diaObjectId": np.arange(first_id, first_id + n, dtype=np.int64),
            "ra": [p[0] for p in places],
            "dec": [p[1] for p in places],
            "nDiaSources": np.full(n, seen, dtype=np.int32),
            "firstDiaSourceMjdTai": np.full(n, MIDDLE - 20.0),
            "lastDiaSourceMjdTai": np.full(n, MIDDLE - 3.0),
        }
    )


def _movers(ra: float, dec: float, *, hours: float = 0.0, rate: float = 36.0) -> Table:
    """One mover, predicted for some hours before the exposure."""
    return Table(
        {
            "ssObjectId": np.array([100_007], dtype=np.int64),
            "ra": [ra],
            "dec": [dec],
            "pm_ra_cosdec": [0.0],
            "pm_dec": [rate],
            "mjd_tai": [MIDDLE - hours / 24.0],
            "uncertainty_arcsec": [0.3],
        }
    )


@pytest.fixture(scope="module")
def own_apdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_apdb(tmp_path_factory.mktemp("apdb"))


def _associate(own_apdb: Path, candidates: Table, objects: Table | None, movers: Table | None, visit: int):
    config = AssociateApdbTask.ConfigClass()
    config.apdbConfigUrl = str(own_apdb)
    task = AssociateApdbTask(config=config)
    return task.run(candidates, SUMMARY, objects, movers, visit=visit, detector=1, band="r")


def test_mean_position_across_zero(own_apdb: Path) -> None:
    """The mean of 359.9999 and 0.0001 is not 180."""
    second = 1.0 / 3600.0
    result = _associate(
        own_apdb,
        _candidates((0.2 * second, -12.0)),
        _objects((360.0 - 0.2 * second, -12.0 - 0.4 * second), first_id=70, seen=1),
        None,
        visit=1,
    )
    assert result.sources["diaObjectId"][0] == 70
    (updated,) = result.updated
    assert (updated["ra"] + 180.0) % 360.0 == pytest.approx(180.0, abs=1e-9)
    assert updated["dec"] == pytest.approx(-12.0 - 0.2 * second, abs=1e-9)
    assert updated["nDiaSources"] == 2
    assert updated["firstDiaSourceMjdTai"] == pytest.approx(MIDDLE - 20.0)
    assert updated["lastDiaSourceMjdTai"] == pytest.approx(MIDDLE, abs=1e-8)


def test_two_sources_do_not_share_an_object(own_apdb: Path) -> None:
    second = 1.0 / 3600.0
    sources = _candidates((10.0, -12.0), (10.0, -12.0 + 0.8 * second), first_id=2000)
    result = _associate(own_apdb, sources, _objects((10.0, -12.0), first_id=80), None, visit=2)
    assert list(result.sources["diaObjectId"]) == [80, 2001]


def test_two_sources_do_not_share_a_mover(own_apdb: Path) -> None:
    second = 1.0 / 3600.0
    sources = _candidates((10.0, -12.0), (10.0, -12.0 + 2.0 * second), first_id=3000)
    result = _associate(own_apdb, sources, None, _movers(10.0, -12.0), visit=3)
    assert list(result.sources["ssObjectId"]) == [100_007, 0]
    assert list(result.sources["diaObjectId"]) == [0, 3001]


def test_movers_move_on_from_the_announced_time(own_apdb: Path) -> None:
    place = (10.0, -12.0 + 9.0 / 3600.0)  # a quarter of an hour at 36 arcsec per hour
    for visit, hours, identity in ((4, 0.25, 100_007), (5, 0.0, 0)):
        sources = _candidates(place, first_id=1000 * visit)
        result = _associate(own_apdb, sources, None, _movers(10.0, -12.0, hours=hours), visit=visit)
        assert result.sources["ssObjectId"][0] == identity


def test_what_is_not_reliable_is_dropped(own_apdb: Path) -> None:
    sources = _candidates((10.0, -12.0), (11.0, -12.0), first_id=6000)
    sources["reliability"] = [0.49, 0.51]
    result = _associate(own_apdb, sources, None, None, visit=6)
    assert list(result.sources["diaSourceId"]) == [6001]


def test_nothing_is_stored_of_nothing(own_apdb: Path) -> None:
    """A second attempt is allowed only while the APDB has nothing of the image."""
    result = _associate(own_apdb, _candidates(), None, None, visit=7)
    assert len(result.sources) == len(result.updated) == 0
    assert not open_apdb(str(own_apdb)).containsVisitDetector(7, 1, None, None)


def test_the_apdb_is_opened_once(own_apdb: Path) -> None:
    slow = yaml.SafeLoader
    assert open_apdb(str(own_apdb)) is open_apdb(str(own_apdb))
    assert yaml.SafeLoader is slow


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    """A database that does not wait for a lock by itself."""
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path / 'some.db'}", poolclass=sqlalchemy.NullPool, connect_args={"timeout": 0.01}
    )
    with engine.begin() as db:
        db.execute(sqlalchemy.text("CREATE TABLE some (value INTEGER)"))
    yield engine
    engine.dispose()


def _insert(engine: sqlalchemy.Engine, how: str) -> None:
    with engine.begin() as db:
        if how == "pandas":
            pandas.DataFrame({"value": [1]}).to_sql("some", db, if_exists="append", index=False)
        else:
            db.execute(sqlalchemy.text("INSERT INTO some VALUES (1)"))


@pytest.mark.parametrize("how", ["pandas", "sqlalchemy"])
def test_a_locked_database_is_waited_for(engine: sqlalchemy.Engine, how: str) -> None:
    other = sqlite3.connect(engine.url.database, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises((sqlalchemy.exc.OperationalError, pandas.errors.DatabaseError), match="locked"):
        _insert(engine, how)
    release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    release.start()
    try:
        retried(lambda: _insert(engine, how))
    finally:
        release.join(10.0)
        other.close()
    with engine.begin() as db:
        assert db.execute(sqlalchemy.text("SELECT count(*) FROM some")).scalar() == 1


def test_another_fault_is_not_waited_for(engine: sqlalchemy.Engine) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        with engine.begin() as db:
            db.execute(sqlalchemy.text("INSERT INTO other VALUES (1)"))

    with pytest.raises(sqlalchemy.exc.OperationalError, match="no such table"):
        retried(call)
    assert len(calls) == 1
