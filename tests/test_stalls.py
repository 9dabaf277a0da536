"""The watch on the supervisor's loop: what it measures, and what it says of a long turn."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
from observatory import Observatory, running

from ppd.supervisor.stalls import LoopWatch


def _ignore(seconds: float, stack: str) -> None:
    raise AssertionError(f"a turn of {seconds} s counts as a stall")


def _wait_here(released: threading.Event) -> None:
    """Be what a stack shows."""
    assert released.wait(30.0)


def test_turns_are_measured() -> None:
    watch = LoopWatch(_ignore, limit=30.0)
    for seconds in (0.0, 0.05, 0.0):
        watch.begin()
        time.sleep(seconds)
        watch.end()
        time.sleep(0.1)  # between turns: no part of any
    loop = watch.describe()
    assert loop["turns"] == 3
    assert 0.05 <= loop["longest"] == loop["longest_minute"] <= loop["busy"]
    # Had the pauses counted, they would have been the longest.
    watch.end()
    assert watch.describe() == loop


def test_an_old_turn_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = LoopWatch(_ignore, limit=30.0)
    for pause, seconds in ((0.0, 0.5), (50.0, 0.2), (20.0, 0.1)):
        now[0] += pause
        watch.begin()
        now[0] += seconds
        watch.end()
    assert watch.describe()["longest"] == pytest.approx(0.5)
    assert watch.describe()["longest_minute"] == pytest.approx(0.2)
    now[0] += 61.0
    assert watch.describe()["longest_minute"] == 0.0


def test_a_stall_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """While it lasts, with the place; and counted when it is over."""
    stalls: list[tuple[float, str]] = []
    released, logged = threading.Event(), threading.Event()
    count = 0

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal count
            count += 1
            logged.set()

    logger = logging.getLogger("ppd.supervisor.stalls")
    handler = Tell()
    logger.addHandler(handler)
    try:
        with LoopWatch(lambda seconds, stack: stalls.append((seconds, stack)), limit=0.2) as watch:
            watch.begin()
            release = threading.Thread(target=lambda: (logged.wait(30.0), time.sleep(0.5), released.set()))
            release.start()
            _wait_here(released)
            watch.end()
            release.join()
            watch.begin()
            watch.end()
    finally:
        logger.removeHandler(handler)
    assert count == 1
    assert "_wait_here" in caplog.text
    ((seconds, stack),) = stalls
    assert seconds >= 0.5
    assert "_wait_here" in stack


@pytest.mark.slow
@pytest.mark.night
def test_status_tells(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path) as ppd:
        ppd.good_visit("watched", 4)
        ppd.await_state("watched", exported=1)
        loop = ppd.status()["loop"]
        assert loop["turns"] > 10
        assert 0.0 < loop["longest_minute"] <= loop["longest"] <= loop["busy"]
        text = ppd.command("ctl", "status")
        assert text.returncode == 0, text.stderr
        assert "longest turn" in text.stdout
