"""An operator pauses, goes on and cancels, while ppd is at work."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from observatory import Observatory, Ppd, error_of, identity, running, sleepers, wait_for, write_sleepy

pytestmark = pytest.mark.night


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    """The first that gets so far sleeps long in its main pipeline."""
    folder = tmp_path_factory.mktemp("steered")
    main = write_sleepy(folder / "sleepy", 120.0)
    with running(observatory, folder, main=(main,), image_timeout=200.0) as ppd:
        yield ppd


def _ctl(ppd: Ppd, *arguments: str, code: int = 0) -> str:
    done = ppd.command("ctl", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_cancel(ppd: Ppd) -> None:
    """One that works, one that waits for its raw, one that is not asked for: this one goes on."""
    for detector in (1, 2, 3):
        assert ppd.submit(groupId="cancelled", detector=detector).ok
    ppd.drop(ppd.observatory.raw(1, **identity("cancelled")), 1, "cancelled")
    wait_for(lambda: sleepers(ppd.config.parent / "sleepy"), 60.0, "a child to sleep")
    wait_for(lambda: ppd.states("cancelled").get("ready") == 2, 30.0, "two children to wait for raws")
    assert "say --yes" in _ctl(ppd, "cancel", "cancelled", code=2)
    assert "no detectors 9" in _ctl(ppd, "cancel", "cancelled", "--detectors", "9", "--yes", code=1)
    assert "No visit 'nobody'" in _ctl(ppd, "cancel", "nobody", "--yes", code=1)
    said = _ctl(ppd, "cancel", "cancelled", "--detectors", "1-2", "--reason", "satellite", "--yes")
    assert said == "cancelled: detectors 1-2\n"
    wait_for(lambda: ppd.states("cancelled") == {"ready": 1, "failed": 2}, 30.0, "two to be cancelled")
    assert "cancelled by an operator: satellite" in error_of(ppd.status(), "failed")
    assert "retried" not in ppd.counts()
    ppd.drop(ppd.observatory.raw(3, **identity("cancelled")), 3, "cancelled")
    ppd.await_state("cancelled", exported=1, failed=2)
    assert "All of that is over" in _ctl(ppd, "cancel", "cancelled", "--yes", code=1)


@pytest.mark.slow
def test_a_detector_is_paused(ppd: Ppd) -> None:
    """Visits are taken without it, by a start in between too, until it goes on."""
    said = _ctl(ppd, "pause", "--detectors", "4,6", "--reason", "its bias jumps")
    assert said.startswith("detectors 4,6: paused since ")
    assert said.endswith(": its bias jumps\n")
    assert "no detectors 77" in _ctl(ppd, "pause", "--detectors", "77", code=1)
    reply = ppd.submit(groupId="without")
    assert sorted(reply.result["detectors"]) == [0, 1, 2, 3, 5, 7, 8]
    alone = ppd.submit(groupId="alone", detector=4)
    assert (alone.ok, alone.code) == (False, "ignored")
    assert "detector 4 is paused since" in str(alone.error)
    assert "its bias jumps" in str(alone.error)
    assert _ctl(ppd, "cancel", "without", "--yes").startswith("cancelled: detectors 0-3,5,7-8")
    assert "detectors 4,6: paused since" in _ctl(ppd, "status")
    ppd.stop()
    ppd.start()
    assert ppd.status()["health"] == "ok"
    assert list(ppd.status()["paused"]["detectors"]) == ["4", "6"]
    assert _ctl(ppd, "resume", "--detectors", "4").startswith("detectors 6: paused")
    ppd.good_visit("with", 4)
    ppd.await_state("with", exported=1)
    assert _ctl(ppd, "resume") == "nothing is paused\n"


def test_all_is_paused(ppd: Ppd) -> None:
    """What was accepted goes on; nothing is taken until ppd may go on."""
    assert ppd.submit(groupId="before", detector=5).ok
    paused = json.loads(_ctl(ppd, "pause", "--reason", "clouds", "--json"))
    assert paused["all"]["reason"] == "clouds"
    assert ppd.status()["health"] == "paused"
    refused = ppd.submit(groupId="meanwhile", detector=5)
    assert (refused.ok, refused.code) == (False, "unavailable")
    assert "clouds" in error_of(ppd.status(), "visits_refused_paused")
    ppd.drop(ppd.observatory.raw(5, **identity("before")), 5, "before")
    ppd.await_state("before", exported=1)
    assert _ctl(ppd, "resume") == "nothing is paused\n"
    ppd.good_visit("meanwhile", 5)
    ppd.await_state("meanwhile", exported=1)
    assert ppd.status()["health"] == "ok"
