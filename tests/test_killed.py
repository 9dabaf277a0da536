"""Processes that are killed or hang: nothing accepted is lost, nothing is made twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from observatory import Observatory, Ppd, error_of, identity, running, sleepers, wait_for, write_sleepy

pytestmark = pytest.mark.night


@contextlib.contextmanager
def _sleepy(observatory: Observatory, folder: Path, seconds: float, **changes: object) -> Iterator[Ppd]:
    """Run a ppd whose first detector-visit sleeps in a task."""
    main = write_sleepy(folder / "sleepy", seconds)
    with running(observatory, folder, main=(main,), **changes) as ppd:
        yield ppd


def _begin(ppd: Ppd, group: str, detector: int) -> int:
    """Announce a detector-visit, let its raw land, and return its child once it sleeps."""
    ppd.good_visit(group, detector)
    return wait_for(lambda: sleepers(ppd.folder / "sleepy"), 30.0, "a child to sleep")[0]


@pytest.mark.slow
def test_child_killed_in_a_task(observatory: Observatory, tmp_path: Path) -> None:
    with _sleepy(observatory, tmp_path, 60.0) as ppd:
        child = _begin(ppd, "murder", 2)
        os.kill(child, signal.SIGKILL)
        ppd.good_visit("bystander", 3)
        ppd.await_state("murder", exported=1)
        ppd.await_state("bystander", exported=1)
        error = error_of(ppd.status(), "retried")
        assert "murder/2#1" in error
        assert "SIGKILL while main" in error
        assert Counter(ppd.groups()) == {("murder", 2): 1, ("bystander", 3): 1}
        assert ppd.counts()["succeeded"] == 2


@pytest.mark.slow
def test_child_hangs(observatory: Observatory, tmp_path: Path) -> None:
    """A stopped process says nothing, not even by its second thread."""
    with _sleepy(observatory, tmp_path, 60.0, heartbeat_interval=0.5, heartbeat_timeout=3.0) as ppd:
        os.kill(_begin(ppd, "coma", 2), signal.SIGSTOP)
        ppd.await_state("coma", exported=1)
        assert "not heard of for too long" in error_of(ppd.status(), "retried")
        assert ppd.groups() == [("coma", 2)]


@pytest.mark.slow
def test_child_takes_too_long(observatory: Observatory, tmp_path: Path) -> None:
    with _sleepy(observatory, tmp_path, 60.0, worker_timeout=15.0) as ppd:
        _begin(ppd, "slow", 2)
        ppd.await_state("slow", failed=1)
        assert "took longer than 15 s" in error_of(ppd.status(), "failed")
        assert ppd.groups() == []


@pytest.mark.slow
def test_nursery_killed(observatory: Observatory, tmp_path: Path) -> None:
    """A new one comes, the old one's children are reaped, and their work is done again."""
    with _sleepy(observatory, tmp_path, 60.0) as ppd:
        child = _begin(ppd, "orphan", 2)
        nursery = psutil.Process(child).parent()
        assert nursery is not None
        nursery.kill()
        wait_for(lambda: not psutil.pid_exists(child), 15.0, "the orphan to be reaped")
        ppd.await_state("orphan", exported=1)
        assert ppd.counts()["nursery_restarts"] == 1
        assert ppd.status()["health"] == "ok"
        assert ppd.groups() == [("orphan", 2)]


@pytest.mark.slow
def test_newborn_children_get_sigterm(observatory: Observatory, tmp_path: Path) -> None:
    """A signal to a child that has only just been forked does not reach the nursery."""
    with _sleepy(observatory, tmp_path, 0.1, retries=3) as ppd:
        nursery = next(
            p for p in psutil.Process(ppd.status()["pid"]).children() if "ppd.workers.nursery" in p.cmdline()
        )
        children = Path(f"/proc/{nursery.pid}/task/{nursery.pid}/children")
        assert ppd.submit(groupId="newborn").ok
        seen: set[str] = set()
        deadline = time.monotonic() + 60.0
        # As soon as they are there: nine detectors, each tried four times.
        while ppd.counts().get("failed", 0) < 9 and time.monotonic() < deadline:
            until = time.monotonic() + 0.5
            while time.monotonic() < until and nursery.is_running():
                for pid in set(children.read_text().split()) - seen:
                    seen.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGTERM)
        assert len(seen) >= 36
        assert nursery.is_running()
        assert ppd.counts().get("nursery_restarts", 0) == 0
        assert "SIGTERM while starting" in error_of(ppd.status(), "failed")
        ppd.good_visit("afterwards", 3)
        ppd.await_state("afterwards", exported=1)


@pytest.mark.slow
def test_supervisor_killed(observatory: Observatory, tmp_path: Path) -> None:
    """Children and nursery end by themselves; the next supervisor finishes what was accepted."""
    with _sleepy(observatory, tmp_path, 60.0) as ppd:
        child = _begin(ppd, "phoenix", 2)
        nursery = psutil.Process(child).ppid()
        assert ppd.submit(groupId="patient", detector=5).ok
        assert ppd.process is not None
        ppd.process.kill()
        ppd.process.wait(10.0)
        for pid in (child, nursery):
            wait_for(lambda p=pid: not _lives(p), 15.0, f"process {pid} to end without its supervisor")
        # Its raw comes while nobody looks.
        ppd.drop(observatory.raw(5, **identity("patient")), 5, "patient")
        ppd.start()
        ppd.await_state("phoenix", exported=1)
        ppd.await_state("patient", exported=1)
        assert ppd.groups() == [("patient", 5), ("phoenix", 2)]
        # Not even a third one does it again.
        assert ppd.stop() == 0
        ppd.start()
        assert ppd.submit(groupId="phoenix", detector=2).code == "duplicate"
        time.sleep(1.0)
        assert ppd.status()["detector_visits"]["exported"] == 0
        assert ppd.counts().get("raws_of_finished_visits") == 2
        assert ppd.groups() == [("patient", 5), ("phoenix", 2)]


@pytest.mark.slow
def test_stop_leaves_work_for_the_next_start(observatory: Observatory, tmp_path: Path) -> None:
    with _sleepy(observatory, tmp_path, 60.0, stop_grace=1.0) as ppd:
        _begin(ppd, "unfinished", 2)
        assert ppd.submit(groupId="unseen", detector=3).ok
        assert ppd.stop() == 6
        assert not any(ppd.leftovers().values())
        ppd.start()
        ppd.drop(observatory.raw(3, **identity("unseen")), 3, "unseen")
        ppd.await_state("unfinished", exported=1)
        ppd.await_state("unseen", exported=1)
        assert ppd.groups() == [("unfinished", 2), ("unseen", 3)]


@pytest.mark.slow
def test_stop_lets_running_pipelines_end(observatory: Observatory, tmp_path: Path) -> None:
    with _sleepy(observatory, tmp_path, 2.0) as ppd:
        _begin(ppd, "finishing", 2)
        assert ppd.stop() == 0
        assert ppd.groups() == [("finishing", 2)]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
