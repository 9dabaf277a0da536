"""What children inherit from the nursery: served from memory, never changed, never needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from lsst.daf.butler import Butler
from observatory import Observatory, Ppd, running, sleepers, wait_for, write_sleepy

pytestmark = pytest.mark.night

_GREEDY = """
description: Instrument signature removal, and two tasks that read its inputs again.
instrument: ppd.demo.democam.DemoCam
tasks:
  isr: {class: ppd.demo.tasks.isr.IsrTask}
  greedy: {class: greedy_tasks.GreedyTask}
  watch: {class: greedy_tasks.WatchTask}
"""


def _inherited(ppd: Ppd) -> dict[str, Any]:
    return ppd.status()["inherited"]


@pytest.mark.slow
def test_what_is_inherited_is_never_changed(observatory: Observatory, tmp_path: Path) -> None:
    """One task spoils its inputs: the next in the same child, and the next child, get them whole."""
    pipeline = tmp_path / "Greedy.yaml"
    pipeline.write_text(_GREEDY)
    with running(observatory, tmp_path, main=(str(pipeline),)) as ppd:
        wait_for(lambda: _inherited(ppd)["datasets"], 120.0, "the nursery to have read inputs")
        assert _inherited(ppd)["quick"]
        for group in ("first", "second"):
            ppd.good_visit(group, 4)
            ppd.await_state(group, exported=1)
        text = "\n".join(p.read_text() for p in (tmp_path / "state" / "logs").rglob("*.log"))
        # camera and bias for each of three tasks.
        served = [int(n) for n in re.findall(r"(\d+) inputs came from memory", text)]
        assert len(served) == 2 and min(served) >= 6
        assert "opened the slow way" not in text
        # What was missing at the start was there later, and nothing is unsafe to rehearse.
        log = ppd.log.read_text()
        assert "children begin slowly" not in log
        assert not [line for line in log.splitlines() if "Not rehearsed" in line][1:], log
        with Butler.from_config(str(ppd.central), writeable=False) as butler:
            seen = [butler.get(r) for name in ("spoilt", "seen") for r in ppd.outputs(name)]
        assert len(seen) == 4
        assert len({s["pid"] for s in seen}) == 2
        assert len({(tuple(s["camera"]), s["bias"]) for s in seen}) == 1
        assert seen[0]["camera"] and seen[0]["bias"] > 0


@pytest.mark.slow
def test_without(observatory: Observatory, tmp_path: Path) -> None:
    """Nothing inherited, nothing fetched ahead: the same outputs."""
    with running(observatory, tmp_path, inherit_bytes=0, warm_ahead=False) as ppd:
        wait_for(lambda: _inherited(ppd)["quick"], 30.0, "the nursery to be prepared")
        assert _inherited(ppd)["datasets"] == 0
        ppd.good_visit("bare", 4)
        ppd.await_state("bare", exported=1)
        assert ppd.groups() == [("bare", 4)]


@pytest.mark.slow
def test_readers_that_start_threads_stay_out(observatory: Observatory, tmp_path: Path) -> None:
    """Arrow's reader does: its datasets are read by each child, and the nursery stays single-threaded."""
    with running(observatory, tmp_path) as ppd:
        wait_for(lambda: _inherited(ppd)["datasets"], 120.0, "the nursery to have read inputs")
        assert "defects: its reader starts threads" in ppd.log.read_text()
        assert ppd.process is not None
        children = psutil.Process(ppd.process.pid).children()
        nurseries = [p for p in children if "ppd.workers.nursery" in p.cmdline()]
        assert [p.num_threads() for p in nurseries] == [1]
        ppd.good_visit("threads", 4)
        ppd.await_state("threads", exported=1)


@pytest.mark.slow
def test_a_fresh_nursery_takes_over(observatory: Observatory, tmp_path: Path) -> None:
    """It inherits too; the old one's child works to its end, and no visit waits."""
    main = write_sleepy(tmp_path / "sleepy", 15.0)
    with running(observatory, tmp_path, main=(main,), nursery_max_age=1.0) as ppd:
        assert ppd.process is not None
        supervisor = psutil.Process(ppd.process.pid)
        ppd.good_visit("old", 2)
        child = psutil.Process(wait_for(lambda: sleepers(tmp_path / "sleepy"), 40.0, "a child to sleep")[0])
        old = child.ppid()
        wait_for(
            lambda: any(p.pid != old for p in supervisor.children()) and "takes over" in ppd.log.read_text(),
            40.0,
            "a fresh nursery to take over",
        )
        assert child.is_running()
        ppd.good_visit("new", 3)
        ppd.await_state("new", exported=1)
        young = [p for p in sleepers(tmp_path / "sleepy") if p != child.pid]
        assert young
        ppd.await_state("old", exported=1)
        assert "nursery_restarts" not in ppd.counts()
        assert ppd.status()["health"] == "ok"
        wait_for(lambda: not psutil.pid_exists(old), 20.0, "the old nursery to end")
