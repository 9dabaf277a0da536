"""The exporter as a process: killed, stopped, hung, and never two at one spool."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from lsst.daf.butler import Butler, Config
from observatory import wait_for
from postgres_support import PostgresServer, primary

from bench.hand_overs import RUN, TYPES, make_central, make_hand_over
from ppd.config import Settings
from ppd.messages import Exported, SetAside
from ppd.supervisor.exporter_keeper import ExporterKeeper
from ppd.supervisor.spool import has_ready, make_folders


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with primary(tmp_path_factory.mktemp("server")) as server:
        yield server


class Night:
    """A supervisor's part: it keeps an exporter, journals what it reports, and lets go."""

    def __init__(self, folder: Path, server: PostgresServer, **changes: Any):
        self.server = server
        self.database = folder.name
        server.create_database(self.database)
        config = Config()
        config["registry", "db"] = server.url(self.database)
        make_central(folder / "central", config)
        self.spool = folder / "spool"
        make_folders(self.spool)
        self.settings = Settings.model_validate(
            {
                "instrument": "DemoCam",
                "central_repo": str(folder / "central"),
                "main_pipelines": [{"pipelines": ["x.yaml"]}],
                "state_dir": str(folder),
                "spool_dir": str(self.spool),
                "export_age": 0.0,
                "export_batch": 4,
                "repo_retry_delay": 0.5,
                **changes,
            }
        )
        self.butler = Butler.from_config(str(folder / "central"), writeable=False)
        self.keeper = ExporterKeeper(self.settings)
        self.reports: list[str] = []
        self.set_aside: list[SetAside] = []

    def close(self) -> None:
        self.keeper.stop(10.0)
        self.butler.close()

    def make(self, numbers: range, detectors: int = 4) -> None:
        for number in numbers:
            for detector in range(detectors):
                make_hand_over(self.spool, number, detector, self.butler.dimensions)

    def turn(self, let_go: bool = True) -> bool:
        """One turn of the loop; whether the spool is empty."""
        for message in self.keeper.receive():
            if isinstance(message, Exported):
                entries = [e.entry for e in message.entries]
                self.reports += entries
                if let_go:
                    self.keeper.discard(entries)
            elif isinstance(message, SetAside):
                self.set_aside.append(message)
        self.keeper.flush()
        time.sleep(0.01)
        return not has_ready(self.spool)

    def drain(self, seconds: float = 60.0) -> None:
        wait_for(self.turn, seconds, "the spool to drain")

    def check(self, hand_overs: int) -> None:
        """Each dataset is in central once, readable, and says whose it is."""
        self.butler.registry.refresh()
        for name in TYPES:
            refs = self.butler.query_datasets(name, RUN, find_first=False, limit=None)
            assert len({ref.dataId for ref in refs}) == len(refs) == hand_overs
            for ref in refs:
                assert self.butler.get(ref)["of"][1:] == [ref.dataId["detector"], name]
        files = [p for p in Path(self.settings.central_repo).rglob("*synthetic*") if p.is_file()]
        assert len(files) == hand_overs * len(TYPES)
        assert list((self.spool / "building").iterdir()) == []


@pytest.fixture
def night(tmp_path: Path, server: PostgresServer) -> Iterator[Night]:
    night = Night(tmp_path, server)
    yield night
    night.close()


@pytest.mark.slow
def test_nothing_goes_before_it_is_let_go(night: Night) -> None:
    night.make(range(2))
    wait_for(lambda: night.turn(let_go=False) or len(night.reports) == 8, 40.0, "all to be exported")
    assert len(list((night.spool / "ready").iterdir())) == 8
    # The next exporter does not know of it: it finds the rows, and says it again.
    os.kill(night.keeper.pid, signal.SIGKILL)
    wait_for(lambda: night.turn() or len(night.reports) == 16, 40.0, "all to be reported again")
    assert sorted(night.reports[:8]) == sorted(night.reports[8:])
    night.drain()
    night.check(8)


@pytest.mark.slow
def test_killed_over_and_over(night: Night) -> None:
    """At any moment of its work."""
    night.make(range(4), detectors=9)
    killed = 0
    for delay in (0.02, 0.1, 0.2):
        pid = night.keeper.pid
        wait_for(lambda: night.turn() or night.keeper.state.exporting, 40.0, "an export to begin")
        until = time.monotonic() + delay
        while time.monotonic() < until:
            night.turn()
        if has_ready(night.spool):
            os.kill(pid, signal.SIGKILL)
            killed += 1
            wait_for(lambda pid=pid: night.turn() or night.keeper.pid != pid, 40.0, "another exporter")
    assert killed >= 2
    night.drain()
    night.check(36)
    assert night.set_aside == []


def test_call_that_hangs_is_ended(tmp_path: Path, server: PostgresServer) -> None:
    """Somebody holds a lock and does not let go: the exporter is killed, and the export done anew."""
    night = Night(tmp_path, server, export_timeout=6.0)
    try:
        night.make(range(1))
        night.drain()
        address = f"host={server.folder} port={server.port} user=postgres dbname={night.database}"
        with contextlib.closing(psycopg2.connect(address)) as other:
            other.cursor().execute("LOCK TABLE dataset IN ACCESS EXCLUSIVE MODE")
            night.make(range(1, 2))
            pid = night.keeper.pid
            wait_for(lambda: night.turn() or night.keeper.pid != pid, 40.0, "the exporter to be killed")
            assert "took more than 6 s" in str(night.keeper.trouble)
            other.rollback()
        night.drain()
        night.check(8)
        wait_for(lambda: night.turn() and night.keeper.trouble is None, 10.0, "the trouble to be over")
    finally:
        night.close()


def test_server_is_away(night: Night) -> None:
    """Stopped while there is work: it says so, waits, and goes on."""
    night.make(range(1))
    night.drain()
    pid = night.keeper.pid
    night.server.stop()
    try:
        night.make(range(1, 3))
        wait_for(lambda: night.turn() or night.keeper.trouble, 40.0, "the trouble to be told")
        assert len(list((night.spool / "ready").iterdir())) == 8
    finally:
        night.server.start()
    night.drain()
    night.check(12)
    assert night.keeper.pid == pid
    assert night.set_aside == []


@pytest.mark.slow
def test_never_two_at_one_spool(night: Night) -> None:
    """A second one waits until the first is gone."""
    night.make(range(1))
    night.drain()
    os.kill(night.keeper.pid, signal.SIGSTOP)
    second = ExporterKeeper(night.settings)
    try:
        night.make(range(1, 2))
        until = time.monotonic() + 8.0
        while time.monotonic() < until:
            assert second.receive() == []
            time.sleep(0.05)
        assert second.state.entries == 0  # it has not even looked
        os.kill(night.keeper.pid, signal.SIGKILL)
        night.keeper._restart_at = float("inf")
        night.keeper._process._process.wait(10.0)
        wait_for(lambda: [m for m in second.receive() if isinstance(m, Exported)], 20.0, "the second to work")
    finally:
        second.stop(10.0)


_PARENT = """
import sys, time
from ppd.config import Settings
from ppd.supervisor.exporter_keeper import ExporterKeeper
keeper = ExporterKeeper(Settings.model_validate_json(sys.stdin.read()))
print(keeper.pid, flush=True)
time.sleep(60)
"""


def test_supervisor_killed(night: Night) -> None:
    """Its exporter ends with it: the next supervisor's has the spool to itself."""
    night.keeper.stop(10.0)
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write(night.settings.model_dump_json())
        parent.stdin.close()
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
        wait_for(lambda: not psutil.pid_exists(pid), 5.0, "the exporter to end")
