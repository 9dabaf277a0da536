"""What becomes of a detector-visit when its child has ended: each way that it can."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppd.config import Settings
from ppd.messages import ChildDone
from ppd.supervisor.counters import Counters
from ppd.supervisor.endings import Endings, local_repo
from ppd.supervisor.journal import Journal
from ppd.supervisor.ledger import Ledger
from ppd.supervisor.measures import Measures
from ppd.supervisor.spool import make_folders
from ppd.supervisor.table import DetectorVisit, State


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    nodes = [{"pipelines": ["Isr.yaml"]}]
    return Settings.model_validate(
        {"instrument": "Cam", "central_repo": "x", "main_pipelines": nodes, "state_dir": tmp_path}
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    journal = Journal(settings.state_dir / "journal.sqlite3")
    journal.visit_accepted("Cam", "g", [4], {}, "test")
    yield Ledger(journal, Counters(), Measures(settings))
    journal.close()


@pytest.fixture
def released() -> list[DetectorVisit]:
    return []


@pytest.fixture
def endings(settings: Settings, ledger: Ledger, released: list[DetectorVisit]) -> Endings:
    make_folders(settings.spool_dir)
    return Endings(settings, ledger, released.append)


@pytest.fixture
def d(settings: Settings) -> DetectorVisit:
    now = time.time()
    d = DetectorVisit("Cam", "g", 4, (), ("Isr.yaml",), accepted=now, expires=now + 600, state=State.RUNNING)
    d.pid, d.exited_at, d.exit_code, d.phase = 12345, time.monotonic() - 10.0, 0, "main"
    local_repo(settings, d).mkdir(parents=True)
    return d


def _says(d: DetectorVisit, **fields: Any) -> None:
    d.done = ChildDone(key=d.key, **fields)


def _in_spool(settings: Settings, d: DetectorVisit, success: bool) -> None:
    entry = settings.spool_dir / "ready" / d.key.file_name
    entry.mkdir()
    empty: dict[str, list[object]] = {
        k: [] for k in ("dimension_records", "dataset_types", "datasets", "runs")
    }
    manifest = {"type": "pp-output", "key": d.key.model_dump(), "bytes": 0, "success": success, **empty}
    (entry / "manifest.json").write_text(json.dumps(manifest))


def _settle(endings: Endings, d: DetectorVisit) -> None:
    """Settle in as many turns of the loop as it takes."""
    before = (d.state, d.attempt)
    for _ in range(2):
        if (d.state, d.attempt) == before:
            endings.settle(d)


def test_success(endings: Endings, d: DetectorVisit, settings: Settings, released: list) -> None:
    _in_spool(settings, d, success=True)
    _says(d, success=True, entry=d.key.file_name, datasets=5, pipeline="Isr.yaml")
    _settle(endings, d)
    assert d.state is State.HANDED_OVER
    assert released == [d]
    assert not local_repo(settings, d).exists()


def test_success_without_outputs(endings: Endings, d: DetectorVisit) -> None:
    _says(d, success=True)
    _settle(endings, d)
    assert d.state is State.EXPORTED


def test_exported_before_the_news_of_its_end(endings: Endings, d: DetectorVisit) -> None:
    d.exported = True
    _says(d, success=True, entry="e")
    _settle(endings, d)
    assert d.state is State.EXPORTED


@pytest.mark.parametrize("said", [True, False])
def test_killed_after_its_hand_over(
    endings: Endings, d: DetectorVisit, settings: Settings, said: bool
) -> None:
    """It is not tried again: the outputs would be made twice."""
    _in_spool(settings, d, success=True)
    d.exit_code = -9
    if said:
        _says(d, success=False, failure="retriable", reason="ended by SIGTERM")
    _settle(endings, d)
    assert (d.state, d.attempt) == (State.HANDED_OVER, 1)


def test_killed_after_a_failures_hand_over(
    endings: Endings, d: DetectorVisit, settings: Settings, ledger: Ledger
) -> None:
    _in_spool(settings, d, success=False)
    _settle(endings, d)
    assert d.state is State.HANDED_OVER
    assert "before it said why" in d.lost_cause
    assert ledger.counters["failed"] == 1


def test_killed_is_tried_again(endings: Endings, d: DetectorVisit, ledger: Ledger, released: list) -> None:
    d.exit_code = -9
    _settle(endings, d)
    assert (d.state, d.attempt) == (State.WAITING, 2)
    assert d.not_before > time.monotonic()
    assert "SIGKILL while main" in ledger.counters.errors()[-1]["message"]
    assert released == [], "its inputs stay leased"


def test_not_for_ever(endings: Endings, d: DetectorVisit, settings: Settings) -> None:
    for _ in range(settings.retries):
        _says(d, success=False, failure="retriable", reason="bad luck")
        _settle(endings, d)
        assert d.state is State.WAITING
    _says(d, success=False, failure="retriable", reason="bad luck")
    _settle(endings, d)
    assert d.state is State.FAILED
    assert d.reason == "bad luck"


@pytest.mark.parametrize("why", ["final", "no other raw", "expired", "took too long"])
def test_not_tried_again(endings: Endings, d: DetectorVisit, why: str, released: list) -> None:
    _says(
        d,
        success=False,
        failure="final" if why == "final" else "retriable",
        reason=why,
        retry=why != "no other raw",
    )
    if why == "expired":
        d.expires = time.time() - 1.0
    if why == "took too long":
        d.may_retry = False
    _settle(endings, d)
    assert (d.state, d.attempt) == (State.FAILED, 1)
    assert released == [d]


def test_final_failure_with_outputs(
    endings: Endings, d: DetectorVisit, ledger: Ledger, settings: Settings
) -> None:
    _in_spool(settings, d, success=False)
    _says(d, success=False, failure="final", reason="the APDB has it", entry=d.key.file_name, datasets=3)
    _settle(endings, d)
    assert d.state is State.HANDED_OVER
    assert d.lost_cause == "the APDB has it"
    assert ledger.counters["failed"] == 1
    assert ledger.counters["succeeded"] == 0


def test_at_a_stop_it_is_left_for_the_next_start(endings: Endings, d: DetectorVisit, ledger: Ledger) -> None:
    endings.stopping = True
    d.termination = "ppd stops"
    _says(d, success=False, failure="retriable", reason="ended by SIGTERM")
    _settle(endings, d)
    assert d.state is State.WAITING
    assert ledger.counters["failed"] == 0
    ledger.journal.commit()
    (left,) = ledger.journal.unfinished()
    assert left.detectors == (4,)


def test_last_word_may_come_after_the_end(endings: Endings, d: DetectorVisit) -> None:
    now = time.monotonic()
    d.exited_at = None
    assert not endings.due(d, now)
    d.exited_at = now
    assert not endings.due(d, now)
    assert endings.due(d, now + 5.0)
    _says(d, success=True)
    assert endings.due(d, now)


@pytest.mark.parametrize("success", [True, False])
def test_entry_that_is_not_there(endings: Endings, d: DetectorVisit, success: bool) -> None:
    """Outputs that are nowhere were not handed over: it would wait for their export for ever."""
    _says(
        d, success=success, entry="no-such-entry", datasets=5, reason="", failure=None if success else "final"
    )
    _settle(endings, d)
    assert d.state is not State.HANDED_OVER


def test_what_a_killed_attempt_left_is_kept(endings: Endings, d: DetectorVisit, settings: Settings) -> None:
    """The next attempt looks into it; when no other may follow, looking is all that it does."""
    left = local_repo(settings, d)
    d.exit_code = -9
    _settle(endings, d)
    assert (d.state, d.attempt) == (State.WAITING, 2)
    assert d.predecessor is not None
    assert (d.predecessor.local_repo, d.predecessor.last) == (str(left), False)
    assert left.exists()
    d.state, d.exited_at, d.exit_code, d.phase = State.RUNNING, time.monotonic() - 10.0, -9, "main"
    second = local_repo(settings, d)
    second.mkdir()
    _settle(endings, d)
    assert (d.state, d.attempt) == (State.WAITING, 3)
    assert d.predecessor is not None
    assert (d.predecessor.local_repo, d.predecessor.last) == (str(second), True)
    assert not left.exists()
    # The look is bounded too: it is tried three times in all.
    for attempt in (4, 5):
        d.state, d.exited_at, d.exit_code = State.FORKED, time.monotonic() - 10.0, -9
        _settle(endings, d)
        assert (d.state, d.attempt) == (State.WAITING, attempt)
        assert second.exists()
    d.state, d.exited_at, d.exit_code = State.FORKED, time.monotonic() - 10.0, -9
    _settle(endings, d)
    assert d.state is State.FAILED
    assert not second.exists()


def test_killed_before_its_main_pipeline(endings: Endings, d: DetectorVisit, settings: Settings) -> None:
    d.state, d.phase, d.exit_code = State.READY, "waiting_raws", -9
    _settle(endings, d)
    assert d.predecessor is None
    assert not local_repo(settings, d).exists()


def test_exported_while_it_was_looked_for(endings: Endings, d: DetectorVisit) -> None:
    """The exporter's report may come after the look at the spool: nothing is decided before."""
    _says(d, success=True, entry=d.key.file_name)
    endings.settle(d)
    assert d.state is State.RUNNING
    d.exported = True
    endings.settle(d)
    assert d.state is State.EXPORTED


