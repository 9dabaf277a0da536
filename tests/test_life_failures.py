"""What can go wrong in the life of a child, in a real ppd with a real APDB: docs/failures.md, row by row."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fatal_tasks import SOURCES
from lsst.daf.butler import Butler, DatasetType
from observatory import Observatory, Ppd, error_of, identity, running, wait_for

from ppd.demo.central import build_apdb
from ppd.visit import TAI_MINUS_UTC

pytestmark = pytest.mark.night

_EXPIRATION = 3600.0
_MAIN_TIMEOUT = 6.0
_SLOTS = 4
_PIPELINES = {
    "Early": "early: {{class: fatal_tasks.EarlyTask, config: {{folder: '{folder}'}}}}",
    "UnfitEarly": "unfitEarly: {{class: fatal_tasks.UnfitEarlyTask, config: {{folder: '{folder}'}}}}",
    "Unfit": "unfit: {{class: fatal_tasks.UnfitTask, config: {{folder: '{folder}'}}}}",
    "Wanting": "wanting: {{class: fatal_tasks.WantingTask, config: {{folder: '{folder}'}}}}",
    "Fatal": (
        "first: {{class: fatal_tasks.FirstTask, config: {{folder: '{folder}'}}}}\n"
        "  store:\n    class: fatal_tasks.StoreTask\n"
        "    config: {{folder: '{folder}', apdbConfigUrl: parameters.apdb_config}}\n"
        "  last: {{class: fatal_tasks.LastTask}}"
    ),
}
_HEAD = (
    "description: {name}\ninstrument: ppd.demo.democam.DemoCam\nparameters: {{apdb_config: ''}}\ntasks:\n  "
)


class _Observatory(Observatory):
    """An observatory that knows of a kind of dataset it has none of."""

    def copy_central(self, to: Path) -> Path:
        super().copy_central(to)
        with Butler.from_config(str(to), writeable=True) as butler:
            unobtainable = DatasetType(
                "unobtainable",
                ("instrument", "detector"),
                "StructuredDataDict",
                universe=butler.dimensions,
                isCalibration=True,
            )
            butler.registry.registerDatasetType(unobtainable)
        return to


@dataclasses.dataclass
class Site:
    """A ppd with an APDB whose tasks come to grief as they are told."""

    ppd: Ppd
    folder: Path
    detectors: Iterator[int]

    def begin(self, group: str, raw: bool = True, deeds: dict[str, str] | None = None, **changes: Any) -> int:
        """Announce a detector-visit with deeds to do, and let its raw land; return its detector."""
        detector = next(self.detectors)
        for path in self.folder.glob(f"*-{detector}"):
            path.unlink()
        for when, deed in (deeds or {}).items():
            (self.folder / f"{when}-{detector}").write_text(deed)
        if raw:
            self.ppd.good_visit(group, detector, **changes)
        else:
            assert self.ppd.submit(groupId=group, detector=detector, **changes).ok
        return detector

    def reached(self, when: str, detector: int) -> int:
        """Wait until a deed is being done; return the process that does it."""
        path = self.folder / f"pid-{when}-{detector}"
        return int(wait_for(lambda: path.exists() and path.read_text(), 30.0, f"{when} to be reached"))

    def child(self, group: str, phase: str) -> int:
        """Wait until a detector-visit's child is in a phase; return its process."""

        def find() -> int | None:
            children = self.ppd.status()["children"]
            return next((c["pid"] for c in children if c["group"] == group and c["phase"] == phase), None)

        return int(wait_for(find, 30.0, f"{group} to be {phase}"))

    def stored(self, group: str, detector: int) -> int:
        """Number of sources that the APDB has of it."""
        visit = identity(group)["EXPID"]
        with contextlib.closing(sqlite3.connect(self.folder.parent / "apdb.db")) as database:
            query = 'SELECT COUNT(*) FROM "DiaSource" WHERE visit=? AND detector=?'
            return int(database.execute(query, (visit, detector)).fetchone()[0])

    def outputs(self, group: str) -> list[str]:
        """What the main pipeline made of it and central has, each type as often as it is there."""
        exposure = identity(group)["EXPID"]
        found = []
        for name in ("fatal_first", "fatal_stored", "fatal_last"):
            with contextlib.suppress(Exception):
                refs = self.ppd.outputs(name)
                found += [name for r in refs if exposure in (r.dataId.get("exposure"), r.dataId.get("visit"))]
        return found

    def events(self, group: str, name: str) -> list[dict[str, Any]]:
        """What the journal has of it."""
        path = self.ppd.settings.state_dir / "journal.sqlite3"
        with contextlib.closing(sqlite3.connect(path)) as database:
            query = "SELECT detail FROM event WHERE group_name=? AND name=? ORDER BY id"
            return [json.loads(row[0]) for row in database.execute(query, (group, name))]

    def row(self, group: str) -> tuple[str, int, str | None]:
        """State, attempt and reason as the journal has them."""
        path = self.ppd.settings.state_dir / "journal.sqlite3"
        with contextlib.closing(sqlite3.connect(path)) as database:
            query = "SELECT state, attempt, reason FROM detector_visit WHERE group_name=?"
            (found,) = database.execute(query, (group,)).fetchall()
        return found

    def error(self, group: str, kind: str = "failed") -> str:
        """The text that an operator sees."""
        status = self.ppd.status()
        own = [e for e in status["errors"] if e["what"].startswith(f"{group}/")]
        return error_of({**status, "errors": own}, kind)

    def retried(self, group: str) -> int:
        return len(self.events(group, "retried"))


