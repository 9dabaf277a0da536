"""The per-worker way: every detector has a process that does everything itself.

`measure` starts a host, a process of its own, that imports what workers need
and forks them before any Butler exists; workers then live through both visits.
"""

from __future__ import annotations

__all__ = ["MODULES", "measure"]

import dataclasses
import gc
import importlib
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import psutil

from ppd.deployment import NO_PIPELINE
from ppd.initializer import expected_runs
from ppd.pipelines import all_pipelines, load_pipeline, summarize
from ppd.visit import BareVisit

from .central import CentralRepo, bench_settings
from .rows import Row, Times
from .servers import count_connections, end_with_parent
from .sky import VisitPair
from .worker import Figures, Plan, Worker

_TIMEOUT = 480.0
# Measured: a worker's unique memory, and that of its two server processes.
_WORKER_MB = 70.0
_BACKEND_MB = 2 * 8.0

# What a worker would otherwise import for itself, with its Butlers or its first visit.
MODULES = (
    "lsst.daf.butler.datastores.fileDatastore",
    "lsst.daf.butler.datastores.file_datastore.transfer",
    "lsst.daf.butler.direct_butler",
    "lsst.daf.butler.formatters.json",
    "lsst.daf.butler.formatters.packages",
    "lsst.daf.butler.formatters.parquet",
    "lsst.daf.butler.formatters.pickle",
    "lsst.daf.butler.formatters.yaml",
    "lsst.daf.butler.queries.overlaps",
    "lsst.daf.butler.registry.attributes",
    "lsst.daf.butler.registry.collections.synthIntKey",
    "lsst.daf.butler.registry.databases.postgresql",
    "lsst.daf.butler.registry.databases.sqlite",
    "lsst.daf.butler.registry.datasets.byDimensions",
    "lsst.daf.butler.registry.dimensions.static",
    "lsst.pipe.base.formatters.pexConfig",
    "psycopg2",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.dialects.sqlite.pysqlite",
)


def measure(repo: CentralRepo, detectors: Sequence[int], visits: VisitPair) -> list[Row]:
    """Measure the per-worker way; see `bench.rows.Measure`.

    Raises
    ------
    MemoryError
        Raised if this machine can't hold so many workers.
    RuntimeError
        Raised if the workers did not get ready, or not in time.
    """
    each = _WORKER_MB + (_BACKEND_MB if repo.backend == "postgresql" else 0.0)
    available = psutil.virtual_memory().available / 1e6
    if len(detectors) * each > available:
        raise MemoryError(
            f"{len(detectors)} workers need {len(detectors) * each:.0f} MB; {available:.0f} MB are free"
        )
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ppd-bench-", dir=shared_memory) as folder:
        request = {
            "repo": dataclasses.asdict(repo),
            "detectors": list(detectors),
            "visits": [visit.model_dump(mode="json") for visit in visits],
            "folder": folder,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "bench.per_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent,
            start_new_session=True,  # an interrupt is for the benchmark to handle
        ) as host:
            try:
                answer, _ = host.communicate(json.dumps(request), timeout=_TIMEOUT)
            except BaseException as e:
                host.kill()  # its workers end with it
                if isinstance(e, subprocess.TimeoutExpired):
                    raise RuntimeError(f"workers were not ready after {_TIMEOUT:.0f} s") from e
                raise
    if host.returncode:
        raise RuntimeError(f"the host of the workers ended with {host.returncode}")
    return [Row(**row) for row in json.loads(answer)]


