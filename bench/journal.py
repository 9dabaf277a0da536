"""What it costs to write things down: the journal's commits, and its bytes."""

from __future__ import annotations

__all__ = ["measure"]

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppd.supervisor.journal import Journal

# How many notes come together in a turn of the loop: one, those of a usual
# turn, and one of each detector of a large camera.
_SIZES = {1: 60, 20: 40, 189: 20}
_NOTES = 378
_DETECTORS = 189
_CAM = "DemoCam"
_MESSAGE = {
    "salIndex": 2, "scriptSalIndex": 6, "instrument": _CAM, "groupId": "", "coordinateSystem": 2,
    "position": [150.1, 2.2], "startTime": 2_026_000.25, "rotationSystem": 2, "cameraAngle": 10.0,
    "filters": "demo-r", "dome": 2, "duration": 35.0, "nimages": 1, "survey": "demo", "totalCheckpoints": 1,
    "private_sndStamp": 2_026_000.5,
}  # fmt: skip


def measure(folder: Path) -> dict[str, Any]:
    """Measure the journal on a disk.

    Parameters
    ----------
    folder : `pathlib.Path`
        Folder on the disk to measure; what is made in it is removed.

    Returns
    -------
    figures : `dict`
        ``commit_ms``: p50 and p95 of a commit, by the number of notes in it;
        ``grouped_per_s`` and ``single_per_s``: notes a second, committed 189
        together and one by one; ``grouped_gain``: their ratio;
        ``bytes_per_detector_visit``: the file's growth.
    """
    path = folder / "bench-journal.sqlite3"
    try:
        commits = {}
        journal = Journal(path)
        journal.visit_accepted(_CAM, "commits", range(_DETECTORS), _MESSAGE, "bench")
        for size, repeats in _SIZES.items():
            times = [1000.0 * _timed(lambda n=size: _commit(journal, n)) for _ in range(repeats)]
            p50, p95 = np.quantile(times, [0.5, 0.95])
            commits[str(size)] = {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}
        single = _timed(lambda: [_commit(journal, 1) for _ in range(_NOTES)])
        grouped = _timed(lambda: [_commit(journal, _DETECTORS) for _ in range(_NOTES // _DETECTORS)])
        journal.close()
        _remove(path)
        return {
            "commit_ms": commits,
            "grouped_per_s": round(_NOTES / grouped),
            "single_per_s": round(_NOTES / single),
            "grouped_gain": round(single / grouped, 1),
            "bytes_per_detector_visit": _bytes_per_detector_visit(path),
        }
    finally:
        _remove(path)


def _commit(journal: Journal, notes: int) -> None:
    for detector in range(notes):
        journal.event(_CAM, "commits", detector, "first_task", {"attempt": 1, "task": "isr"})
    journal.commit()


def _timed(act: Callable[[], Any]) -> float:
    begin = time.monotonic()
    act()
    return time.monotonic() - begin


def _bytes_per_detector_visit(path: Path) -> int:
    journal = Journal(path)
    journal.close()
    before = path.stat().st_size
    journal = Journal(path)
    for visit in range(4):
        group = f"2026-11-24T01:02:0{visit}.000"
        journal.visit_accepted(_CAM, group, range(_DETECTORS), {**_MESSAGE, "groupId": group}, "control")
        for detector in range(_DETECTORS):
            _live(journal, group, detector)
        journal.commit()
    journal.close()
    return round((path.stat().st_size - before) / (4 * _DETECTORS))


def _live(journal: Journal, group: str, detector: int) -> None:
    """Note all that is noted of a detector-visit which has no trouble."""
    seconds = 0.123456789012345
    raw = f"/data/raws/{_CAM}/{detector}/{group}/0/2026112400001/demo-r/raw.fits"
    pipeline = "/etc/ppd/pipelines/ApPipe.yaml"
    course: tuple[tuple[str | None, str | None, dict[str, Any]], ...] = (
        ("waiting", "inputs_ready", {}),
        ("forked", "forked", {"pid": 12345}),
        ("ready", "ready", {"pid": 12345, "seconds": seconds, "opened": seconds}),
        (None, "preprocess_start", {"pipelines": 1}),
        (None, "preprocess_end", {"success": True, "pipeline": pipeline, "seconds": seconds}),
        (None, "raw_seen", {"uri": raw, "snap": 0, "closed": 1_795_500_000.123456}),
        (None, "ingested", {"exposure": 2_026_112_400_001, "seconds": seconds}),
        ("running", "main_start", {"pipelines": 1}),
        (None, "first_task", {"task": "isr"}),
        (None, "pipeline_end", {"success": True, "pipeline": pipeline, "seconds": seconds}),
        (None, "handed_over", {"datasets": 20, "bytes": 12_345_678, "seconds": seconds}),
        (None, "ended", {"pid": 12345, "how": "exit code 0", "phase": "handing_over"}),
        ("handed_over", None, {}),
        ("exported", "exported", {"datasets": 20, "seconds": seconds, "batch": 20}),
    )
    for state, event, detail in course:
        if event is not None:
            journal.event(_CAM, group, detector, event, {"attempt": 1, **detail})
        if state is not None:
            journal.state(_CAM, group, detector, state, attempt=1, pipeline=pipeline)


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
