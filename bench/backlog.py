"""Central is away for long: what waits, what that costs meanwhile, and how fast it drains afterwards."""

from __future__ import annotations

__all__ = ["measure_away", "measure_backlog"]

import contextlib
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from lsst.daf.butler import Config, DimensionUniverse

from .draining import drain, export_settings
from .hand_overs import TYPES, make_hand_over
from .life_site import await_that, build_life_central, life_settings, start_ppd
from .per_detector import Transfers, make_source, prepare_central
from .servers import PostgresServer

_MAKERS = 2
_STEP = 1000
_LOOK_SECONDS = 5.0
_DRAIN_SECONDS = 1200.0


def measure_away(
    folder: Path, sockets: Path, server: PostgresServer, work: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Let central go away while a real ppd runs, and hand-overs come.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where ppd is to be; what was handed over stays in its ``spool``.
    sockets : `pathlib.Path`
        Folder of its sockets; its path is short.
    server : `bench.servers.PostgresServer`
        The server of central; it is there again at the end.
    work : sequence of `tuple` [ `int`, `int` ]
        The hand-overs: number of visit, and detector.

    Returns
    -------
    figures : `dict`
        Growth of the processes, their share of a processor, the longest turn
        of the loop, and bytes in the spool.
    """
    central = folder / "ppd-central"
    build_life_central(central, Config({"registry": {"db": server.create_database("away")}}))
    settings = life_settings(folder, central, sockets).model_copy(update={"spool_dir": folder / "spool"})
    with start_ppd(settings, folder) as (process, client):
        server.halt()
        supervisor = psutil.Process(process.pid)
        exporter = next(p for p in supervisor.children() if "exporter_process" in " ".join(p.cmdline()))
        ours = {"supervisor": supervisor, "exporter": exporter}
        make = _Makers(settings.spool_dir)
        try:
            # The first to see what any of it takes.
            make(work[:_STEP])
            _await_entries(client, _STEP)
            begin = _memory(ours)
            idle = {_STEP: _shares(ours)}
            for first in range(_STEP, len(work), _STEP):
                make(work[first : first + _STEP])
            _await_entries(client, len(work))
        finally:
            make.close()
        end = _memory(ours)
        idle[len(work)] = _shares(ours)
        status = client.status()
        waiting = max(1, len(work) - _STEP)
        figures = {
            "hand_overs": len(work),
            "rss_growth_MB_per_1000": {n: (end[n] - begin[n]) / 1e3 / waiting for n in ours},
            "rss_MB": {n: end[n] / 1e6 for n in ours},
            "cpu_share": {str(waiting): shares for waiting, shares in idle.items()},
            "loop_longest_s": status["loop"]["longest"],
            "loop_longest_last_minute_s": status["loop"]["longest_minute"],
            "mark_loop_s": 0.1,
        }
    server.resume()
    return {**figures, **_usage(settings.spool_dir)}


def measure_backlog(
    folder: Path, central: Path, hand_overs: int, sample: int, first_visit: int, detectors: int
) -> dict[str, Any]:
    """Drain the spool that `measure_away` has left, and compare with single transfers.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where the spool is.
    central : `pathlib.Path`
        The central repo that it is drained to.
    hand_overs : `int`
        How many there are.
    sample : `int`
        How many single transfers are measured, before and after.
    first_visit : `int`
        Number of a visit from which on none is in central.
    detectors : `int`
        How many the camera has.
    """
    half = sample // 2
    rates = [_single(folder / "before", central, half, first_visit, detectors)]
    settings = export_settings(folder, central)
    drained = drain([settings], _DRAIN_SECONDS)
    if drained.entries != hand_overs - 1:
        raise RuntimeError(f"{drained.entries} of {hand_overs} hand-overs were exported")
    visits_of_half = half // detectors + 1
    rates.append(_single(folder / "after", central, half, first_visit + visits_of_half, detectors))
    single = 2.0 / sum(1.0 / rate for rate in rates)
    seconds = [s for _, s in drained.batches]
    return {
        "hand_overs": drained.entries,
        "datasets": drained.datasets,
        "seconds": drained.seconds,
        "per_s": drained.rate,
        "datasets_per_s": drained.datasets / drained.seconds,
        "batches": len(drained.batches),
        "batch_s_p50": float(np.median(seconds)),
        "batch_s_p95": float(np.percentile(seconds, 95)),
        "share_outside_batches": 1.0 - sum(seconds) / drained.seconds,
        "exporter_cpu_s": drained.cpu_seconds,
        "exporter_rss_MB": drained.memory / 1e6,
        "per_detector": {"sample": 2 * half, "per_s": single, "before": rates[0], "after": rates[1]},
        "ratio": drained.rate / single,
        "mark_ratio": 5.0,
    }


class _Makers:
    """Processes that make hand-overs."""

    def __init__(self, spool: Path):
        self._spool = spool
        self._pool = multiprocessing.get_context("spawn").Pool(_MAKERS)

    def __call__(self, work: Sequence[tuple[int, int]]) -> None:
        parts = [(self._spool, work[n::_MAKERS]) for n in range(_MAKERS)]
        self._pool.map_async(_make, parts).get(120.0)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


def _make(part: tuple[Path, Sequence[tuple[int, int]]]) -> None:
    spool, work = part
    universe = DimensionUniverse()
    for number, detector in work:
        make_hand_over(spool, number, detector, universe)


def _await_entries(client: Any, count: int) -> None:
    await_that(lambda: client.status()["spool"]["entries"] >= count, 60.0, "the exporter to see the spool")


def _single(folder: Path, central: Path, count: int, first_visit: int, detectors: int) -> float:
    """Detector-visits a second, each by a transfer of its own."""
    work = [(first_visit + n // detectors, n % detectors) for n in range(count + 1)]
    source = make_source(folder, work, detectors)
    prepare_central(source, central)
    transfers = Transfers(source, central)
    with contextlib.closing(transfers):
        transfers.transfer(*work[0])  # wakes up
        return count / sum(transfers.transfer(*one) for one in work[1:])


def _memory(processes: dict[str, psutil.Process]) -> dict[str, int]:
    return {name: p.memory_info().rss for name, p in processes.items()}


def _shares(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """Share of a processor that each takes, over some seconds."""
    before = {name: _cpu(p) for name, p in processes.items()}
    begin = time.monotonic()
    time.sleep(_LOOK_SECONDS)
    seconds = time.monotonic() - begin
    return {name: (_cpu(p) - before[name]) / seconds for name, p in processes.items()}


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _usage(spool: Path) -> dict[str, float]:
    """Bytes of the spool for each hand-over: of content, and of disk."""
    entries = list((spool / "ready").iterdir())
    content = disk = 0
    for entry in entries:
        disk += 512 * entry.stat().st_blocks
        for file in entry.iterdir():
            status = file.stat()
            content += status.st_size
            disk += 512 * status.st_blocks
    return {
        "datasets_each": len(TYPES),
        "spool_bytes_each": content / len(entries),
        "spool_disk_bytes_each": disk / len(entries),
    }
