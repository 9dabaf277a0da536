"""A short `make soak-night`, and that its verdict would see what it is there to see."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from bench.soak_night import KEYS, Bounds, Night, faults_of, soak
from bench.soak_verdict import Verdict, judge

pytestmark = pytest.mark.slow

_VISITS, _DETECTORS = 6, 3


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("soak")
    return soak(folder, visits=_VISITS, detectors=_DETECTORS, seed=9, say=print)


def _judge(night: Night) -> Verdict:
    return judge(night.site, night.play.fates, night.play.executioner)


@pytest.fixture
def change(night: Night) -> Iterator[Callable[[str, str], None]]:
    """Change one of the night's databases with SQL; it is put right again afterwards."""
    before: dict[Path, bytes] = {}

    def execute(name: str, statement: str) -> None:
        path = night.site.folder / name
        before.setdefault(path, path.read_bytes())
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute(statement).rowcount > 0
            database.commit()

    yield execute
    for path, content in before.items():
        path.write_bytes(content)


def test_every_detector_visit_ends_in_one_known_state(night: Night) -> None:
    figures = night.figures
    assert tuple(figures) == (*KEYS, "detail")
    # How a process of a few visits grows says nothing.
    assert faults_of(figures, Bounds(rss_mb=200.0, fds=100)) == []
    assert figures["detector_visits"] == _VISITS * _DETECTORS
    assert figures["succeeded"] + figures["failed_expected"] == _VISITS * _DETECTORS
    assert figures["bad_raws"] > 0
    assert figures["killed"] > 0
    assert figures["succeeded"] > _VISITS
    assert figures["detail"]["replies"]["accepted"] == _VISITS * _DETECTORS


def test_the_verdict_sees_what_is_lost(night: Night, change: Callable[[str, str], None]) -> None:
    change(
        "state/journal.sqlite3",
        "UPDATE detector_visit SET state='running' WHERE rowid ="
        " (SELECT min(rowid) FROM detector_visit WHERE state='exported')",
    )
    (lost,) = _judge(night).lost
    assert "running" in lost


def test_the_verdict_sees_an_undue_failure(night: Night, change: Callable[[str, str], None]) -> None:
    group, detector = next(k for k, f in night.play.fates.items() if f.plan.kind == "good")
    change(
        "state/journal.sqlite3",
        f"UPDATE detector_visit SET state='failed' WHERE group_name='{group}' AND detector={detector}",
    )
    assert any("it had to succeed" in line or "does not say so" in line for line in _faults(_judge(night)))


def test_the_verdict_sees_what_is_stored_twice(night: Night, change: Callable[[str, str], None]) -> None:
    other = '("diaSourceId" >> 12) != (SELECT max("diaSourceId" >> 12) FROM "DiaSource")'
    where = f'SELECT max("diaSourceId") FROM "DiaSource" WHERE {other}'
    change("apdb.db", f'UPDATE "DiaSource" SET "diaSourceId" = 4096 WHERE "diaSourceId" = ({where})')
    (twice,) = _judge(night).duplicated
    assert "the APDB has it 2 times" in twice


def test_the_verdict_sees_what_central_lacks(night: Night) -> None:
    with Butler.from_config(str(night.site.central), writeable=False) as butler:
        ref = butler.query_datasets("soak_image", collections="DemoCam/prompt/*", find_first=False)[0]
        path = Path(butler.getURI(ref).ospath)
    moved = path.rename(path.with_name("astray"))
    try:
        orphans = _judge(night).orphans
    finally:
        moved.rename(path)
    assert len(orphans) == 2
    assert "is not there" in orphans[0]
    assert "astray is no dataset's" in orphans[1]


def _faults(verdict: Verdict) -> list[str]:
    return [*verdict.lost, *verdict.wrong, *verdict.inconsistent]