@pytest.fixture(scope="module")
def site(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fatal")
    deeds = folder / "deeds"
    deeds.mkdir()
    paths = {}
    for name, tasks in _PIPELINES.items():
        path = folder / f"{name}.yaml"
        path.write_text((_HEAD + tasks + "\n").format(name=name, folder=deeds))
        paths[name] = str(path)
    early = [
        {"survey": "unfit-early", "pipelines": [paths["UnfitEarly"]]},
        {"pipelines": [paths["Early"]]},
    ]
    main = [
        {"survey": "fall-back", "pipelines": [paths["Unfit"], paths["Fatal"]]},
        {"survey": "unfit", "pipelines": [paths["Unfit"]]},
        {"survey": "wanting", "pipelines": [paths["Wanting"]]},
        {"survey": "none", "pipelines": None},
        {"pipelines": [paths["Fatal"]]},
    ]
    with running(
        _Observatory(observatory.root, observatory.plan),
        folder,
        apdb_config=str(build_apdb(folder)),
        preprocessing_pipelines=early,
        main_pipelines=main,
        retries=1,
        slots=_SLOTS,
        running=2,
        kill_grace=1.0,
        preprocess_timeout=3.0,
        main_timeout=_MAIN_TIMEOUT,
        inputs_timeout=5.0,
        heartbeat_interval=0.5,
        heartbeat_timeout=4.0,
        message_expiration=_EXPIRATION,
        apdb_patience=1.0,
    ) as ppd:
        yield Site(ppd, deeds, itertools.cycle(range(9)))


# Killed


def test_killed_before_the_store(site: Site) -> None:
    """A clean attempt follows."""
    detector = site.begin("before", deeds={"before": "die once"})
    site.ppd.await_state("before", exported=1)
    assert site.retried("before") == 1
    assert "SIGKILL while main" in site.error("before", "retried")
    assert site.stored("before", detector) == SOURCES
    assert site.outputs("before") == ["fatal_first", "fatal_stored", "fatal_last"]
    assert site.row("before") == ("exported", 2, None)


@pytest.mark.slow
def test_killed_before_the_store_each_time(site: Site) -> None:
    detector = site.begin("hopeless", deeds={"before": "die"})
    site.ppd.await_state("hopeless", failed=1)
    assert "SIGKILL while main" in site.error("hopeless")
    assert site.events("hopeless", "failed")[0]["failure"] == "retriable"
    assert site.stored("hopeless", detector) == 0
    assert site.outputs("hopeless") == []


@pytest.mark.slow
def test_killed_after_the_store(site: Site) -> None:
    """There were tries left; it is not processed again, and what it made is kept."""
    detector = site.begin("after", deeds={"after": "die"})
    site.ppd.await_state("after", failed=1)
    error = site.error("after")
    assert "SIGKILL while main" in error
    assert f"the APDB has sources of visit {identity('after')['EXPID']}" in error
    assert site.events("after", "failed")[0]["failure"] == "final"
    assert len(site.events("after", "main_start")) == 1
    assert site.stored("after", detector) == SOURCES
    assert site.outputs("after") == ["fatal_first"]
    assert site.row("after")[2] == error.partition(": ")[2]


@pytest.mark.slow
def test_killed_after_the_store_on_the_last_attempt(site: Site) -> None:
    detector = site.begin("last", deeds={"before": "die once", "after": "die"})
    site.ppd.await_state("last", failed=1)
    assert site.retried("last") == 1
    assert len(site.events("last", "look_back")) == 1
    assert "the APDB has sources of visit" in site.error("last")
    assert site.stored("last", detector) == SOURCES
    assert site.outputs("last") == ["fatal_first"]


@pytest.mark.slow
def test_apdb_is_away_when_a_killed_attempt_is_looked_into(site: Site) -> None:
    """Nobody can tell whether it is stored: it counts as if it were."""
    config = site.folder.parent / "apdb.yaml"
    detector = site.begin("away", deeds={"before": "sleep"})
    child = site.reached("before", detector)
    away = config.rename(config.with_suffix(".away"))
    try:
        os.kill(child, signal.SIGKILL)
        site.ppd.await_state("away", failed=1)
    finally:
        away.rename(config)
    assert "the APDB can't be asked whether it has it" in site.error("away")
    assert site.events("away", "failed")[0]["failure"] == "final"
    assert site.outputs("away") == ["fatal_first"]
    assert site.stored("away", detector) == 0


@pytest.mark.slow
def test_killed_while_looking_back(site: Site) -> None:
    """The next child looks again."""
    detector = site.begin("looking", deeds={"after": "sleep"})
    child = site.reached("after", detector)
    with contextlib.closing(sqlite3.connect(site.folder.parent / "apdb.db", isolation_level=None)) as apdb:
        # Whoever asks it waits.
        apdb.execute("BEGIN EXCLUSIVE")
        os.kill(child, signal.SIGKILL)
        os.kill(site.child("looking", "looking_back"), signal.SIGKILL)
        wait_for(lambda: site.row("looking")[1] == 3, 30.0, "another attempt")
        apdb.execute("ROLLBACK")
    site.ppd.await_state("looking", failed=1)
    error = site.error("looking")
    assert "SIGKILL while main" in error
    assert "the APDB has sources of visit" in error
    assert site.stored("looking", detector) == SOURCES
    assert site.outputs("looking") == ["fatal_first"]


@pytest.mark.slow
def test_expired_before_it_was_killed(site: Site) -> None:
    """It may not run again, but what it has changed is known, and what it made is kept."""
    stamp = time.time() + TAI_MINUS_UTC - _EXPIRATION + 6.0
    children = []
    for group, when in (("expired", "after"), ("overdue", "before")):
        detector = site.begin(group, deeds={when: "sleep"}, private_sndStamp=stamp)
        children.append(site.reached(when, detector))
    wait_for(lambda: time.time() + TAI_MINUS_UTC > stamp + _EXPIRATION + 0.5, 30.0, "the message to expire")
    for child in children:
        os.kill(child, signal.SIGKILL)
    for group in ("expired", "overdue"):
        site.ppd.await_state(group, failed=1)
        assert site.retried(group) == 0
        assert len(site.events(group, "main_start")) == 1
        assert "SIGKILL while main" in site.error(group)
    assert "the APDB has sources of visit" in site.error("expired")
    assert site.outputs("expired") == ["fatal_first"]
    assert site.events("overdue", "failed")[0]["failure"] == "retriable"
    assert site.outputs("overdue") == []


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["preprocess", "waiting_raws"])
def test_killed_before_its_main_pipeline(site: Site, phase: str) -> None:
    deeds = {"early": "sleep once"} if phase == "preprocess" else {}
    group = f"killed-{phase}"
    detector = site.begin(group, raw=False, deeds=deeds)
    os.kill(site.child(group, phase), signal.SIGKILL)
    wait_for(lambda: site.retried(group), 30.0, "another attempt")
    site.ppd.drop(site.ppd.observatory.raw(detector, **identity(group)), detector, group)
    site.ppd.await_state(group, exported=1)
    assert f"SIGKILL while {phase}" in site.error(group, "retried")
    assert site.stored(group, detector) == SOURCES


