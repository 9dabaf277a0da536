"""From a raw on disk to the first task, ppd's own share, and its loop: ``python -m bench --only life``."""

from __future__ import annotations

__all__ = ["measure_life"]

import contextlib
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ppd.config import Settings
from ppd.control import ControlClient
from ppd.demo.camera import INSTRUMENT, focal_plane

from . import ppd_way
from .central import build_central
from .life_site import await_that, build_life_central, life_settings, make_life_visit, start_ppd, write_raw
from .life_worker import LifeWorkers
from .sky import choose_detectors, make_visits

_ALONE = 20
_ROUNDS = 5
_NIGHT_VISITS = 6
_MANY = 189
_VISIT_SECONDS = 60.0
# A real raw comes half a minute after its child is ready.
_REST = 0.4


def measure_life(alone: int = _ALONE, rounds: int = _ROUNDS, per_worker: bool = True) -> dict[str, Any]:
    """Measure the lives of detector-visits, of ppd's and of the other way's workers.

    Parameters
    ----------
    alone : `int`, optional
        How many raws come one after the other.
    rounds : `int`, optional
        How often nine raws come together.
    per_worker : `bool`, optional
        Whether to measure the per-worker way too.

    Returns
    -------
    figures : `dict`
        What is told in ``docs/life.md``.
    """
    detectors = [outline.id for outline in focal_plane().detectors]
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    times: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppd-bench-")))
        fast = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppd-bench-", dir=shared_memory)))
        build_life_central(folder / "central")
        settings = life_settings(folder, folder / "central", fast / "s").model_copy(
            update={"local_repos": fast / "local"}
        )
        process, client = stack.enter_context(start_ppd(settings, folder))
        ways: dict[str, Any] = {"ppd": _Ppd(process, client, settings, folder)}
        if per_worker:
            workers = LifeWorkers(settings, fast / "workers", folder / "central", detectors)
            ways["per-worker"] = stack.enter_context(workers)
        number = 0
        for way in ways:
            times[way] = {"alone": [], "together": []}
        # In turn, so that what disturbs one disturbs the other.  The first is to wake up.
        for turn in range(-1, alone):
            for name, way in ways.items():
                number += 1
                found = _one(way, folder, number, [detectors[turn % len(detectors)]])
                if turn >= 0:
                    times[name]["alone"] += found
        for _ in range(rounds):
            for name, way in ways.items():
                number += 1
                times[name]["together"] += _one(way, folder, number, detectors)
        share = _supervisor_share(ways["ppd"], folder, number, detectors)
    return {
        "raw_closed_to_first_task_s": {
            way: {case: _summary(values) for case, values in cases.items()} for way, cases in times.items()
        },
        **share,
        **measure_stalls(),
    }


def _one(way: Any, folder: Path, number: int, detectors: Sequence[int]) -> list[float]:
    """Let a visit's raws land together; seconds until each detector's first task."""
    visit = make_life_visit(number)
    paths = {}
    for detector in detectors:
        path = folder / "raws" / INSTRUMENT / str(detector) / visit.group / "0"
        paths[detector] = path / str(visit.exposure) / "demo-r" / "raw.fits"
        write_raw(_beside(paths[detector]), visit, detector)
    way.announce(visit, paths)
    time.sleep(_REST)
    landed = {}
    for detector, path in paths.items():
        landed[detector] = time.time()
        _beside(path).rename(path)
    first = way.first_tasks(visit, detectors)
    way.finish(visit)
    for path in paths.values():
        path.unlink()
    return [first[detector] - landed[detector] for detector in detectors]


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


