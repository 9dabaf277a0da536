"""Full disks: outputs wait, visits are refused, and all goes on once there is room."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from observatory import Observatory, error_of, identity, running, wait_for

pytestmark = [
    pytest.mark.night,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system"),
]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            return ballast


@pytest.mark.slow
def test_spool_disk_full(observatory: Observatory, tmp_path: Path, small: Path) -> None:
    with running(observatory, tmp_path, spool_dir=str(small / "spool"), spool_min_free="64 KiB") as ppd:
        assert ppd.submit(groupId="squeezed", detector=1).ok
        # No child begins on a full disk.
        ppd.await_state("squeezed", ready=1)
        ballast = _fill(small)
        # What was accepted goes on; its outputs wait in the local repo.
        ppd.drop(observatory.raw(1, **identity("squeezed")), 1, "squeezed")
        wait_for(lambda: ppd.counts().get("spool_full"), 30.0, "the child to meet the full disk")
        status = ppd.status()
        assert "squeezed/1#1" in error_of(status, "spool_full")
        assert status["health"] == "trouble"
        assert any("wait for room in the spool" in fault for fault in status["faults"])
        # What comes is refused, with the reason.
        reply = ppd.submit(groupId="too-much", detector=2)
        assert (reply.ok, reply.code) == (False, "unavailable")
        assert "too-much" in reply.error
        assert "no visit is taken until there is room" in reply.error
        assert "too-much" in error_of(ppd.status(), "visits_refused_spool_full")
        ballast.unlink()
        ppd.await_state("squeezed", exported=1)
        assert ppd.groups() == [("squeezed", 1)]
        # The one that was refused may come again.
        ppd.good_visit("too-much", 2)
        ppd.await_state("too-much", exported=1)
        assert ppd.status()["health"] == "ok"


@pytest.mark.slow
def test_ended_while_it_waits_for_room(observatory: Observatory, tmp_path: Path, small: Path) -> None:
    """Its pipeline has succeeded; a child that is told to end then hands over a success all the same."""
    with running(observatory, tmp_path, spool_dir=str(small / "spool"), spool_min_free="64 KiB") as ppd:
        assert ppd.submit(groupId="squeezed", detector=1).ok
        # No child begins on a full disk.
        ppd.await_state("squeezed", ready=1)
        ballast = _fill(small)
        ppd.drop(observatory.raw(1, **identity("squeezed")), 1, "squeezed")
        wait_for(lambda: ppd.counts().get("spool_full"), 30.0, "the child to meet the full disk")
        nursery = next(
            p for p in psutil.Process(ppd.process.pid).children() if "ppd.workers.nursery" in p.cmdline()
        )
        (child,) = nursery.children()
        child.send_signal(signal.SIGTERM)
        time.sleep(2.0)
        ballast.unlink()
        ppd.await_state("squeezed", exported=1)
        assert ppd.groups() == [("squeezed", 1)]


@pytest.mark.slow
def test_spool_limit(observatory: Observatory, tmp_path: Path) -> None:
    """More than its limit in the spool, and no new visit is taken."""
    with running(observatory, tmp_path, spool_max_bytes=1) as ppd:
        letter = ppd.settings.spool_dir / "dead-letters" / "an-old-one"
        letter.mkdir()
        (letter / "file").write_bytes(b"12345")
        wait_for(lambda: ppd.status()["spool"]["bytes"] >= 5, 30.0, "the spool to be measured")
        reply = ppd.submit(groupId="no", detector=1)
        assert (reply.ok, reply.code) == (False, "unavailable")
        assert "5 bytes, more than 1" in reply.error


@pytest.mark.slow
def test_journal_disk_full(observatory: Observatory, tmp_path: Path, small: Path) -> None:
    """No visit is accepted that could be lost; what was accepted before is finished."""
    changes = {
        "state_dir": str(small / "state"),
        "spool_dir": str(tmp_path / "spool"),
        "local_repos": str(tmp_path / "local"),
    }
    with running(observatory, tmp_path, **changes) as ppd:
        assert ppd.submit(groupId="before", detector=1).ok
        ppd.await_state("before", ready=1)
        ballast = _fill(small)
        ppd.drop(observatory.raw(1, **identity("before")), 1, "before")
        # SQLite may have room left in its files for the first few notes.
        for number in range(200):
            reply = ppd.submit(groupId=f"many-{number}", detector=2, nimages=1)
            if not reply.ok:
                break
        assert (reply.ok, reply.code) == (False, "unavailable")
        assert "journal can't be written" in reply.error
        status = ppd.status()
        assert "journal can't be written" in error_of(status, "visits_refused_journal")
        wait_for(lambda: ppd.states("before") == {"exported": 1}, 60.0, "the first to be exported")
        ballast.unlink()
        wait_for(lambda: not any("journal" in f for f in ppd.status()["faults"]), 10.0, "the journal to work")
        assert ppd.submit(groupId="after", detector=3).ok
        assert ppd.counts().get("internal_errors", 0) == 0
        # What was held in memory is in the journal now.
        assert ppd.stop() == 6
        ppd.start()
        assert ppd.submit(groupId="before", detector=1).code == "duplicate"
        assert not ppd.states("before")
        assert ppd.states("after")