@pytest.mark.slow
def test_killed_while_queued(site: Site) -> None:
    holders = [site.begin(f"holder-{n}", deeds={"before": "sleep once"}) for n in range(2)]
    children = [site.reached("before", detector) for detector in holders]
    detector = site.begin("queued", deeds={})
    os.kill(site.child("queued", "queued_preprocess"), signal.SIGKILL)
    wait_for(lambda: site.retried("queued"), 30.0, "another attempt")
    for child in children:
        os.kill(child, signal.SIGKILL)
    for group in ("holder-0", "holder-1", "queued"):
        site.ppd.await_state(group, exported=1)
    assert "SIGKILL while queued_preprocess" in site.error("queued", "retried")
    assert site.stored("queued", detector) == SOURCES


# Too slow


@pytest.mark.slow
def test_preprocessing_is_cut_short(site: Site) -> None:
    """The main pipeline goes on without."""
    detector = site.begin("sleepy", deeds={"early": "sleep"})
    site.ppd.await_state("sleepy", exported=1)
    (event,) = site.events("sleepy", "preprocess_end")
    assert event["success"] is False
    assert "it took too long" in event["reason"]
    assert "it took too long" in site.error("sleepy", "preprocess_failed")
    assert site.retried("sleepy") == 0
    assert site.stored("sleepy", detector) == SOURCES