class _Host:
    """Forks workers and gives them visits.

    Parameters
    ----------
    repo : `bench.central.CentralRepo`
        The central repo.
    folder : `pathlib.Path`
        Folder of the local repos.
    """

    def __init__(self, repo: CentralRepo, folder: Path):
        self._repo = repo
        self._folder = folder
        self._plan = _make_plan(repo, folder)
        self._lines: dict[int, Connection] = {}
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}

    def start(self, detectors: Sequence[int]) -> None:
        """Fork the workers and wait until all have their Butlers and local repos."""
        context = multiprocessing.get_context("fork")
        gc.collect()
        gc.freeze()
        waiting = list(detectors)
        starting: set[Connection] = set()
        while waiting or starting:
            # A few at a time: what takes long here is no part of a visit.
            while waiting and len(starting) < 2 * (os.cpu_count() or 1):
                detector = waiting.pop(0)
                here, there = context.Pipe()
                process = context.Process(target=self._work, args=(detector, there, here))
                process.start()
                there.close()
                self._lines[detector], self._processes[detector] = here, process
                starting.add(here)
            for line in starting.intersection(wait(list(starting))):
                line.recv()
                starting.discard(line)

    def announce(self, visit: BareVisit) -> tuple[float, dict[int, Figures]]:
        """Give a visit to all workers at once.

        Returns
        -------
        begin : `float`
            When it was announced, monotonic clock.
        figures : `dict` [ `int`, `Figures` ]
            What each worker tells, when all are ready.
        """
        begin = time.monotonic()
        for line in self._lines.values():
            line.send(visit)
        return begin, {detector: line.recv() for detector, line in self._lines.items()}

    def row(
        self, state: Literal["cold", "warm"], begin: float, figures: dict[int, Figures]
    ) -> dict[str, Any]:
        """Summarize a visit while all workers are still there."""
        processes = [p.pid for p in self._processes.values() if p.pid is not None]
        ready = Times.of(f.ready - begin for f in figures.values())
        return dataclasses.asdict(
            Row(
                way="per-worker",
                backend=self._repo.backend,
                detectors=len(figures),
                state=state,
                central_statements=sum(f.statements for f in figures.values()),
                central_connections=count_connections(self._repo.database_url, processes),
                bytes_from_central=sum(f.fetched for f in figures.values()),
                bytes_held=self._bytes_held(registries=False),
                registry_bytes=self._bytes_held(registries=True),
                resolve_s=max(f.found for f in figures.values()) - begin,
                ready_all_s=ready.all_s,
                ready_p50_s=ready.p50_s,
                ready_p95_s=ready.p95_s,
                unique_memory_mb_per_child=statistics.median(
                    psutil.Process(p).memory_full_info().uss / 1e6 for p in processes
                ),
            )
        )

    def _bytes_held(self, registries: bool) -> int:
        """Bytes of the registries of local repos, or of all other files."""
        files = (p for p in self._folder.rglob("*") if p.is_file())
        return sum(p.stat().st_size for p in files if (p.suffix == ".sqlite3") is registries)

    def stop(self) -> None:
        """End all workers."""
        for line in self._lines.values():
            line.close()
        for process in self._processes.values():
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()

    def _work(self, detector: int, line: Connection, hosts_end: Connection) -> None:
        end_with_parent()
        for other in (hosts_end, *self._lines.values()):
            other.close()  # or no worker would see that the host closed its line
        worker = Worker(self._plan, detector, self._folder / str(detector))
        line.send(None)
        while True:
            try:
                visit = line.recv()
            except EOFError:
                break
            line.send(worker.prepare(visit))
        worker.close()


def _make_plan(repo: CentralRepo, folder: Path) -> Plan:
    # The pre-processing reads nothing that the main pipeline does not, and
    # the other way is measured without it too.
    settings = bench_settings(repo.uri, folder / "unused", preprocessing_pipelines=[])
    runs = expected_runs(settings, repo.day_obs, repo.deployment)
    paths = all_pipelines(settings.main_pipelines)
    summaries = [summarize(path, load_pipeline(path, settings).to_graph()) for path in paths]
    inputs = {i.name for summary in summaries for i in summary.inputs}
    written = {name for summary in summaries for name in summary.outputs}
    return Plan(
        central=repo.uri,
        database_url=repo.database_url,
        input_types=tuple(sorted(inputs - written - {"raw", "regionTimeInfo"})),
        init_types={
            runs[summary.path]: tuple(n for n in summary.init_outputs if n != "packages")
            for summary in summaries
        },
        preload_run=runs[NO_PIPELINE],
    )


def main() -> None:
    """Be the host: one request on standard input, rows on standard output."""
    logging.disable(logging.WARNING)
    request = json.loads(sys.stdin.read())
    for module in MODULES:
        importlib.import_module(module)
    host = _Host(CentralRepo(**request["repo"]), Path(request["folder"]))
    try:
        host.start(request["detectors"])
        rows = []
        states: Sequence[Literal["cold", "warm"]] = ("cold", "warm")
        for state, visit in zip(states, request["visits"], strict=True):
            begin, figures = host.announce(BareVisit.model_validate(visit))
            rows.append(host.row(state, begin, figures))
    finally:
        host.stop()
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
