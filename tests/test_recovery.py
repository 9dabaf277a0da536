"""What a start makes of an earlier supervisor's journal, spool and local repos."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_durability_machine import Machine

from ppd.supervisor.endings import local_repo
from ppd.supervisor.table import State


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    Machine.prepare(tmp_path / "empty")
    machine = Machine()
    yield machine
    machine.journal.close()
    machine.butler.close()
    shutil.rmtree(machine.folder)


def _row(machine: Machine, what: tuple[str, int]) -> Any:
    query = "SELECT state, attempt, reason FROM detector_visit WHERE group_name=? AND detector=?"
    return machine.journal._db.execute(query, what).fetchone()


def _handed_over(machine: Machine) -> tuple[str, int]:
    what = machine.announce({0})
    machine.begin(what)
    machine.hand_over(what, True)
    machine.end(what, True)
    machine.supervise()
    assert _row(machine, what)[0] == "handed_over"
    return what


def test_hand_over_that_is_gone(machine: Machine) -> None:
    """Not by us: it is said to be lost, and not to be in central."""
    what = _handed_over(machine)
    (entry,) = (machine.spool / "ready").iterdir()
    shutil.rmtree(entry)
    machine.supervisor_dies()
    machine.supervise()
    state, attempt, reason = _row(machine, what)
    assert (state, attempt) == ("failed", 1)
    assert "gone from the spool" in reason
    assert machine.life.counters["failed"] == 1


def test_what_was_judged_is_not_judged_again(machine: Machine) -> None:
    """It failed, an operator has it tried again, and ppd dies in that."""
    what = machine.announce({0})
    d = machine.life.table.get(*what)
    assert d is not None
    machine.life.endings.fail(d, "cancelled")
    machine.journal.commit()
    visit = machine.life.table.visits[what[0]].visit
    message = visit.model_dump(mode="json")
    machine.journal.accepted_again(visit.instrument, visit.groupId, message, {what[1]: 2}, "")
    machine.supervisor_dies()
    again = machine.life.table.get(*what)
    assert again is not None and again is not d
    assert (again.state, again.attempt, again.alerts) == (State.ACCEPTED, 3, "not_judged")


def test_hand_over_that_was_set_aside_unheard(machine: Machine) -> None:
    what = _handed_over(machine)
    machine.corrupt(0)
    machine.export()  # it says so to nobody
    machine.supervisor_dies()
    machine.supervise()
    state, _, reason = _row(machine, what)
    assert state == "failed"
    assert "not what was written" in reason


def test_journal_disk_full_at_the_start(machine: Machine) -> None:
    """What is in the journal is taken up whatever the disk takes now."""
    what = machine.announce({0, 1})
    machine.full = True
    machine.supervisor_dies()
    machine.supervise()
    assert {d.state for d in machine.life.table} == {State.ACCEPTED}
    assert _row(machine, what)[0] == "accepted"


def test_remains_are_looked_into(machine: Machine) -> None:
    """Those of the last attempt; all else that lies there is removed."""
    what = machine.announce({0})
    machine.begin(what)
    machine.supervise()
    d = machine.life.table.get(*what)
    assert d is not None
    repo = local_repo(machine.settings, d)
    stranger = machine.settings.local_repos / "ppd-DemoCam-stranger-0-1"
    stranger.mkdir()
    machine.supervisor_dies()
    again = machine.life.table.get(*what)
    assert again is not None and again.predecessor is not None
    assert (again.attempt, again.predecessor.local_repo, again.predecessor.last) == (2, str(repo), False)
    assert repo.is_dir() and not stranger.exists()
    # It was not its fault: it may be tried again as often as any other.
    assert again.attempt - again.put_backs == 1
    for start in range(1, 3):
        machine.begin(what)
        machine.supervise()
        machine.supervisor_dies()
        again = machine.life.table.get(*what)
        assert again is not None and again.attempt - again.put_backs == 1, start