@pytest.mark.slow
def test_preprocessing_that_can_not_be_cut_short(site: Site) -> None:
    site.begin("deaf", deeds={"early": "sleep_through_signals"})
    site.ppd.await_state("deaf", failed=1)
    assert "its pre-processing took longer than 3 s" in site.error("deaf")
    assert site.retried("deaf") == 0


@pytest.mark.slow
def test_main_takes_too_long(site: Site) -> None:
    begun = {when: site.begin(f"long-{when}", deeds={when: "sleep"}) for when in ("before", "after")}
    for when, detector in begun.items():
        group = f"long-{when}"
        site.ppd.await_state(group, failed=1)
        error = site.error(group)
        assert "its main pipeline took longer than 6 s; ended by SIGTERM" in error
        assert ("the APDB has sources" in error) == (when == "after")
        assert site.retried(group) == 0
        assert site.stored(group, detector) == (SOURCES if when == "after" else 0)
        assert site.outputs(group) == (["fatal_first"] if when == "after" else [])


@pytest.mark.slow
def test_task_keeps_the_lock_of_the_interpreter(site: Site) -> None:
    """No thread of it runs, the one with the heartbeats neither."""
    detector = site.begin("hog", deeds={"after": "hold_the_gil"})
    site.ppd.await_state("hog", failed=1)
    error = site.error("hog")
    assert "its child was not heard of for too long; its child ended by SIGKILL while main" in error
    assert "the APDB has sources" in error
    assert site.stored("hog", detector) == SOURCES
    assert site.outputs("hog") == ["fatal_first"]


# What tasks raise


@pytest.mark.slow
def test_raises_before_the_store(site: Site) -> None:
    detector = site.begin("stumbles", deeds={"before": "fail once"})
    site.ppd.await_state("stumbles", exported=1)
    assert "RuntimeError: it was told to fail" in site.error("stumbles", "retried")
    assert site.stored("stumbles", detector) == SOURCES
    assert site.outputs("stumbles") == ["fatal_first", "fatal_stored", "fatal_last"]


@pytest.mark.slow
def test_raises_after_the_store(site: Site) -> None:
    detector = site.begin("falls", deeds={"after": "fail"})
    site.ppd.await_state("falls", failed=1)
    error = site.error("falls")
    assert "RuntimeError: it was told to fail; the APDB has sources of visit" in error
    assert site.retried("falls") == 0
    assert site.stored("falls", detector) == SOURCES
    assert site.outputs("falls") == ["fatal_first"]
    (event,) = site.events("falls", "pipeline_end")
    assert "it was told to fail" in event["reason"]


def test_says_that_its_quantum_is_invalid(site: Site) -> None:
    site.begin("invalid", deeds={"before": "say_invalid"})
    site.ppd.await_state("invalid", failed=1)
    assert "InvalidQuantumError: this quantum makes no sense" in site.error("invalid")
    assert site.retried("invalid") == 0


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("find_no_work", "store: NoWorkFound: there is nothing to do here; last: its inputs are not there"),
        ("do_a_part", "store: RuntimeError: half of the stars are missing; last: its inputs are not there"),
    ],
)
def test_success_with_a_reason(site: Site, deed: str, reason: str) -> None:
    group = deed.replace("_", "-")
    before = site.ppd.counts()
    detector = site.begin(group, deeds={"before": deed})
    site.ppd.await_state(group, exported=1)
    after = site.ppd.counts()
    assert after["succeeded"] == before["succeeded"] + 1
    assert after["incomplete"] == before.get("incomplete", 0) + 1
    assert after.get("failed") == before.get("failed")
    assert reason in site.error(group, "incomplete")
    (event,) = site.events(group, "pipeline_end")
    assert (event["success"], event["reason"]) == (True, reason)
    assert site.row(group) == ("exported", 1, reason)
    assert site.stored(group, detector) == 0
    assert site.outputs(group) == ["fatal_first"]


