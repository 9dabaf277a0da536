"""Ending ppd: each grace, impatience, and what the exit code says."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from observatory import Observatory, Ppd, _environment, running, sleepers, wait_for, write_sleepy

from ppd.supervisor.spool import ready_entries

pytestmark = pytest.mark.night


@contextlib.contextmanager
def _locked(ppd: Ppd) -> Iterator[None]:
    """Let nobody write to central."""
    with contextlib.closing(sqlite3.connect(ppd.central / "gen3.sqlite3", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


def _hand_over(ppd: Ppd, group: str) -> None:
    """Have one hand-over in the spool."""
    ppd.good_visit(group, 2)
    wait_for(lambda: ready_entries(ppd.settings.spool_dir), 40.0, "a hand-over")
    wait_for(lambda: ppd.states(group) == {"handed_over": 1}, 20.0, "its child to end")


def _sleep(ppd: Ppd, group: str) -> int:
    ppd.good_visit(group, 2)
    return wait_for(lambda: sleepers(ppd.folder / "sleepy"), 40.0, "a child to sleep")[0]


def _end(ppd: Ppd) -> tuple[int, float]:
    """Wait for the end of a ppd that was told to; return its code and how long it took."""
    assert ppd.process is not None
    begin = time.monotonic()
    return ppd.process.wait(60.0), time.monotonic() - begin


@pytest.mark.slow
def test_told_twice(observatory: Observatory, tmp_path: Path) -> None:
    main = write_sleepy(tmp_path / "sleepy", 60.0)
    with running(observatory, tmp_path, main=(main,), stop_grace=50.0) as ppd:
        child = _sleep(ppd, "impatience")
        assert ppd.process is not None
        ppd.process.terminate()
        # Who comes now is told to come again.
        wait_for(lambda: ppd.submit(groupId="late").code == "unavailable", 5.0, "visits to be refused")
        assert ppd.process.poll() is None
        ppd.process.terminate()
        code, seconds = _end(ppd)
        assert (code, seconds < 2.5) == (6, True), seconds
        assert not psutil.pid_exists(child)
        # The next start looks into what its child had made.
        assert ppd.leftovers() == {"processes": 0, "shm_files": 0, "sockets": 0, "local_repos": 1}
        ppd.start()
        ppd.await_state("impatience", exported=1)
        assert ppd.groups() == [("impatience", 2)]


@pytest.mark.slow
def test_stop_now(observatory: Observatory, tmp_path: Path) -> None:
    main = write_sleepy(tmp_path / "sleepy", 60.0)
    with running(observatory, tmp_path, main=(main,), stop_grace=50.0) as ppd:
        _sleep(ppd, "now")
        assert ppd.command("ctl", "stop", "--now").returncode == 0
        code, seconds = _end(ppd)
        assert (code, seconds < 2.5) == (6, True), seconds
        # The next start looks into what its child had made.
        assert ppd.leftovers() == {"processes": 0, "shm_files": 0, "sockets": 0, "local_repos": 1}
        shutil.rmtree(ppd.settings.local_repos)
        ppd.settings.local_repos.mkdir()


@pytest.mark.slow
def test_hand_overs_are_left(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path, drain_grace=1.0) as ppd:
        with _locked(ppd):
            _hand_over(ppd, "kept")
            assert ppd.stop() == 7
        assert not any(ppd.leftovers().values())
        assert ppd.groups() == []
        ppd.start()
        wait_for(lambda: ppd.groups() == [("kept", 2)], 20.0, "the hand-over in central")
        assert ppd.stop() == 0


@pytest.mark.slow
def test_the_spool_has_a_grace_of_its_own(observatory: Observatory, tmp_path: Path) -> None:
    """Longer than that of the children; what central takes late is not left."""
    with running(observatory, tmp_path, stop_grace=0.5, drain_grace=40.0) as ppd:
        with _locked(ppd):
            _hand_over(ppd, "patience")
            assert ppd.process is not None
            ppd.process.terminate()
            time.sleep(6.0)
            assert ppd.process.poll() is None
        assert _end(ppd)[0] == 0
        assert ppd.groups() == [("patience", 2)]


@pytest.mark.slow
def test_told_twice_while_the_spool_drains(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path, drain_grace=50.0) as ppd:
        with _locked(ppd):
            _hand_over(ppd, "drain")
            assert ppd.process is not None
            ppd.process.terminate()
            time.sleep(1.0)
            assert ppd.process.poll() is None
            ppd.process.send_signal(signal.SIGINT)
            code, seconds = _end(ppd)
        assert (code, seconds < 2.5) == (7, True), seconds
        ppd.start()
        wait_for(lambda: ppd.groups() == [("drain", 2)], 20.0, "the hand-over in central")


@pytest.mark.slow
def test_signal_during_the_start(observatory: Observatory, tmp_path: Path) -> None:
    ppd = Ppd(observatory, tmp_path)
    try:
        ppd.initialize()
        for seconds in (0.0, 0.5, 1.5):
            with ppd.log.open("ab") as stream:
                ppd.process = subprocess.Popen(
                    [sys.executable, "-m", "ppd.cli.daemon", "--config", str(ppd.config)],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=_environment(),
                )
            wait_for(lambda p=ppd: psutil.Process(p.process.pid).children(), 30.0, "a nursery")
            time.sleep(seconds)
            ppd.process.terminate()
            code, took = _end(ppd)
            # Once visits are accepted it is an end like any other.
            assert (code in (0, 130), took < 2.0) == (True, True), (seconds, code, took)
            assert not any(ppd.leftovers().values()), (seconds, ppd.leftovers())
    finally:
        ppd.close()
