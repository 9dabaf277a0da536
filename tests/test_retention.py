"""Old nights are forgotten, and nothing that anybody may still ask for."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_visit import message

from ppd.config import Settings
from ppd.deployment import day_obs
from ppd.supervisor.journal import Journal
from ppd.supervisor.retention import Retention
from ppd.supervisor.setting_kinds import SettingsInForce, in_force
from ppd.supervisor.spool import make_folders
from ppd.visit import TAI_MINUS_UTC

DAY = 86400.0
START = 1_794_970_000.0
NIGHTS = 3


class Clock:
    """A clock that the test moves: the wall's, and the one that pauses are measured by."""

    def __init__(self) -> None:
        self.now = START
        self._begin = time.monotonic()

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self._begin + self.now - START


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("journal", "retention"):
        monkeypatch.setattr(f"ppd.supervisor.{module}.time", clock)
    return clock


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    fields = {
        "instrument": "DemoCam",
        "central_repo": "x",
        "main_pipelines": [{"pipelines": ["Isr.yaml"]}],
        "state_dir": tmp_path,
        "history_nights": NIGHTS,
        "message_expiration": 3600.0,
    }
    settings = Settings.model_validate(fields)
    make_folders(settings.spool_dir)
    return settings


@pytest.fixture
def journal(settings: Settings, clock: Clock) -> Iterator[Journal]:
    journal = Journal(settings.state_dir / "journal.sqlite3")
    yield journal
    journal.close()


def _visit(journal: Journal, clock: Clock, group: str, *states: str, events: int = 5, **changes: Any) -> None:
    """Have a visit with a detector in each of some states."""
    stamp = {"private_sndStamp": clock.now + TAI_MINUS_UTC}
    announced = message(**{"groupId": group, **stamp, **changes})
    journal.visit_accepted("DemoCam", group, range(len(states)), announced, "test")
    for detector, state in enumerate(states):
        for number in range(events):
            journal.event("DemoCam", group, detector, "first_task", {"number": number, "text": "x" * 50})
        journal.state("DemoCam", group, detector, state, attempt=1)
    journal.commit()


def _groups(settings: Settings) -> list[str]:
    with sqlite3.connect(settings.state_dir / "journal.sqlite3") as db:
        return [g for (g,) in db.execute("SELECT group_name FROM visit ORDER BY accepted")]


def _count(settings: Settings, table: str) -> int:
    with sqlite3.connect(settings.state_dir / "journal.sqlite3") as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _turns(retention: Retention, clock: Clock, seconds: float = 7200.0) -> None:
    """Let the loop turn for a while, often enough for each bite."""
    end = clock.now + seconds
    while clock.now < end:
        retention.turn()
        clock.now += 0.25


def test_old_nights_are_forgotten(journal: Journal, settings: Settings, clock: Clock) -> None:
    retention = Retention(journal, settings)
    for night in range(6):
        clock.now = START + night * DAY
        _visit(journal, clock, f"over-{night}", "exported", "failed")
    # The sixth night, and the three before it.
    _turns(retention, clock)
    assert _groups(settings) == ["over-2", "over-3", "over-4", "over-5"]
    assert retention.forgotten == 2
    assert _count(settings, "detector_visit") == 8
    assert _count(settings, "note") == 4 * (1 + 2 * 6)
    assert journal.known_detectors("DemoCam", "over-0") == set()
    assert journal.known_detectors("DemoCam", "over-2") == {0, 1}


@pytest.mark.parametrize("state", ["accepted", "waiting", "running", "handed_over"])
def test_what_is_unfinished_stays(journal: Journal, settings: Settings, clock: Clock, state: str) -> None:
    retention = Retention(journal, settings)
    _visit(journal, clock, "left", "exported", state)
    _visit(journal, clock, "over", "exported")
    clock.now += 100 * DAY
    _turns(retention, clock)
    assert _groups(settings) == ["left"]
    assert [left.group for left in journal.unfinished()] == ["left"]
    # Once it is over, it goes the way of the others.
    journal.state("DemoCam", "left", 1, "failed", attempt=1)
    journal.commit()
    _turns(retention, clock)
    assert _groups(settings) == []