# Pipelines that can't be built


@pytest.mark.slow
def test_preprocessing_can_not_be_built(site: Site) -> None:
    detector = site.begin("unfit-early", survey="unfit-early")
    site.ppd.await_state("unfit-early", exported=1)
    assert "ValueError: these connections have a mistake" in site.error("unfit-early", "preprocess_failed")
    assert site.stored("unfit-early", detector) == SOURCES


@pytest.mark.slow
def test_falls_back(site: Site) -> None:
    site.begin("fall-back", survey="fall-back")
    site.ppd.await_state("fall-back", exported=1)
    (event,) = site.events("fall-back", "pipeline_end")
    assert Path(event["pipeline"]).name == "Fatal.yaml"
    assert site.outputs("fall-back") == ["fatal_first", "fatal_stored", "fatal_last"]


def test_no_main_pipeline_can_be_built(site: Site) -> None:
    site.begin("unfit", survey="unfit")
    site.ppd.await_state("unfit", failed=1)
    error = site.error("unfit")
    assert "no main pipeline can run" in error
    assert "these connections have a mistake" in error


# Before there is a child


def test_no_pipeline_is_configured(site: Site) -> None:
    before = site.ppd.counts().get("visits_ignored", 0)
    reply = site.ppd.submit(groupId="unwanted", detector=1, survey="none")
    assert (reply.ok, reply.code) == (False, "ignored")
    assert "no pipeline is configured for it" in reply.error
    assert site.ppd.counts()["visits_ignored"] == before + 1
    assert site.ppd.states("unwanted") == {}


def test_inputs_are_nowhere(site: Site) -> None:
    site.begin("wanting", raw=False, survey="wanting")
    site.ppd.await_state("wanting", failed=1)
    error = site.error("wanting")
    assert "no main pipeline has its inputs" in error
    assert "unobtainable" in error
    assert site.retried("wanting") == 0
    assert site.events("wanting", "forked") == []


@pytest.mark.slow
def test_expired_while_it_waited_for_a_slot(site: Site) -> None:
    holders = {f"slot-{n}": site.begin(f"slot-{n}", raw=False) for n in range(_SLOTS)}
    for group in holders:
        site.child(group, "waiting_raws")
    stamp = time.time() + TAI_MINUS_UTC - _EXPIRATION + 1.5
    site.begin("crowded", private_sndStamp=stamp)
    site.ppd.await_state("crowded", failed=1)
    assert site.ppd.counts()["shed"] == 1
    for group, detector in holders.items():
        site.ppd.drop(site.ppd.observatory.raw(detector, **identity(group)), detector, group)
    assert "its message expired while it waited for a slot" in site.error("crowded")
    assert site.events("crowded", "forked") == []
    for group in holders:
        site.ppd.await_state(group, exported=1)


# Central, and what goes there


@pytest.mark.slow
def test_inputs_are_not_there_in_time(site: Site) -> None:
    """The database of central keeps everybody waiting; it is served again when that is over."""
    with contextlib.closing(
        sqlite3.connect(site.ppd.central / "gen3.sqlite3", isolation_level=None)
    ) as central:
        central.execute("BEGIN EXCLUSIVE")
        site.begin("patience")
        site.ppd.await_state("patience", failed=1)
        central.execute("ROLLBACK")
    assert "its inputs were not there within 5 s" in site.error("patience")
    site.begin("served")
    site.ppd.await_state("served", exported=1)


