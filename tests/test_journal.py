"""The journal: what is accepted is durable, what can't be written is held, old files are refused."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from ppd.deployment import day_obs
from ppd.errors import ConfigurationError, JournalError
from ppd.supervisor import journal_schema
from ppd.supervisor.journal import Journal
from ppd.visit import TAI_MINUS_UTC

MESSAGE = {"groupId": "g", "nimages": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


def _rows(path: Path, query: str) -> list[Any]:
    with sqlite3.connect(path) as db:
        return db.execute(query).fetchall()


def _accept_and_die(path: str) -> None:
    journal = Journal(Path(path))
    journal.visit_accepted("Cam", "g", [1, 2, 3], MESSAGE, "test")
    journal.state("Cam", "g", 1, "running", attempt=1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_accepted_is_durable_at_once(path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_accept_and_die, args=(str(path),))
    process.start()
    process.join(30.0)
    assert process.exitcode == -signal.SIGKILL
    journal = Journal(path)
    (left,) = journal.unfinished()
    assert (left.instrument, left.group, left.message) == ("Cam", "g", MESSAGE)
    assert left.detectors == (1, 2, 3)
    # The change of state was not committed: it is lost, and that is allowed.
    assert _rows(path, "SELECT DISTINCT state FROM detector_visit") == [("accepted",)]
    journal.close()


def test_unfinished_tells_handed_over_apart(path: Path) -> None:
    journal = Journal(path)
    journal.visit_accepted("Cam", "one", [1, 2, 3, 4], MESSAGE, "test")
    journal.visit_accepted("Cam", "two", [1], MESSAGE, "test")
    journal.visit_accepted("Cam", "three", [9], MESSAGE, "test")
    for detector, state in ((1, "exported"), (2, "failed"), (3, "handed_over"), (4, "running")):
        journal.state("Cam", "one", detector, state, attempt=1)
    journal.state("Cam", "two", 1, "exported", attempt=2, pipeline="Ap", reason="because")
    journal.commit()
    found = {left.group: (left.detectors, left.handed_over) for left in journal.unfinished()}
    assert found == {"one": ((4,), (3,)), "three": ((9,), ())}
    assert _rows(path, "SELECT attempt, pipeline, reason FROM detector_visit WHERE group_name='two'") == [
        (2, "Ap", "because")
    ]
    assert journal.known_detectors("Cam", "one") == {1, 2, 3, 4}
    assert journal.known_detectors("Other", "one") == set()
    journal.close()


def test_accepting_again_changes_nothing(path: Path) -> None:
    journal = Journal(path)
    journal.visit_accepted("Cam", "g", [1], MESSAGE, "test")
    journal.state("Cam", "g", 1, "exported", attempt=1)
    journal.visit_accepted("Cam", "g", [1, 2], MESSAGE, "test")
    journal.commit()
    (left,) = journal.unfinished()
    assert left.detectors == (2,)
    journal.close()


def test_what_can_not_be_written_is_held(path: Path) -> None:
    """While another process locks the file, which is what a disk error looks like from here."""
    journal = Journal(path)
    journal.visit_accepted("Cam", "g", [1], MESSAGE, "test")
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    journal._db.execute("PRAGMA busy_timeout=50")
    journal.state("Cam", "g", 1, "running", attempt=1)
    journal.event("Cam", "g", 1, "first_task", {"task": "isr"}, 12.5)
    journal.commit()
    assert journal.trouble is not None
    assert "locked" in journal.trouble
    with pytest.raises(JournalError, match="can't be written"):
        journal.visit_accepted("Cam", "late", [1], MESSAGE, "test")
    locker.execute("ROLLBACK")
    locker.close()
    journal.visit_accepted("Cam", "later", [1], MESSAGE, "test")
    assert journal.trouble is None
    assert _rows(path, "SELECT state FROM detector_visit WHERE group_name='g'") == [("running",)]
    assert _rows(path, "SELECT t, detail FROM event WHERE name='first_task'") == [(12.5, '{"task": "isr"}')]
    assert _rows(path, "SELECT group_name FROM visit ORDER BY accepted") == [("g",), ("later",)]
    journal.close()


def test_night_and_deployment_of_the_acceptance(path: Path) -> None:
    journal = Journal(path)
    journal.visit_accepted("Cam", "g", [1], MESSAGE, "test", day_obs=20261123, deployment="abc1234")
    # Others of its detectors come after noon.
    journal.visit_accepted("Cam", "g", [2], MESSAGE, "test", day_obs=20261124, deployment="def5678")
    journal.visit_accepted("Cam", "h", [1], MESSAGE, "test")
    first, second = journal.unfinished()
    assert (first.day_obs, first.deployment, first.detectors) == (20261123, "abc1234", (1, 2))
    assert (second.day_obs, second.deployment) == (day_obs(time.time()), "")
    journal.close()


def test_each_change_of_state_with_its_time(path: Path) -> None:
    journal = Journal(path)
    begin = time.time()
    journal.visit_accepted("Cam", "g", [1], MESSAGE, "test")
    for state in ("waiting", "forked", "ready", "running"):
        journal.state("Cam", "g", 1, state, attempt=1)
    journal.state("Cam", "g", 1, "failed", attempt=1, reason="no stars")
    journal.commit()
    rows = _rows(path, "SELECT t, detail FROM event WHERE name='state' AND group_name='g' ORDER BY id")
    details = [json.loads(detail) for _, detail in rows]
    assert [d["to"] for d in details] == ["waiting", "forked", "ready", "running", "failed"]
    assert details[-1] == {"to": "failed", "attempt": 1, "reason": "no stars"}
    times = [t for t, _ in rows]
    assert begin <= times[0] <= times[-1] <= time.time()
    assert times == sorted(times)
    journal.close()


def test_of_a_visit_that_it_does_not_have_nothing_is_noted(path: Path) -> None:
    journal = Journal(path)
    journal.event("Cam", "unheard-of", 1, "exported", {"datasets": 3})
    journal.state("Cam", "unheard-of", 1, "exported", attempt=1)
    journal.commit()
    assert journal.trouble is None
    assert journal.state_of("Cam", "unheard-of", 1) is None
    assert _rows(path, "SELECT count(*) FROM note") == [(0,)]
    journal.close()


# Files of other versions

_SCHEMA_1 = """
CREATE TABLE visit (
    instrument TEXT NOT NULL, group_name TEXT NOT NULL, message TEXT NOT NULL,
    source TEXT NOT NULL, accepted REAL NOT NULL, PRIMARY KEY (instrument, group_name));
