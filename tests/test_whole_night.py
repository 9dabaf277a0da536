"""The demo as a user runs it: its figures, its files, and what a Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from observatory import wait_for

from ppd.config import load_settings
from ppd.control import ControlClient, NoSupervisorError

pytestmark = pytest.mark.night


def _start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ppd.demo", "--output", str(output), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


class _StatusClock(threading.Thread):
    """Asks a busy supervisor for its status, again and again, and notes how long each answer took."""

    def __init__(self, config: Path):
        super().__init__(daemon=True)
        self.config = config
        self.seconds: list[float] = []
        self.live = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.config.exists() and not self.over.wait(0.2):
            pass
        if self.over.is_set():
            return
        time.sleep(0.5)  # the file is written in one go, but not by rename
        with ControlClient(load_settings(self.config, {}).socket_dir, timeout=10.0) as client:
            while not self.over.wait(0.1):
                begin = time.monotonic()
                try:
                    status = client.status()
                except NoSupervisorError:
                    continue  # not yet, or no more
                if self.live:  # the first one waited for the start
                    self.seconds.append(time.monotonic() - begin)
                self.live = max(self.live, status["slots"]["used"])


def test_a_night_of_one_visit(tmp_path: Path) -> None:
    output = tmp_path / "out"
    clock = _StatusClock(output / "ppd.yaml")
    clock.start()
    process = _start(output, "--visits", "1", "--seed", "3")
    try:
        text, _ = process.communicate(timeout=200.0)
    finally:
        process.kill()
        clock.over.set()
        clock.join(15.0)
    assert process.returncode == 0, text
    summary = json.loads((output / "summary.json").read_text())
    _check_summary(summary)
    _check_report((output / "report.html").read_text(), output)
    assert "visits 1/1" in text, "a progress line says what happens"
    for name in ("report.html", "summary.json", "central_repo"):
        assert str(output / name) in text.replace("\n", "")  # long lines are broken
    # ppdctl answers within a second also while nine children share the processors.
    assert clock.live == 9
    assert len(clock.seconds) > 20
    assert max(clock.seconds) < 1.0
    with Butler.from_config(str(output / "central_repo"), writeable=False) as butler:
        (chain,) = butler.collections.query("DemoCam/prompt/output-*", collection_types={_chained()})
        exported = [
            ref
            for name in ("difference_image", "dia_source_detector", "prompt_provenance", "isr_log")
            for ref in butler.query_datasets(name, collections=chain)
        ]
        assert len(exported) == 4 * 9
        assert butler.get(exported[0]) is not None
        (visit,) = butler.query_dimension_records("visit")
        assert visit.region is not None
        assert len(butler.query_dimension_records("visit_detector_region")) == 9
    alerts = list((output / "alerts").glob("*.avro"))
    assert alerts


def _chained() -> Any:
    from lsst.daf.butler import CollectionType

    return CollectionType.CHAINED


def _check_summary(summary: dict[str, Any]) -> None:
    wanted = {
        "wall_s",
        "visits",
        "detector_visits",
        "succeeded",
        "failed",
        "datasets_exported",
        "alerts",
        "timeliness",
        "completeness_10sigma",
        "spurious_fraction",
        "central_statements_per_visit",
        "latency_s",
        "left_behind",
    }
    assert wanted <= summary.keys()
    assert (summary["visits"], summary["detector_visits"]) == (1, 9)
    assert (summary["succeeded"], summary["failed"]) == (9, 0)
    assert summary["completeness_10sigma"] >= 0.9
    assert summary["spurious_fraction"] <= 0.1
    assert summary["alerts"] > 20
    # Exposures end when they are played, however long ago they were simulated: each can be judged.
    assert summary["timeliness"].keys() <= {"on_time", "late"}
    assert sum(summary["timeliness"].values()) == 9
    assert summary["datasets_exported"] > 9 * 20
    # For nine detectors at once, and not each.
    assert 0 < summary["central_statements_per_visit"] < 600
    legs = {"accepted_to_ready", "raw_to_first_task", "raw_to_alert", "raw_to_central"}
    assert summary["latency_s"].keys() == legs
    for leg in legs:
        values = summary["latency_s"][leg]
        assert 0 < values["p50"] <= values["p95"] <= values["max"] < 120
    order = ("raw_to_first_task", "raw_to_alert", "raw_to_central")
    medians = [summary["latency_s"][leg]["p50"] for leg in order]
    assert medians == sorted(medians)
    assert summary["left_behind"] == {"processes": 0, "shm_files": 0, "sockets": 0, "local_repos": 0}


def _check_report(report: str, output: Path) -> None:
    """The page needs nothing else, and shows each visit."""
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", report)
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", report)
    plan = json.loads((output / "night.json").read_text())
    for visit in plan["visits"]:
        assert visit["group"] in report
    assert report.count("data:image/") > 30


@pytest.mark.slow
@pytest.mark.parametrize("when", ["simulating", "at work"])
def test_interrupted(tmp_path: Path, when: str) -> None:
    output = tmp_path / "out"
    process = _start(output, "--visits", "1", "--seed", "3")
    try:
        if when == "simulating":
            wait_for((output / "staged").exists, 60.0, "the simulation to begin")
        else:
            logs = output / "state" / "logs"
            wait_for(lambda: len(list(logs.glob("*/*.log"))) > 4, 120.0, "children to work")
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=120.0)
    finally:
        process.kill()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    if when == "at work":
        summary = json.loads((output / "summary.json").read_text())
        assert not any(summary["left_behind"].values()), summary
        assert (output / "report.html").exists()


def test_output_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")
    process = _start(tmp_path, "--visits", "1")
    text, _ = process.communicate(timeout=60.0)
    assert process.returncode != 0
    assert "is not empty" in text
    assert (tmp_path / "thesis.tex").read_text() == "the only copy"
