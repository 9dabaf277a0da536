"""The journal: what is accepted is durable, what can't be written is held, old files are refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ppd.errors import ConfigurationError, JournalError
from ppd.supervisor.journal import Journal

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


def test_of_another_version(path: Path) -> None:
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigurationError, match="has schema 99"):
        Journal(path)


def test_not_a_database(path: Path) -> None:
    path.write_text("dear diary, " * 1000)
    with pytest.raises(ConfigurationError, match="can't be used"):
        Journal(path)
