"""How long nobody is answered when the supervisor is killed and started again."""

from __future__ import annotations

__all__ = ["measure_restarts"]

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ppd.config import Settings
from ppd.control import ControlClient, NoSupervisorError
from ppd.demo.camera import INSTRUMENT, focal_plane
from ppd.supervisor.journal import Journal

from .life_site import await_that, build_life_central, life_settings, make_life_visit, start_ppd
from .servers import end_with_parent

_ANSWER_SECONDS = 60.0
_REST_SECONDS = 6.0


def measure_restarts(folder: Path, sockets: Path, detector_visits: int, kills: int) -> dict[str, Any]:
    """Kill the supervisor again and again, with as many detector-visits unfinished in its journal.

    Parameters
    ----------
    folder : `pathlib.Path`
        An empty folder.
    sockets : `pathlib.Path`
        Folder of its sockets; its path is short.
    detector_visits : `int`
        How many there are in the journal: they wait for slots and raws.
    kills : `int`
        How often it is killed.

    Returns
    -------
    figures : `dict`
        Seconds from the kill to the first answer, and to the first visit that
        is accepted; and where they go.
    """
    detectors = [outline.id for outline in focal_plane().detectors]
    build_life_central(folder / "central")
    settings = life_settings(folder, folder / "central", sockets).model_copy(
        update={"image_timeout": 3600.0, "worker_timeout": 3600.0}
    )
    _fill(settings, detectors, detector_visits)
    answered, accepted, imports, inside = [], [], [], []
    number = detector_visits
    with start_ppd(settings, folder) as (first, client):
        process: subprocess.Popen[bytes] = first
        log = folder / "again.log"
        try:
            for _ in range(kills):
                time.sleep(_REST_SECONDS)  # children are at work
                unfinished = _unfinished(settings)
                if unfinished < detector_visits:
                    raise RuntimeError(f"{unfinished} detector-visits are left in the journal")
                begin = time.monotonic()
                process.send_signal(signal.SIGKILL)
                process.wait(10.0)
                process = _start(folder, log)
                answered.append(_await_answer(process, client) - begin)
                number += 1
                reply = client.submit(make_life_visit(number).message())
                if not reply.ok:
                    raise RuntimeError(f"ppd refuses a visit: {reply.error}")
                accepted.append(time.monotonic() - begin)
                inside.append(_said_itself(log))
                imports.append(answered[-1] - inside[-1])
        finally:
            if process is not first:
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10.0)
    return {
        "detector_visits": detector_visits,
        "kills": kills,
        "answered_s": _summary(answered),
        "accepted_s": _summary(accepted),
        "start_of_python_and_imports_s": _summary(imports),
        "set_up_and_recovery_s": _summary(inside),
        "mark_s": 5.0,
    }


def _fill(settings: Settings, detectors: list[int], detector_visits: int) -> None:
    """Write a journal as one has it whose visits were all accepted, and none finished."""
    settings.state_dir.mkdir(parents=True)
    journal = Journal(settings.state_dir / "journal.sqlite3")
    for number in range(0, detector_visits, len(detectors)):
        visit = make_life_visit(number)
        own = detectors[: detector_visits - number]
        journal.visit_accepted(INSTRUMENT, visit.group, own, visit.message(), "bench")
    journal.close()


def _unfinished(settings: Settings) -> int:
    path = settings.state_dir / "journal.sqlite3"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as journal:
        (count,) = journal.execute(
            "SELECT count(*) FROM detector_visit WHERE state NOT IN ('exported', 'failed')"
        ).fetchone()
    return int(count)


def _start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "ppd.cli.daemon", "--config", str(folder / "ppd.yaml")],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
            start_new_session=True,  # an interrupt is for the benchmark to handle
        )


def _await_answer(process: subprocess.Popen[bytes], client: ControlClient) -> float:
    def answers() -> float:
        if process.poll() is not None:
            raise RuntimeError(f"ppd ended with {process.returncode}")
        with contextlib.suppress(NoSupervisorError):
            client.status(timeout=5.0)
            return time.monotonic()
        return 0.0

    return float(await_that(answers, _ANSWER_SECONDS, "ppd to answer"))


def _said_itself(log: Path) -> float:
    found = re.search(r"Visits are accepted ([0-9.]+) s after the start", log.read_text())
    return float(found[1]) if found else float("nan")


def _summary(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.median(values)), "max": max(values), "repeats": len(values)}