CREATE TABLE detector_visit (
    instrument TEXT NOT NULL, group_name TEXT NOT NULL, detector INTEGER NOT NULL,
    state TEXT NOT NULL, attempt INTEGER NOT NULL, pipeline TEXT, reason TEXT, updated REAL NOT NULL,
    PRIMARY KEY (instrument, group_name, detector));
CREATE TABLE event (
    id INTEGER PRIMARY KEY, t REAL NOT NULL, instrument TEXT NOT NULL, group_name TEXT NOT NULL,
    detector INTEGER, name TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX event_of ON event (group_name, detector);
CREATE INDEX detector_visit_state ON detector_visit (state);
PRAGMA user_version=1;
"""
_EVENTS_1 = [
    (3, 1.5, "Cam", "new", None, "accepted", '{"source": "control"}'),
    (4, 2.5, "Cam", "new", 2, "forked", '{"pid": 12}'),
    (7, 0.5, "Cam", "old", 1, "exported", '{"datasets": 5}'),
]


@pytest.fixture
def old(path: Path) -> Path:
    """A file as ppd made it before there were steps."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_SCHEMA_1)
        noon = 1_795_521_600.0 - TAI_MINUS_UTC  # 2026-11-24T12:00 TAI
        visits = [("Cam", "new", noon), ("Cam", "old", noon - 0.01), ("Mac", "new", noon + 9.0)]
        for instrument, group, accepted in visits:
            row = (instrument, group, '{"groupId": "g"}', "control", accepted)
            db.execute("INSERT INTO visit VALUES (?, ?, ?, ?, ?)", row)
        for instrument, group, detector, state in (
            ("Cam", "old", 1, "exported"),
            ("Cam", "new", 1, "handed_over"),
            ("Cam", "new", 2, "running"),
        ):
            db.execute(
                "INSERT INTO detector_visit VALUES (?, ?, ?, ?, 2, 'Ap', 'why', 7.5)",
                (instrument, group, detector, state),
            )
        db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", _EVENTS_1)
    return path


def _version(path: Path) -> int:
    return int(_rows(path, "PRAGMA user_version")[0][0])


def test_older_file_is_brought_up_to_date(old: Path) -> None:
    journal = Journal(old)
    assert _version(old) == journal_schema.SCHEMA_VERSION == 2
    (left,) = journal.unfinished()
    assert (left.group, left.detectors, left.handed_over) == ("new", (2,), (1,))
    assert (left.day_obs, left.deployment) == (20261124, "")
    assert left.day_obs == day_obs(left.accepted)
    nights = _rows(old, "SELECT instrument, group_name, day_obs FROM visit ORDER BY instrument, group_name")
    assert nights == [("Cam", "new", 20261124), ("Cam", "old", 20261123), ("Mac", "new", 20261124)]
    columns = "id, t, instrument, group_name, detector, name, detail"
    assert _rows(old, f"SELECT {columns} FROM event ORDER BY id") == _EVENTS_1
    # It goes on where it was.
    journal.state("Cam", "new", 2, "exported", attempt=2)
    journal.visit_accepted("Cam", "next", [1], MESSAGE, "test")
    assert journal.state_of("Cam", "new", 2) == ("exported", "")
    assert journal.known_detectors("Cam", "new") == {1, 2}
    journal.close()
    Journal(old).close()


def test_step_that_fails_leaves_the_file_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the step had done already, and the steps before it hold."""
    first, second = journal_schema.STEPS
    with monkeypatch.context() as patch:
        patch.setattr(journal_schema, "STEPS", (first, (*second, "INSERT INTO nowhere VALUES (1)")))
        with pytest.raises(ConfigurationError, match="from schema 1 to 2: no such table: nowhere"):
            Journal(old)
    assert _version(old) == 1
    assert _rows(old, "SELECT * FROM event ORDER BY id") == _EVENTS_1
    assert _rows(old, "SELECT count(*) FROM visit") == [(3,)]
    with monkeypatch.context() as patch:
        patch.setattr(journal_schema, "STEPS", (first, second, ("CREATE TABLE more (x)", "DROP TABLE none")))
        with pytest.raises(ConfigurationError, match="from schema 2 to 3"):
            Journal(old)
    assert _version(old) == 2
    journal = Journal(old)
    assert [left.group for left in journal.unfinished()] == ["new"]
    assert _rows(old, "SELECT name FROM sqlite_master WHERE name='more'") == []
    journal.close()


def test_step_that_finds_no_room(old: Path) -> None:
    """A file that may not grow: the old one is whole, and serves once there is room."""
    pages = _rows(old, "PRAGMA page_count")[0][0]
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ConfigurationError, match=r"full.*It is unchanged"):
            journal_schema.migrate(db, str(old))
        assert journal_schema.schema_version(db) == 1
    journal = Journal(old)
    assert journal.known_detectors("Cam", "old") == {1}
    journal.close()


def test_of_a_newer_version(path: Path) -> None:
    journal = Journal(path)
    journal.visit_accepted("Cam", "g", [1], MESSAGE, "test")
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="has schema 99, of a newer ppd; this one knows 2"):
        Journal(path)
    assert path.read_bytes() == before


def test_not_a_database(path: Path) -> None:
    path.write_text("dear diary, " * 1000)
    with pytest.raises(ConfigurationError, match="can't be used"):
        Journal(path)


def test_accepted_again(path: Path) -> None:
    """Durable at once, with the message that a start takes up; before, all is told that may forbid it."""
    journal = Journal(path)
    assert journal.find("Cam", "g") is None
    journal.visit_accepted("Cam", "g", [1, 2, 3], MESSAGE, "test")
    for detector, uri in ((1, "/raws/a"), (1, "/raws/b"), (1, "/raws/a"), (2, "/raws/c")):
        journal.event("Cam", "g", detector, "raw_seen", {"uri": uri})
    journal.event("Cam", "g", 2, "exported", {"datasets": 7})
    for detector, attempt in ((1, 2), (2, 1)):
        journal.state("Cam", "g", detector, "failed", attempt=attempt, pipeline="Ap", reason="because")
    journal.commit()
    found = journal.find("Cam", "g")
    assert found is not None and found.message == MESSAGE
    assert found.detectors == {
        1: ("failed", 2, 0, ("/raws/a", "/raws/b")),
        2: ("failed", 1, 7, ("/raws/c",)),
        3: ("accepted", 1, 0, ()),
    }
    journal.accepted_again("Cam", "g", {**MESSAGE, "nimages": 2}, {1: 3}, "mended")
    other = Journal(path)  # as a start would
    (left,) = other.unfinished()
    assert (left.message["nimages"], left.detectors, left.attempts) == (2, (1, 3), {1: 3, 3: 1})
    assert _rows(path, "SELECT detail FROM event WHERE name='retry_asked'") == [
        ('{"attempt": 3, "reason": "mended"}',)
    ]
    assert _rows(path, "SELECT pipeline, reason FROM detector_visit WHERE detector=1") == [("Ap", None)]
    other.close()
    journal.close()
