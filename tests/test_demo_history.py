"""The course of a night, read from the journal that ppd's own class wrote, and its figures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from rich.console import Console

from ppd.demo.history import LEGS, NightHistory, Timeline, quantiles, read_history
from ppd.demo.matching import DetectorResult
from ppd.demo.summary import print_summary, summarize_night
from ppd.supervisor.journal import Journal

CAM = "DemoCam"
T0 = 1_795_500_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two visits: one as it should be, one with a second attempt and a failure."""
    path = tmp_path / "journal.sqlite3"
    journal = Journal(path)
    for group in ("g1", "g2"):
        journal.visit_accepted(CAM, group, (0, 1), {"groupId": group}, "control")
        journal.event(CAM, group, None, "resolved", {"statements": 300 if group == "g1" else 200})
        for detector in (0, 1):
            when = T0 + (0.0 if group == "g1" else 100.0) + detector
            journal.event(CAM, group, detector, "ready", when=when + 1.0)
            journal.event(CAM, group, detector, "raw_seen", {"closed": when + 10.0}, when=when + 10.2)
            journal.event(CAM, group, detector, "first_task", when=when + 12.0)
            journal.state(CAM, group, detector, "running", attempt=1, pipeline="/p/ApPipe.yaml")
    for group, detector in (("g1", 0), ("g1", 1), ("g2", 0)):
        journal.state(CAM, group, detector, "exported", attempt=1)
        when = T0 + (0.0 if group == "g1" else 100.0) + detector + 20.0
        journal.event(CAM, group, detector, "exported", {"datasets": 33}, when=when)
    # Detector 1 of the second visit tries again, is told of the raw again, and fails.
    journal.event(CAM, "g2", 1, "raw_seen", {"closed": T0 + 150.0}, when=T0 + 150.0)
    journal.event(CAM, "g2", 1, "first_task", when=T0 + 152.0)
    journal.state(CAM, "g2", 1, "failed", attempt=2, reason="no stars")
    journal.commit()
    journal.close()
    return path


@pytest.fixture
def history(path: Path) -> NightHistory:
    return read_history(path, {("g1", 0): T0 + 15.0, ("unknown", 3): T0})


def test_visits_and_detector_visits(history: NightHistory) -> None:
    assert history.visits == ["g1", "g2"]
    assert [(t.group, t.detector, t.state) for t in history.timelines] == [
        ("g1", 0, "exported"),
        ("g1", 1, "exported"),
        ("g2", 0, "exported"),
        ("g2", 1, "failed"),
    ]
    assert [t.datasets for t in history.timelines] == [33, 33, 33, 0]
    assert {t.pipeline for t in history.timelines} == {"ApPipe"}
    failed = history.timelines[3]
    assert (failed.attempts, failed.reason) == (2, "no stars")
    assert history.statements == {"g1": 300, "g2": 200}


def test_legs(history: NightHistory) -> None:
    first = history.timelines[0]
    assert first.leg("raw_to_first_task") == pytest.approx(2.0)
    assert first.leg("raw_to_alert") == pytest.approx(5.0)
    assert first.leg("raw_to_central") == pytest.approx(10.0)
    assert history.timelines[1].leg("raw_to_alert") is None
    # The raw came once: a second attempt's latency counts from there.
    assert history.timelines[3].leg("raw_to_first_task") == pytest.approx(41.0)
    assert history.timelines[3].leg("raw_to_central") is None


def test_latencies(history: NightHistory) -> None:
    latencies = history.latencies()
    assert tuple(latencies) == LEGS
    assert latencies["raw_to_first_task"]["p50"] == pytest.approx(2.0)
    assert latencies["raw_to_first_task"]["max"] == pytest.approx(41.0)
    assert latencies["raw_to_central"] == {"p50": 10.0, "p95": 10.0, "max": 10.0}


def test_quantiles() -> None:
    assert quantiles([]) == {"p50": None, "p95": None, "max": None}
    assert quantiles([3.0]) == {"p50": 3.0, "p95": 3.0, "max": 3.0}
    values = quantiles([float(v) for v in range(101)])
    assert values == {"p50": 50.0, "p95": 95.0, "max": 100.0}
    assert quantiles([1.0 / 3.0])["max"] == 0.333


def test_no_journal_no_history(tmp_path: Path) -> None:
    history = read_history(tmp_path / "none.sqlite3", {})
    assert (history.visits, history.timelines) == ([], [])
    assert history.latencies()["raw_to_alert"]["p50"] is None
    assert not (tmp_path / "none.sqlite3").exists()


def _result(found: list[bool], snr: list[float], good: list[bool], true: list[bool]) -> DetectorResult:
    truth = Table({"snr": snr, "good": good, "found": found}, dtype=(float, bool, bool))
    return DetectorResult("g1", 1, 0, "r", Table({"true": np.array(true, dtype=bool)}), truth)


def _summary(history: NightHistory, results: list[DetectorResult]) -> dict:
    return summarize_night(
        wall_s=120.04,
        planned=2,
        history=history,
        results=results,
        alerts=11,
        left_behind={"processes": 0, "shm_files": 1},
    )


def test_summary(history: NightHistory) -> None:
    results = [
        # Faint ones and those at bad pixels do not count; three of four do.
        _result(
            [True, True, False, True, False, False], [50, 20, 11, 12, 9.9, 80], [True] * 5 + [False], [True]
        ),
        _result([], [], [], [True, True, False]),
    ]
    summary = _summary(history, results)
    assert (summary["visits"], summary["visits_planned"]) == (2, 2)
    assert (summary["detector_visits"], summary["succeeded"], summary["failed"]) == (4, 3, 1)
    assert summary["datasets_exported"] == 99
    assert (summary["detections"], summary["alerts"]) == (4, 11)
    assert summary["true_changes_10sigma"] == 4
    assert summary["completeness_10sigma"] == 0.75
    assert summary["spurious_fraction"] == 0.25
    assert summary["central_statements_per_visit"] == 250.0
    assert summary["wall_s"] == 120.0
    assert json.loads(json.dumps(summary)) == summary


def test_summary_of_nothing_has_no_figures() -> None:
    summary = _summary(NightHistory([], [], {}), [])
    assert summary["completeness_10sigma"] is None
    assert summary["spurious_fraction"] is None
    assert summary["central_statements_per_visit"] is None
    assert summary["succeeded"] == 0
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=100))
    assert "shm_files 1" in stream.getvalue()


def test_printed_summary(history: NightHistory) -> None:
    stream = io.StringIO()
    print_summary(_summary(history, []), Console(file=stream, width=100))
    text = stream.getvalue()
    assert "raw to first task" in text
    assert "p50 2.00 s" in text
    assert "None" not in text


def test_a_leg_that_does_not_exist() -> None:
    with pytest.raises(KeyError):
        Timeline("g", 0, "exported", "", "", {}, 1, 0).leg("raw_to_moon")