class _Ppd:
    """The way of ppd."""

    def __init__(
        self, process: subprocess.Popen[bytes], client: ControlClient, settings: Settings, folder: Path
    ):
        self.process = process
        self._client = client
        self._settings = settings
        self._folder = folder

    def announce(self, visit: Any, paths: dict[int, Path]) -> None:
        """Announce a visit, and wait until its children wait for their raws."""
        message = visit.message()
        every = len(paths) == len(focal_plane().detectors)
        for changes in [{}] if every else [{"detector": d} for d in paths]:
            reply = self._client.submit({**message, **changes})
            if not reply.ok:
                raise RuntimeError(f"ppd refuses a visit: {reply.error}")
        await_that(lambda: self._waiting(visit.group) == len(paths), _VISIT_SECONDS, "children to be ready")

    def _waiting(self, group: str) -> int:
        children = self._client.status()["children"]
        return sum(c["group"] == group and c["phase"] == "waiting_raws" for c in children)

    def first_tasks(self, visit: Any, detectors: Sequence[int]) -> dict[int, float]:
        """Wait for the first task of each detector; Unix seconds."""
        self.finish(visit)  # whoever looks takes processor time from those that are looked at
        found = self._events(visit.group, "first_task")
        if found.keys() != set(detectors):
            raise RuntimeError(f"only {sorted(found)} had a first task")
        return found

    def finish(self, visit: Any) -> None:
        """Wait until the visit is in the central repo."""
        await_that(lambda: self._over(visit.group), _VISIT_SECONDS, "a visit to be over")

    def _over(self, group: str) -> bool:
        time.sleep(0.2)
        states = next(v["states"] for v in self._client.status()["visits"] if v["group"] == group)
        if states.get("failed"):
            raise RuntimeError(f"{group} failed: {self._client.status()['errors'][-3:]}")
        return set(states) == {"exported"}

    def _events(self, group: str, name: str) -> dict[int, float]:
        path = self._settings.state_dir / "journal.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as journal:
            rows = journal.execute(
                "SELECT detector, t FROM event WHERE group_name=? AND name=?", (group, name)
            )
            return dict(rows.fetchall())

    def wait_idle(self) -> None:
        """Wait until no child is left: then their processor time is the nursery's children's."""
        await_that(lambda: not self._client.status()["children"], _VISIT_SECONDS, "children to end")

    def processor_seconds(self) -> tuple[float, float]:
        """Processor time of the supervisor, and of all of ppd."""
        supervisor = psutil.Process(self.process.pid)
        own = _own(supervisor)
        return own, own + _reaped(supervisor) + sum(
            _own(p) + _reaped(p) for p in supervisor.children(recursive=True)
        )


def _own(process: psutil.Process) -> float:
    t = process.cpu_times()
    return float(t.user + t.system)


def _reaped(process: psutil.Process) -> float:
    t = process.cpu_times()
    return float(t.children_user + t.children_system)


def _supervisor_share(ppd: _Ppd, folder: Path, number: int, detectors: Sequence[int]) -> dict[str, Any]:
    """Measure a night of a few visits of all detectors."""
    ppd.wait_idle()
    own, every = ppd.processor_seconds()
    for _ in range(_NIGHT_VISITS):
        number += 1
        _one(ppd, folder, number, detectors)
    ppd.wait_idle()
    own_after, every_after = ppd.processor_seconds()
    own, every = own_after - own, every_after - every
    return {
        "supervisor_cpu_share": own / every,
        "supervisor_cpu_ms_per_detector_visit": 1000.0 * own / (_NIGHT_VISITS * len(detectors)),
        "all_cpu_s_per_detector_visit": every / (_NIGHT_VISITS * len(detectors)),
    }


def measure_stalls() -> dict[str, Any]:
    """Announce a visit of all LSSTCam detectors, and take the longest turn of the loop.

    Returns
    -------
    figures : `dict`
        ``event_loop_stall_max_s``, and how many turns there were.
    """
    with tempfile.TemporaryDirectory(prefix="ppd-bench-") as name:
        repo = build_central(Path(name) / "sqlite", Path(name) / "payloads")
        with ppd_way.running(repo, worker_timeout=600.0) as ppd:
            visit = make_visits().cold
            ppd.announce(visit, choose_detectors(_MANY))
            ppd.wait(lambda: time.sleep(0.5) or _settled(ppd, visit.groupId) == _MANY, "children to be ready")
            loop = ppd.client.status()["loop"]
    return {"event_loop_stall_max_s": loop["longest"], "event_loop_turns": loop["turns"]}


def _settled(ppd: Any, group: str) -> int:
    return len(ppd.events(group, "ready")) + len(ppd.events(group, "failed"))


def _summary(values: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(values, (50, 95))
    return {"min": min(values), "median": float(p50), "p95": float(p95), "repeats": len(values)}