def test_what_may_come_again_and_be_fresh_stays(journal: Journal, settings: Settings, clock: Clock) -> None:
    """A message that was stamped ahead of its time is known until it expires."""
    retention = Retention(journal, settings)
    ahead = clock.now + 10 * DAY + TAI_MINUS_UTC
    _visit(journal, clock, "ahead", "exported", private_sndStamp=ahead)
    clock.now += 10 * DAY
    _turns(retention, clock, 60.0)
    assert _groups(settings) == ["ahead"]
    clock.now += 3600.0
    _turns(retention, clock)
    assert _groups(settings) == []


def test_a_reload_counts(journal: Journal, settings: Settings, clock: Clock) -> None:
    """What is kept is decided by the settings in force, whatever they were at the start."""
    settings_now = SettingsInForce(settings.model_copy(update={"history_nights": 30}))
    retention = Retention(journal, in_force(settings_now))
    _visit(journal, clock, "old", "exported")
    clock.now += 10 * DAY
    _turns(retention, clock)
    assert _groups(settings) == ["old"]
    settings_now.replace(settings)
    _turns(retention, clock)
    assert _groups(settings) == []


def test_long_expiration(journal: Journal, settings: Settings, clock: Clock) -> None:
    settings = settings.model_copy(update={"message_expiration": 50 * DAY})
    retention = Retention(journal, settings)
    _visit(journal, clock, "known", "exported")
    clock.now += 49 * DAY
    _turns(retention, clock)
    assert journal.known_detectors("DemoCam", "known") == {0}
    clock.now += 2 * DAY
    _turns(retention, clock)
    assert _groups(settings) == []


def test_what_has_a_dead_letter_stays(journal: Journal, settings: Settings, clock: Clock) -> None:
    retention = Retention(journal, settings)
    _visit(journal, clock, "dead", "failed")
    _visit(journal, clock, "dead-and-buried", "failed")
    letter = settings.spool_dir / "dead-letters" / "DemoCam-dead-0-1~2"
    letter.mkdir()
    clock.now += 10 * DAY
    _turns(retention, clock)
    assert _groups(settings) == ["dead"]
    letter.rmdir()
    _turns(retention, clock)
    assert _groups(settings) == []


def test_bites_are_small(journal: Journal, settings: Settings, clock: Clock) -> None:
    """A visit of a large camera goes in many; a supervisor that ends between two goes on with it."""
    _visit(journal, clock, "large", *["exported"] * 189, events=20)
    clock.now += 10 * DAY
    before = _count(settings, "note")
    retention = Retention(journal, settings)
    retention.turn()
    assert 0 < before - _count(settings, "note") <= 2000
    assert _count(settings, "visit") == 1
    assert _count(settings, "detector_visit") == 189
    _turns(Retention(journal, settings), clock)
    assert [_count(settings, t) for t in ("visit", "detector_visit", "note")] == [0, 0, 0]


def test_not_while_the_disk_is_in_trouble(journal: Journal, settings: Settings, clock: Clock) -> None:
    _visit(journal, clock, "over", "exported")
    clock.now += 10 * DAY
    retention = Retention(journal, settings)
    journal.trouble = "disk full"
    _turns(retention, clock)
    assert _groups(settings) == ["over"]
    journal.trouble = None
    _turns(retention, clock)
    assert _groups(settings) == []


def test_the_file_stops_growing(journal: Journal, settings: Settings, clock: Clock) -> None:
    retention = Retention(journal, settings)
    path = settings.state_dir / "journal.sqlite3"
    sizes = []
    for night in range(5 * NIGHTS):
        clock.now = START + night * DAY
        for number in range(10):
            _visit(journal, clock, f"{night}-{number}", *["exported"] * 9)
        _turns(retention, clock, 60.0)
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(path.stat().st_size)
    assert len(_groups(settings)) == 10 * (NIGHTS + 1)
    steady = sizes[NIGHTS + 1]
    assert sizes[0] < 0.5 * steady
    assert max(sizes[NIGHTS + 1 :]) < 1.1 * steady


def test_day_of_the_test() -> None:
    """No visit above was near noon, where a night ends."""
    assert day_obs(START) == day_obs(START - 3 * 3600.0) == day_obs(START + 3 * 3600.0)
