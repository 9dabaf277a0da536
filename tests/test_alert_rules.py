"""Every alert fires from a real cause: a real ppd in trouble is asked, Prometheus' own tool judges."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from metrics_support import Scrape, alerts, firing
from observatory import Observatory, Ppd, running, wait_for
from redis_support import RedisServer, redis_server

from bench.moved_clock import environment, move
from ppd.messages import ControlRequest
from ppd.visit import TAI_MINUS_UTC

pytestmark = [pytest.mark.night, pytest.mark.slow]

_DAY = 86400.0


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock") / "clock"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("stream")) as server:
        yield server


@pytest.fixture(scope="module")
def ppd(
    observatory: Observatory, tmp_path_factory: pytest.TempPathFactory, clock: Path, stream: RedisServer
) -> Iterator[Ppd]:
    move(clock, 0.0)

    def prepare(ppd: Ppd) -> None:
        ppd.environ = environment(clock, ppd.environ)

    folder = tmp_path_factory.mktemp("alarmed")
    changes = {"image_timeout": 5.0, "repo_retry_delay": 0.5, "redis_url": stream.url, "redis_retry_delay": 1}
    with running(observatory, folder, prepare, **changes) as ppd:
        yield ppd


def _scrape(ppd: Ppd) -> Scrape:
    done = ppd.command("ctl", "metrics", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    return Scrape(done.stdout)


def _component(scrape: Scrape, name: str) -> bool:
    return scrape.value("ppd_fault", component=name) > 0


def _in_trouble(ppd: Ppd, component: str) -> Scrape:
    """Wait until a part of ppd is in trouble; return what it tells then."""

    def trouble() -> Scrape | None:
        scrape = _scrape(ppd)
        return scrape if _component(scrape, component) else None

    found = wait_for(trouble, 40.0, f"trouble with {component}")
    assert isinstance(found, Scrape)
    return found


def _calm(ppd: Ppd) -> Scrape:
    def calm() -> Scrape | None:
        scrape = _scrape(ppd)
        return scrape if not any(v for _, v in scrape.samples["ppd_fault"]) else None

    found = wait_for(calm, 60.0, "ppd to be well")
    assert isinstance(found, Scrape)
    return found


@contextlib.contextmanager
def _changed(ppd: Ppd, **changes: object) -> Iterator[None]:
    """Have other settings in force for a while; afterwards the file is what it was, to the byte."""
    text = ppd.config.read_text()
    _reload(ppd, yaml.safe_dump(yaml.safe_load(text) | changes))
    try:
        yield
    finally:
        _reload(ppd, text)


def _reload(ppd: Ppd, text: str) -> None:
    ppd.config.write_text(text)
    done = ppd.command("ctl", "reload", "--timeout", "60")
    assert done.returncode == 0, done.stdout + done.stderr


def _spoiled(ppd: Ppd) -> Scrape:
    """Three visits of one detector whose raw is no raw, and one that gets none."""
    for group in ("spoiled-1", "spoiled-2", "spoiled-3"):
        assert ppd.submit(groupId=group, detector=3).ok
        ppd.drop(b"no raw", 3, group)
    for group in ("spoiled-1", "spoiled-2", "spoiled-3"):
        ppd.await_state(group, failed=1, timeout=120.0)
    return _scrape(ppd)


def _nonsense(ppd: Ppd) -> Scrape:
    assert ppd.client.submit("nonsense").code == "malformed"
    return _scrape(ppd)


def _no_raws(ppd: Ppd) -> Scrape:
    assert ppd.submit(groupId="without", detector=4).ok
    return _scrape(ppd)


def _late(ppd: Ppd) -> Scrape:
    """No pipeline is as fast as that."""
    with _changed(ppd, alert_deadline=0.001):
        ppd.good_visit("hopeless", 2)
        ppd.await_state("hopeless", exported=1, timeout=120.0)
        return _scrape(ppd)


def _paused(ppd: Ppd) -> Scrape:
    assert ppd.command("ctl", "pause").returncode == 0
    found = _scrape(ppd)
    assert ppd.command("ctl", "resume").returncode == 0
    return found


def _exporter_ends(ppd: Ppd) -> Scrape:
    """Again and again: after the first end another begins at once."""
    for _ in range(3):
        os.kill(_process(ppd, "ppd.supervisor.exporter_process"), signal.SIGKILL)
        wait_for(lambda: _has(ppd, "ppd.supervisor.exporter_process"), 30.0, "another exporter")
    return _in_trouble(ppd, "export")


def _nursery_ends(ppd: Ppd) -> Scrape:
    os.kill(_process(ppd, "ppd.workers.nursery"), signal.SIGKILL)
    return _in_trouble(ppd, "nursery")


def _process(ppd: Ppd, module: str) -> int:
    """Process ID of ppd's child that runs a module."""
    [found] = wait_for(lambda: _has(ppd, module), 30.0, f"{module} to run")
    return int(found)


