"""What the page reads on disk: the journal and the children's logs, by reading alone."""

from __future__ import annotations

__all__ = ["HistoryError", "detector_visits", "one_detector", "past", "tail_of_log"]

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

from ..logs import mask_secrets
from ..supervisor.history import (
    DetectorLine,
    HistoryError,
    VisitHistory,
    list_visits,
    show_detector,
    show_visit,
)
from .picture import Past

_LAST_VISITS = 12
_DETECTOR_VISITS = 30
_TAIL_BYTES = 64 << 10
_OVER = ("exported", "failed")


def past(state_dir: Path) -> Past:
    """Read the last visits, and what each detector was at last.

    Parameters
    ----------
    state_dir : `pathlib.Path`
        State directory.

    Returns
    -------
    past : `ppd.web.picture.Past`
        In the form in which the supervisor tells of its own.

    Raises
    ------
    HistoryError
        Raised if the journal can't be read.
    """
    visits: list[dict[str, Any]] = []
    detectors: dict[str, dict[str, Any]] = {}
    for line in list_visits(state_dir, limit=_LAST_VISITS):
        found = show_visit(state_dir, line.group)
        visits.append(_visit(found))
        # A later visit's come later, and count.
        detectors.update({str(d.detector): _entry(line.group, d) for d in found.detectors})
    return Past(tuple(visits), detectors)


def _visit(found: VisitHistory) -> dict[str, Any]:
    exported = [d.updated for d in found.detectors if d.state == "exported"]
    over = all(d.state in _OVER for d in found.detectors)
    return {
        "group": found.visit.group,
        "filter": found.visit.filter,
        "accepted": round(found.visit.accepted, 2),
        "raw": None,
        "exported": round(max(exported), 2) if exported else None,
        "over": round(max(d.updated for d in found.detectors), 2) if over and found.detectors else None,
        "slowest": None,
        "states": found.visit.states,
        "alerts": collections.Counter(d.alerts for d in found.detectors if d.alerts),
    }


def _entry(group: str, d: DetectorLine) -> dict[str, Any]:
    entry: dict[str, Any] = {"group": group, "state": d.state, "since": round(d.updated, 2)}
    if d.reason:
        entry["reason"] = d.reason
    if d.alerts:
        entry["alerts"] = d.alerts
    if d.state == "failed":
        entry |= {"failed": 1, "failed_group": group, "failed_reason": d.reason}
    return entry


def detector_visits(state_dir: Path, detector: int) -> list[dict[str, Any]]:
    """List the last visits of one detector, newest first.

    Parameters
    ----------
    state_dir : `pathlib.Path`
        State directory.
    detector : `int`
        Detector ID.

    Returns
    -------
    visits : `list` [ `dict` ]
        ``group``, ``night``, ``filter``, ``accepted``, ``state``, ``again``, ``reason``.

    Raises
    ------
    HistoryError
        Raised if the journal can't be read.
    """
    return [
        {
            "group": line.group,
            "night": line.night,
            "filter": line.filter,
            "accepted": line.accepted,
            "state": next(iter(line.states), ""),
            "again": bool(line.again),
            "reason": line.reason,
        }
        for line in reversed(list_visits(state_dir, detector=detector, limit=_DETECTOR_VISITS))
    ]


def one_detector(state_dir: Path, group: str, detector: int) -> dict[str, Any]:
    """Tell all of one detector-visit.

    Raises
    ------
    HistoryError
        Raised if the journal can't be read, or has no such detector-visit.
    """
    return dataclasses.asdict(show_detector(state_dir, group, detector))


def tail_of_log(state_dir: Path, group: str, detector: int, attempt: int | None) -> dict[str, Any]:
    """Read the end of what a child has logged.

    Parameters
    ----------
    state_dir : `pathlib.Path`
        State directory.
    group : `str`
        Group of the visit.
    detector : `int`
        Detector ID.
    attempt : `int` or `None`
        Of which attempt; `None`: of the last one.

    Returns
    -------
    log : `dict`
        ``attempt``, ``file``, ``text`` and ``cut``, whether there is more before it.

    Raises
    ------
    HistoryError
        Raised if there is no such log.
    """
    # The journal says where it is; nothing of the request becomes part of a path.
    attempts = show_detector(state_dir, group, detector).attempts
    chosen = [a for a in attempts if attempt is None or a.number == attempt]
    if not chosen:
        raise HistoryError("No child was started yet." if attempt is None else f"No attempt {attempt}.")
    path = Path(chosen[-1].log)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            data = stream.read(_TAIL_BYTES)
    except OSError as e:
        raise HistoryError(f"The log {path} is not kept any more: {e.strerror}.") from e
    cut = size > len(data)
    text = data.decode(errors="replace")
    # The first line may have lost its beginning, and with it what tells a secret.
    lines = text.split("\n")[1:] if cut else text.split("\n")
    return {
        "attempt": chosen[-1].number,
        "file": str(path),
        "text": mask_secrets("\n".join(lines)),
        "cut": cut,
    }