def test_outputs_that_central_does_not_take(site: Site) -> None:
    """Somebody has put others in their place: they are set aside, and the next ones are exported."""
    before = site.ppd.counts()
    detector = site.begin("collides", raw=False)
    with Butler.from_config(str(site.ppd.central), writeable=True) as butler:
        (run,) = butler.collections.query("*/prompt/output-*/Early/*")
        butler.registry.insertDimensionData("group", {"instrument": "DemoCam", "name": "collides"})
        butler.put({}, "fatal_early", instrument="DemoCam", group="collides", detector=detector, run=run)
    site.ppd.drop(site.ppd.observatory.raw(detector, **identity("collides")), detector, "collides")
    site.ppd.await_state("collides", failed=1)
    assert "its outputs can't be exported: " in site.error("collides")
    assert "another writer has fatal_early" in site.error("collides")
    counts = site.ppd.counts()
    assert counts["dead_letters"] == before.get("dead_letters", 0) + 1
    letters = list((site.ppd.settings.spool_dir / "dead-letters").iterdir())
    assert any("collides" in letter.name for letter in letters)
    site.begin("next")
    site.ppd.await_state("next", exported=1)


# At the end, for they start ppd anew


@pytest.mark.slow
def test_supervisor_killed_after_the_store(site: Site) -> None:
    """Its child has heard of it, and hands over what there is; the next supervisor exports that."""
    detector = site.begin("regicide", deeds={"after": "sleep once"})
    site.reached("after", detector)
    assert site.ppd.process is not None
    site.ppd.process.kill()
    site.ppd.process.wait(10.0)
    site.ppd.start()
    wait_for(lambda: site.row("regicide")[0] == "failed", 60.0, "it to fail")
    assert "the APDB has sources of visit" in str(site.row("regicide")[2])
    assert site.ppd.counts()["failed"] == 1
    assert site.stored("regicide", detector) == SOURCES
    assert len(site.events("regicide", "first_task")) <= 1
    assert site.outputs("regicide") == ["fatal_first"]


def _cut_power(site: Site, child: int) -> None:
    """Kill all of ppd at one moment; what is on disk is all that is left."""
    assert site.ppd.process is not None
    supervisor = psutil.Process(site.ppd.process.pid)
    all_of_it = [supervisor, *supervisor.children(recursive=True)]
    assert child in {p.pid for p in all_of_it}
    for signum in (signal.SIGSTOP, signal.SIGKILL):  # or the first to die would be heard of by the others
        for process in all_of_it:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
    site.ppd.process.wait(10.0)
    psutil.wait_procs(all_of_it, 10.0)


@pytest.mark.slow
def test_power_cut_after_the_store(site: Site) -> None:
    """What its child had made is looked into by the next supervisor's, and exported."""
    detector = site.begin("dark", deeds={"after": "sleep once"})
    _cut_power(site, site.reached("after", detector))
    site.ppd.start()
    site.ppd.await_state("dark", failed=1)
    error = site.error("dark")
    assert "ppd itself ended while its main pipeline ran" in error
    assert "the APDB has sources of visit" in error
    assert site.stored("dark", detector) == SOURCES
    assert site.outputs("dark") == ["fatal_first"]
    assert site.row("dark")[1] == 2


@pytest.mark.slow
def test_power_cut_before_the_store(site: Site) -> None:
    """Nothing has changed but time: it is done again, with what raws there are."""
    detector = site.begin("dusk", deeds={"before": "sleep once"})
    _cut_power(site, site.reached("before", detector))
    site.ppd.start()
    site.ppd.await_state("dusk", exported=1)
    assert site.stored("dusk", detector) == SOURCES
    assert site.outputs("dusk") == ["fatal_first", "fatal_stored", "fatal_last"]
    assert site.retried("dusk") == 0


@pytest.mark.slow
def test_stored_by_a_ppd_that_nobody_remembers(site: Site) -> None:
    """The journal is gone, the APDB is not: it is refused, and central keeps what it has."""
    detector = site.begin("again")
    site.ppd.await_state("again", exported=1)
    before = site.outputs("again")
    assert site.ppd.stop() == 0
    for path in site.ppd.settings.state_dir.glob("journal.sqlite3*"):
        path.unlink()
    site.ppd.start()
    assert site.ppd.submit(groupId="again", detector=detector).ok
    site.ppd.await_state("again", failed=1)
    assert "the APDB has sources of visit" in site.error("again")
    assert "it is not processed again" in site.error("again")
    counts = site.ppd.counts()
    assert counts["failed"] == 1
    assert "dead_letters" not in counts
    assert site.stored("again", detector) == SOURCES
    assert site.outputs("again") == before
