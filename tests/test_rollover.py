"""The end of a day under load, with a clock that is moved there."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from observatory import ISR, Observatory, Ppd, error_of, identity, running, wait_for

from bench.moved_clock import environment, move
from ppd.deployment import chain_name, date_string, day_obs
from ppd.visit import TAI_MINUS_UTC

pytestmark = pytest.mark.night

_DAY = 86400.0


class _Clock:
    """The clock of a ppd, by how far it is from the end of its day."""

    def __init__(self, file: Path, seconds_left: float):
        self._file = file
        now = time.time() + TAI_MINUS_UTC - _DAY / 2
        self.end = time.time() + _DAY - now % _DAY
        self.set(seconds_left)

    def set(self, seconds_left: float) -> None:
        self._ahead = self.end - seconds_left - time.time()
        move(self._file, self._ahead)

    def now(self) -> float:
        return time.time() + self._ahead

    @property
    def days(self) -> tuple[int, int]:
        """The day that ends and the one that begins."""
        return day_obs(self.end - 1.0), day_obs(self.end + 1.0)

    def stamps(self) -> dict[str, float]:
        """Fields of a message that is sent now."""
        tai = self.now() + TAI_MINUS_UTC
        return {"private_sndStamp": tai, "startTime": tai}


@contextlib.contextmanager
def _before_noon(observatory: Observatory, folder: Path, **changes: Any) -> Iterator[tuple[Ppd, _Clock]]:
    """Run a ppd ten minutes before the end of its day."""
    clock = _Clock(folder / "clock", 600.0)

    def prepare(ppd: Ppd) -> None:
        ppd.environ = environment(folder / "clock", ppd.environ)

    with running(observatory, folder, prepare, **changes) as ppd:
        yield ppd, clock


def _ready(ppd: Ppd, day: int) -> None:
    wait_for(lambda: f"The init-outputs of {day} are there" in ppd.log.read_text(), 90.0, f"{day}; {ppd.log}")


def _runs(ppd: Ppd, name: str) -> dict[str, str]:
    """Run of each group's output, of all days."""
    with Butler.from_config(str(ppd.central), writeable=False) as butler:
        found = butler.query_datasets(
            name, collections="DemoCam/prompt/output-*", find_first=False, with_dimension_records=True
        )
    return {r.dataId.records["exposure"].group: r.run for r in found}


@pytest.mark.slow
def test_rollover_under_load(observatory: Observatory, tmp_path: Path) -> None:
    with _before_noon(observatory, tmp_path, initialize_automatically=True) as (ppd, clock):
        old, new = clock.days
        _ready(ppd, new)
        clock.set(9.0)
        assert ppd.submit(groupId="straggler", detector=0, **clock.stamps()).ok
        groups = ["straggler"]
        while clock.now() < clock.end + 8.0:
            number = len(groups)
            groups.append(f"load{number:02d}")
            ppd.good_visit(groups[-1], 1 + number % 8, **clock.stamps())
            time.sleep(0.6)
        # Its raw comes when its day is over.
        ppd.drop(observatory.raw(0, **identity("straggler")), 0, "straggler")
        wait_for(lambda: ppd.status()["idle"], 90.0, f"all to be over; {ppd.log}")
        assert ppd.counts()["succeeded"] == len(groups), ppd.status()["errors"]
        runs = _runs(ppd, "post_isr_image")
        with contextlib.closing(sqlite3.connect(ppd.settings.state_dir / "journal.sqlite3")) as db:
            accepted = dict(db.execute("SELECT group_name, accepted FROM visit"))
            found = db.execute("SELECT group_name, MIN(t) FROM event WHERE name='resolved' GROUP BY 1")
            waits = {group: t - accepted[group] for group, t in found}
        days = {group: day_obs(t) for group, t in accepted.items()}
        assert set(runs) == set(days) == set(groups)
        for group, run in runs.items():
            assert run.startswith(chain_name("DemoCam", date_string(days[group])) + "/"), group
        counts = [list(days.values()).count(day) for day in (old, new)]
        assert min(counts) >= 5, counts
        assert days["straggler"] == old
        first = min((g for g in groups if days[g] == new), key=accepted.__getitem__)
        assert waits[first] < statistics.median(waits.values()) + 1.0, waits
        assert max(waits.values()) < 3.0, waits
        with Butler.from_config(str(ppd.central), writeable=False) as butler:
            chain = butler.collections.get_info(chain_name("DemoCam", date_string(new)))
            assert set(chain.children) >= {run for g, run in runs.items() if days[g] == new}
        assert ppd.counts().get("inputs_retried", 0) == ppd.counts().get("internal_errors", 0) == 0


@pytest.mark.slow
def test_nobody_prepares_the_next_day(observatory: Observatory, tmp_path: Path) -> None:
    """It is said in good time; when the day has begun its visits wait, and no longer than they have to."""
    with _before_noon(observatory, tmp_path, repo_retry_delay=300.0) as (ppd, clock):
        _, new = clock.days
        fault = f"init-outputs of {new} are not there yet, the day begins in "
        wait_for(lambda: any(fault in f for f in ppd.status()["faults"]), 30.0, "the fault")
        command = f"run: ppd-init --config {ppd.config} --day-obs {new}"
        assert command in str(ppd.status()["faults"])
        assert ppd.status()["health"] == "trouble"
        wait_for(lambda: command in ppd.log.read_text(), 5.0, "the warning")
        time.sleep(2.0)
        assert ppd.log.read_text().count(command) == 1
        clock.set(-5.0)
        ppd.good_visit("early-bird", 3, **clock.stamps())
        wait_for(lambda: ppd.counts().get("inputs_retried"), 20.0, "its inputs to be asked for in vain")
        assert "is not prepared for deployment" in error_of(ppd.status(), "inputs_retried")
        assert "visits of that day wait" in str(ppd.status()["faults"])
        assert ppd.command("init", "--day-obs", str(new)).returncode == 0
        ppd.await_state("early-bird", exported=1)
        assert ppd.status()["health"] == "ok", ppd.status()["faults"]
        assert f"output-{date_string(new)}/" in _runs(ppd, "post_isr_image")["early-bird"]


@pytest.mark.slow
def test_pipeline_was_changed_meanwhile(observatory: Observatory, tmp_path: Path) -> None:
    """What ppd-init would prepare is not what runs: it says so, and tries again."""
    main = tmp_path / "Mine.yaml"
    main.write_text(Path(ISR).read_text())
    changes = {"main": (str(main),), "initialize_automatically": True, "rollover_lead": 60.0}
    with _before_noon(observatory, tmp_path, **changes) as (ppd, clock):
        _, new = clock.days
        text = main.read_text()
        main.write_text(text.replace("description:", "description: Another one,"))
        clock.set(50.0)
        wait_for(lambda: any(str(new) in f for f in ppd.status()["faults"]), 60.0, "the fault")
        assert "any more: reload the configuration, or restart ppd" in str(ppd.status()["faults"])
        main.write_text(text)
        _ready(ppd, new)
        assert ppd.status()["health"] == "ok"
        assert ppd.counts().get("strays_killed", 0) == 0