def test_outputs_of_a_failure_are_lost(
    endings: Endings, d: DetectorVisit, settings: Settings, ledger: Ledger
) -> None:
    """It is counted once, and both reasons are told."""
    _in_spool(settings, d, success=False)
    _says(d, success=False, failure="final", reason="the APDB has it", entry=d.key.file_name, datasets=3)
    _settle(endings, d)
    endings.fail(d, "its outputs can't be exported: odd")
    assert (d.state, d.reason) == (State.FAILED, "the APDB has it; its outputs can't be exported: odd")
    assert ledger.counters["failed"] == 1


def test_success_with_a_reason(
    endings: Endings, d: DetectorVisit, settings: Settings, ledger: Ledger
) -> None:
    _in_spool(settings, d, success=True)
    _says(d, success=True, reason="store: NoWorkFound: none", entry=d.key.file_name, datasets=3)
    _settle(endings, d)
    assert (d.state, d.reason) == (State.HANDED_OVER, "store: NoWorkFound: none")
    assert (ledger.counters["succeeded"], ledger.counters["incomplete"]) == (1, 1)
    assert ledger.counters["failed"] == 0


@pytest.mark.parametrize("said", [True, False])
def test_killed_after_its_hand_over_is_a_whole_success(
    endings: Endings, d: DetectorVisit, settings: Settings, ledger: Ledger, said: bool
) -> None:
    """What ended its child took nothing from it."""
    _in_spool(settings, d, success=True)
    d.termination = "it took longer than 900 s"
    if said:
        _says(d, success=False, failure="retriable", reason="ended by SIGTERM")
    _settle(endings, d)
    assert (d.state, d.reason) == (State.HANDED_OVER, "")
    assert ledger.counters["incomplete"] == 0
