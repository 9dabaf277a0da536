"""What waits in the spool: seen at once, in order, and without looking at all of it each time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ppd.supervisor import spool as spool_module
from ppd.supervisor.recovery import _handed_over
from ppd.supervisor.spool import Backlog, discard, make_folders


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    make_folders(tmp_path)
    return tmp_path


def _make(spool: Path, name: str, since: float, size: int = 10) -> Path:
    entry = spool / "building" / name
    entry.mkdir()
    (entry / "manifest.json").write_text("x" * size)
    os.utime(entry / "manifest.json", (since, since))
    return entry.rename(spool / "ready" / name)


def _names(backlog: Backlog) -> list[str]:
    return [w.path.name for w in backlog.look()]


def test_each_change_is_seen_at_once(spool: Path) -> None:
    """Also one within a tick of the file system's clock."""
    backlog = Backlog(spool)
    now = time.time()
    expected: list[str] = []
    for number in range(50):
        name = f"e-{number:03d}"
        _make(spool, name, now + number)
        expected.append(name)
        assert _names(backlog) == expected
    while expected:
        discard(spool / "ready" / expected.pop(0))
        assert _names(backlog) == expected
    assert backlog.bytes == 0


def test_seen_also_after_a_rest(spool: Path) -> None:
    backlog = Backlog(spool)
    _make(spool, "b", 200.0, 30)
    deadline = time.monotonic() + 5.0
    while backlog.look() is not backlog.look():  # it rests: nothing is listed anew
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _make(spool, "a", 100.0, 20)
    assert _names(backlog) == ["a", "b"]
    assert backlog.bytes == 50
    assert "a" in backlog and "c" not in backlog


def test_a_backlog_that_rests_is_not_listed(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Central is away for an hour: ten looks a second at 18,900 hand-overs would take a processor."""
    backlog = Backlog(spool)
    for number in range(5):
        _make(spool, f"e-{number}", 1000.0 + number)
    backlog.look()
    time.sleep(2 * spool_module._TICK_SECONDS)
    backlog.look()
    with monkeypatch.context() as context:
        context.setattr(os, "scandir", lambda path: pytest.fail(f"{path} is listed"))
        assert len(backlog.look()) == 5


def test_hand_overs_are_known_by_name(spool: Path) -> None:
    """A start does not read what waits; of two attempts the later counts."""
    for name in ("Cam-2026-11-27T01:02-4-1", "Cam-2026-11-27T01:02-4-2", "Cam-g-12-1", "stranger"):
        (spool / "ready" / name).mkdir()
    assert _handed_over(spool) == {"Cam-2026-11-27T01:02-4": 2, "Cam-g-12": 1}