def _has(ppd: Ppd, module: str) -> list[int]:
    assert ppd.process is not None
    found = []
    for child in psutil.Process(ppd.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if module in child.cmdline():
                found.append(child.pid)
    return found


def _raws_are_gone(ppd: Ppd) -> Scrape:
    away = ppd.raws.with_name("elsewhere")
    ppd.raws.rename(away)
    try:
        return _in_trouble(ppd, "raws")
    finally:
        away.rename(ppd.raws)


def _journal_is_held(ppd: Ppd) -> Scrape:
    """As a disk that is full would do, and it holds up the loop as a slow one would."""
    path = ppd.settings.state_dir / "journal.sqlite3"
    # There will be something to write: it fails when no raw comes.
    assert ppd.submit(groupId="held", detector=8).ok
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert ppd.client.submit(ppd.observatory.message(groupId="unwritten")).code == "unavailable"
        return _in_trouble(ppd, "journal")


def _spool_fills(ppd: Ppd) -> Scrape:
    """One hand-over is too much for a spool of so few bytes; the exporter does not take it."""
    exporter = _process(ppd, "ppd.supervisor.exporter_process")
    os.kill(exporter, signal.SIGSTOP)
    try:
        ppd.good_visit("spooled", 5)
        ppd.await_state("spooled", handed_over=1, timeout=120.0)
    finally:
        os.kill(exporter, signal.SIGCONT)

    def full() -> Scrape | None:
        scrape = _scrape(ppd)
        return scrape if max(v for _, v in scrape.samples["ppd_spool_used_ratio"]) > 0.8 else None

    # The exporter measures the spool, and says so before it has emptied it.
    found = wait_for(full, 20.0, "the spool to be full")
    assert isinstance(found, Scrape)
    return found


def _dead_letter(ppd: Ppd) -> Scrape:
    """A file of a hand-over is spoiled while it waits."""
    exporter = _process(ppd, "ppd.supervisor.exporter_process")
    os.kill(exporter, signal.SIGSTOP)
    try:
        ppd.good_visit("spoiled-later", 6)
        ppd.await_state("spoiled-later", handed_over=1, timeout=120.0)
        [entry] = (ppd.settings.spool_dir / "ready").iterdir()
        largest = max((p for p in entry.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 0xFF
        largest.write_bytes(data)
    finally:
        os.kill(exporter, signal.SIGCONT)
    found = _in_trouble(ppd, "dead_letters")
    assert ppd.command("ctl", "dead-letters", "drop", entry.name, "--yes").returncode == 0
    return found


def _spool_is_gone(ppd: Ppd) -> Scrape:
    away = ppd.settings.spool_dir.with_name("spool-elsewhere")
    ppd.settings.spool_dir.rename(away)
    try:
        found = _in_trouble(ppd, "spool")
        assert "can't be used" in str(ppd.client.submit(ppd.observatory.message(groupId="homeless")).error)
        return found
    finally:
        away.rename(ppd.settings.spool_dir)


def _journal_is_spoiled(ppd: Ppd) -> Scrape:
    """Nobody has thought of an announcement that is none any more."""
    path = ppd.settings.state_dir / "journal.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10.0)) as db:
        db.execute("UPDATE visit SET message='nonsense' WHERE group_name='spoiled-1'")
    assert ppd.client.request(ControlRequest(command="retry", group="spoiled-1")).code == "unavailable"
    return _scrape(ppd)


_CAUSES: list[tuple[Callable[[Ppd], Scrape], set[str]]] = [
    (_nonsense, {"PpdVisitsRefused"}),
    (_no_raws, {"PpdNoRaws"}),
    (
        _spoiled,
        {
            "PpdRawsRefused",
            "PpdDetectorVisitsFail",
            "PpdDetectorFails",
            "PpdNoAlerts",
            "PpdAlertsLateFast",
            "PpdAlertsLateSlow",
        },
    ),
    (_late, {"PpdOverloaded"}),
    (_paused, {"PpdPausedLong"}),
    (_exporter_ends, {"PpdExportTrouble"}),
    (_nursery_ends, {"PpdNurseryDown"}),
    (_raws_are_gone, {"PpdRawSourceTrouble"}),
    (_journal_is_held, {"PpdJournalTrouble", "PpdLoopStalls"}),
    (_dead_letter, {"PpdDeadLetters"}),
    (_spool_is_gone, {"PpdSpoolFull"}),
    (_journal_is_spoiled, {"PpdInternalErrors"}),
]
_seen: set[str] = set()


@pytest.mark.parametrize(("provoke", "expected"), _CAUSES, ids=[c.__name__.strip("_") for c, _ in _CAUSES])
def test_cause(ppd: Ppd, provoke: Callable[[Ppd], Scrape], expected: set[str]) -> None:
    before = _calm(ppd)
    found = firing([before, provoke(ppd)])
    assert expected <= found
    _seen.update(found & expected)
    _calm(ppd)


def test_the_stream_is_away(ppd: Ppd, stream: RedisServer) -> None:
    before = _calm(ppd)
    stream.stop()
    try:
        assert "PpdVisitSourceTrouble" in firing([before, _in_trouble(ppd, "visits")])
    finally:
        stream.start()
    _calm(ppd)
    _seen.add("PpdVisitSourceTrouble")


def test_the_spool_fills(ppd: Ppd) -> None:
    before = _calm(ppd)
    with _changed(ppd, spool_max_bytes=1000):
        found = firing([before, _spool_fills(ppd)])
    assert {"PpdSpoolFilling", "PpdSpoolFull"} <= found
    _seen.update({"PpdSpoolFilling", "PpdSpoolFull"})


def test_the_next_night_is_not_prepared(ppd: Ppd, clock: Path) -> None:
    before = _calm(ppd)
    seconds = (time.time() + TAI_MINUS_UTC - _DAY / 2) % _DAY
    move(clock, _DAY - seconds - 300.0)
    try:
        assert "PpdNotPrepared" in firing([before, _in_trouble(ppd, "init_outputs")])
    finally:
        move(clock, 0.0)
    _seen.add("PpdNotPrepared")


def test_it_is_down_and_started_again_and_again(ppd: Ppd) -> None:
    scrapes: list[Scrape | None] = [_calm(ppd)]
    for _ in range(3):
        assert ppd.stop() == 0
        ppd.start()
        scrapes.append(_scrape(ppd))
    assert "PpdRestarts" in firing(scrapes)
    assert ppd.stop() == 0
    assert ppd.command("ctl", "metrics").returncode == 3
    assert firing([scrapes[-1], None]) >= {"PpdDown"}
    _seen.update({"PpdRestarts", "PpdDown"})


def test_all_have_fired() -> None:
    """But for two of central's, which are in `test_postgres_replica`: SQLite is never away."""
    assert _seen == set(alerts()) - {"PpdReplicaTrouble", "PpdCentralAway"}, "run the whole module"
