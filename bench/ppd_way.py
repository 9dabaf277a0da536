"""The way of ppd: one supervisor, one cache, one child per detector from one nursery."""

from __future__ import annotations

__all__ = ["measure", "measure_fork", "running"]

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import yaml

from ppd.config import Settings
from ppd.control import ControlClient, NoSupervisorError
from ppd.initializer import initialize
from ppd.messages import ControlRequest
from ppd.visit import BareVisit

from .central import CentralRepo, bench_settings
from .rows import ForkTimes, Row, Times
from .servers import count_connections, end_with_parent
from .sky import VisitPair, choose_detectors, make_visits

_READY_SECONDS = 240.0
_FORKS = 20
_TOGETHER = 16


def measure(repo: CentralRepo, detectors: Sequence[int], visits: VisitPair) -> list[Row]:
    """Measure ppd; see `bench.rows.Measure`.

    Raises
    ------
    RuntimeError
        Raised if the children did not get ready in time.
    """
    with running(repo) as ppd:
        cold = ppd.row(repo, detectors, visits.cold, "cold")
        # No raw will come: the first visit is over before the second is announced,
        # as it is for the other way's workers.
        ppd.end_children()
        return [cold, ppd.row(repo, detectors, visits.warm, "warm")]


def measure_fork(repo: CentralRepo) -> ForkTimes:
    """Measure children one after the other, and some that start together.

    Parameters
    ----------
    repo : `bench.central.CentralRepo`
        The central repo.
    """
    with running(repo, warm_ahead=True) as ppd:
        ppd.wait(lambda: ppd.client.status()["inherited"]["quick"], "the nursery to be prepared")
        alone: list[float] = []
        for detector in choose_detectors(_FORKS):
            visit = make_visits().cold
            ppd.announce(visit, [detector])
            alone += ppd.opened(visit.groupId, 1)
        visit = make_visits().cold
        ppd.announce(visit, choose_detectors(_TOGETHER))
        together = ppd.opened(visit.groupId, _TOGETHER)
    p50, p95 = np.percentile(alone, (50, 95))
    return ForkTimes(float(p50), float(p95), float(np.median(together)))


class _Ppd:
    """A real ppd on a repo of the benchmark.

    Parameters
    ----------
    process : `subprocess.Popen`
        The supervisor.
    settings : `ppd.config.Settings`
        Its settings.
    """

    def __init__(self, process: subprocess.Popen[bytes], settings: Settings):
        self._process = process
        self._settings = settings
        self.socket_dir = settings.socket_dir
        self.client = ControlClient(settings.socket_dir, timeout=10.0)

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = _READY_SECONDS) -> None:
        """Wait until something is so, bounded."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ppd ended with {self._process.returncode}")
            with contextlib.suppress(NoSupervisorError):
                if condition():
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{seconds:.0f} s are not enough for {what}")

    def announce(self, visit: BareVisit, detectors: Sequence[int]) -> None:
        """Announce a visit, for all detectors at once or for some one by one."""
        message = visit.model_dump(mode="json")
        every = len(detectors) == len(choose_detectors(189))
        for changes in [{}] if every else [{"detector": d} for d in detectors]:
            request = ControlRequest(command="submit", visit={**message, **changes})
            reply = self.client.request(request)
            if not reply.ok:
                raise RuntimeError(f"ppd refuses a visit: {reply.error}")

    def events(self, group: str, name: str) -> list[tuple[float, dict[str, Any]]]:
        """Read the journal: time and detail of a visit's events."""
        path = self._settings.state_dir / "journal.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as journal:
            rows = journal.execute(
                "SELECT t, detail FROM event WHERE group_name=? AND name=?", (group, name)
            ).fetchall()
        return [(t, json.loads(detail)) for t, detail in rows]

    def opened(self, group: str, count: int) -> list[float]:
        """Wait for the children of a visit; seconds from fork to open Butler of each."""
        self.wait(lambda: len(self.events(group, "ready")) == count, "children to be ready")
        return [detail["opened"] for _, detail in self.events(group, "ready")]

    def end_children(self) -> None:
        """End all children, and wait until they are gone."""
        for child in self.client.status()["children"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child["pid"], signal.SIGTERM)
        self.wait(lambda: not self.client.status()["children"], "children to end")

    def row(
        self, repo: CentralRepo, detectors: Sequence[int], visit: BareVisit, state: Literal["cold", "warm"]
    ) -> Row:
        """Announce a visit and measure until all its children have their inputs."""
        before = self.client.status()["cache"]["bytes_fetched"]
        begin = time.time()
        self.announce(visit, detectors)
        self.opened(visit.groupId, len(detectors))
        ready = Times.of(t - begin for t, _ in self.events(visit.groupId, "ready"))
        resolved = self.events(visit.groupId, "resolved")
        cache = self.client.status()["cache"]
        groups = [c for c in self.client.status()["children"] if c["group"] == visit.groupId]
        children = [psutil.Process(c["pid"]) for c in groups]
        return Row(
            way="ppd",
            backend=repo.backend,
            detectors=len(detectors),
            state=state,
            central_statements=sum(detail["statements"] for _, detail in resolved),
            central_connections=count_connections(repo.database_url, [self._process.pid]),
            bytes_from_central=cache["bytes_fetched"] - before,
            bytes_held=cache["bytes_held"],
            registry_bytes=self._registries(),
            resolve_s=max(t for t, _ in resolved) - begin,
            ready_all_s=ready.all_s,
            ready_p50_s=ready.p50_s,
            ready_p95_s=ready.p95_s,
            unique_memory_mb_per_child=statistics.median(c.memory_full_info().uss / 1e6 for c in children),
        )

    def _registries(self) -> int:
        """Bytes of all SQLite files: the cache's registry, its copies, the children's."""
        places = [*self._settings.shm_dir.glob("ppd-LSSTCam-*"), self._settings.local_repos]
        return sum(p.stat().st_size for place in places for p in place.rglob("*.sqlite3"))


@contextlib.contextmanager
def running(repo: CentralRepo, **changes: Any) -> Iterator[_Ppd]:
    """Run a ppd that has never seen a visit; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="ppd-bench-") as name:
        folder = Path(name)
        # Only the announcement may make it fetch: that is what is measured.
        values = {
            "slots": 400,
            "instrument_description": "bench.instrument:describe",
            "warm_ahead": False,
            "retries": 0,
            "preprocessing_pipelines": [],
            "local_repos": str(_fast_folder() / folder.name),
            **changes,
        }
        settings = bench_settings(repo.uri, folder / "state", **values)
        initialize(settings)
        config = folder / "ppd.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude={"config_path"})))
        with (folder / "ppd.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ppd.cli.daemon", "--config", str(config)],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),
                start_new_session=True,  # an interrupt is for the benchmark to handle
            )
            ppd = _Ppd(process, settings)
            try:
                ppd.wait(ppd.client.status, "ppd to start", 60.0)
                yield ppd
            except RuntimeError as e:
                raise RuntimeError(f"{e}\n{(folder / 'ppd.log').read_text()[-3000:]}") from e
            finally:
                # What waits for raws that nobody takes is not waited for.
                for _ in range(2):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.2)
                try:
                    process.wait(60.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10.0)
                ppd.client.close()
                shutil.rmtree(settings.local_repos, ignore_errors=True)


def _fast_folder() -> Path:
    """Shared memory where there is some: the other way's repos are there too."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
