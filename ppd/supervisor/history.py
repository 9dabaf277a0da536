"""What the journal tells of visits that are at work or over: for operators, by reading alone.

The file is opened for reading, whether ppd runs or not.  A reader of a WAL
file never holds up its writer; a time-out ends what takes too long.
"""

from __future__ import annotations

__all__ = [
    "STATES",
    "Attempt",
    "DetectorHistory",
    "DetectorLine",
    "Happening",
    "HistoryError",
    "VisitHistory",
    "VisitLine",
    "list_visits",
    "show_detector",
    "show_visit",
]

import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import PpdError
from ..messages import DetectorKey
from .child_logs import log_file
from .journal_schema import SCHEMA_VERSION, schema_version
from .journaled import read_judged
from .states import STATES

_SECONDS = 10.0
_STEPS = 10_000
_VISIT = "SELECT instrument, group_name, message, source, accepted, day_obs, deployment FROM visit v"


class HistoryError(PpdError):
    """Raised when the journal can't be read, or has not what was asked for."""


@dataclasses.dataclass(frozen=True)
class VisitLine:
    """One visit in short."""

    instrument: str
    group: str
    night: int
    filter: str
    accepted: float
    """Unix seconds."""
    source: str
    deployment: str
    states: dict[str, int]
    """Detector-visits by state."""
    again: int
    """How many of them took more than one attempt."""
    reason: str
    """The last reason that was written down for any of them."""


@dataclasses.dataclass(frozen=True)
class DetectorLine:
    """One detector-visit in short."""

    detector: int
    state: str
    attempt: int
    pipeline: str
    reason: str
    updated: float
    """Unix seconds."""
    alerts: str
    """Whether its alerts were in time, a `ppd.supervisor.timeliness.Timeliness`; empty: that is open, or
    nobody has judged it. In a list of visits nobody looks."""


@dataclasses.dataclass(frozen=True)
class VisitHistory:
    """One visit with its detectors."""

    visit: VisitLine
    message: dict[str, Any]
    """The announcement."""
    detectors: list[DetectorLine]


@dataclasses.dataclass(frozen=True)
class Happening:
    """Something that happened to a detector-visit, or to its whole visit."""

    time: float
    """Unix seconds."""
    seconds: float
    """Since the acceptance."""
    name: str
    whole_visit: bool
    detail: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One child of a detector-visit."""

    number: int
    pid: int | None
    begun: float | None
    """Unix seconds."""
    ended: float | None
    """Unix seconds; `None`: it has not ended, or nobody was there to see it."""
    how: str
    """How it ended."""
    phase: str
    """What it was at then."""
    log: str
    log_there: bool
    """Whether its log is kept still."""


@dataclasses.dataclass(frozen=True)
class DetectorHistory:
    """All that is known of one detector-visit."""

    visit: VisitLine
    line: DetectorLine
    raws: list[str]
    """URIs of the raws that were matched to it, each once."""
    attempts: list[Attempt]
    datasets: int
    """How many of its outputs central has."""
    happenings: list[Happening]
    """In order of time."""


def list_visits(
    state_dir: Path,
    *,
    night: int | None = None,
    since: float | None = None,
    state: str | None = None,
    detector: int | None = None,
    limit: int = 50,
) -> list[VisitLine]:
    """List visits, the last ones, oldest first.

    Parameters
    ----------
    state_dir : `pathlib.Path`
        State directory.
    night : `int`, optional
        Only those accepted for this day_obs.
    since : `float`, optional
        Only those accepted from then on, Unix seconds.
    state : `str`, optional
        Only those with a detector-visit in this state.
    detector : `int`, optional
        Only those with this detector, and only it is counted.
    limit : `int`, optional
        How many at most.

    Raises
    ------
    HistoryError
        Raised if the journal can't be read.
    """
    tests: list[tuple[str, list[Any]]] = []
    if night is not None:
        tests.append(("v.day_obs = ?", [night]))
    if since is not None:
        tests.append(("v.accepted >= ?", [since]))
    of_detectors = [("d.state = ?", state), ("d.detector = ?", detector)]
    inner = [(text, value) for text, value in of_detectors if value is not None]
    if inner:
        own = "d.instrument = v.instrument AND d.group_name = v.group_name"
        text = " AND ".join([own, *(text for text, _ in inner)])
        tests.append((f"EXISTS (SELECT 1 FROM detector_visit d WHERE {text})", [v for _, v in inner]))
    where = " WHERE " + " AND ".join(text for text, _ in tests) if tests else ""
    values = [value for _, own_values in tests for value in own_values]
    with _reading(state_dir) as db:
        rows = db.execute(f"{_VISIT}{where} ORDER BY v.accepted DESC LIMIT ?", [*values, limit]).fetchall()
        return [_visit_line(row, _detectors(db, row[0], row[1], detector)) for row in reversed(rows)]


def show_visit(state_dir: Path, group: str) -> VisitHistory:
    """Tell of one visit.

    Raises
    ------
    HistoryError
        Raised if the journal can't be read, or has no such visit.
    """
    with _reading(state_dir) as db:
        row = _find_visit(db, group)
        detectors = _detectors(db, row[0], row[1], judged=True)
        return VisitHistory(_visit_line(row, detectors), json.loads(row[2]), detectors)


def show_detector(state_dir: Path, group: str, detector: int) -> DetectorHistory:
    """Tell all of one detector-visit.

    Raises
    ------
    HistoryError
        Raised if the journal can't be read, or has no such detector-visit.
    """
    with _reading(state_dir) as db:
        row = _find_visit(db, group)
        instrument, _, _, _, accepted, night, _ = row
        lines = _detectors(db, instrument, group, detector, judged=True)
        if not lines:
            raise HistoryError(f"Visit {group!r} has no detector {detector}.")
        happenings = [
            Happening(when, when - accepted, name, number is None, json.loads(detail))
            for when, number, name, detail in db.execute(
                "SELECT t, detector, name, detail FROM event WHERE group_name=? AND instrument=?"
                " AND (detector=? OR detector IS NULL) ORDER BY t, id",
                (group, instrument, detector),
            )
        ]

    def log_of(attempt: int) -> Path:
        key = DetectorKey(instrument=instrument, group=group, detector=detector, attempt=attempt)
        return log_file(state_dir, night, key)

    raws = dict.fromkeys(str(h.detail.get("uri", "")) for h in happenings if h.name == "raw_seen")
    return DetectorHistory(
        visit=_visit_line(row, lines),
        line=lines[0],
        raws=list(raws),
        attempts=_attempts(happenings, log_of),
        datasets=sum(int(h.detail.get("datasets", 0)) for h in happenings if h.name == "exported"),
        happenings=happenings,
    )


@contextlib.contextmanager
def _reading(state_dir: Path) -> Iterator[sqlite3.Connection]:
    path = Path(state_dir) / "journal.sqlite3"
    if not path.exists():
        raise HistoryError(f"There is no journal {path}: no ppd has run with this state_dir.")
    try:
        with contextlib.closing(_open(path)) as db:
            deadline = time.monotonic() + _SECONDS
            db.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            version = schema_version(db)
            if version > SCHEMA_VERSION:
                raise HistoryError(f"The journal {path} is of a newer ppd (schema {version}).")
            if version < SCHEMA_VERSION:
                raise HistoryError(
                    f"The journal {path} is of an older ppd (schema {version}): "
                    "the next start of ppd brings it up to date."
                )
            # One transaction: all that is told is of one moment.
            db.execute("BEGIN")
            yield db
    except sqlite3.OperationalError as e:
        if str(e) == "interrupted":
            raise HistoryError(
                f"The journal {path} was not read within {_SECONDS:.0f} s: ask for less (--since, --limit)."
            ) from e
        raise HistoryError(f"The journal {path} can't be read: {e}.") from e
    except (sqlite3.Error, ValueError) as e:
        raise HistoryError(f"The journal {path} can't be read: {e}.") from e


def _open(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=2.0, isolation_level=None)
    try:
        schema_version(db)
        return db
    except sqlite3.OperationalError:
        db.close()
        if path.with_name(f"{path.name}-wal").exists():
            raise
        # Nobody writes, and who may not write the folder can't have the files of a WAL made.
        return sqlite3.connect(f"{uri}?immutable=1", uri=True, timeout=2.0, isolation_level=None)


def _find_visit(db: sqlite3.Connection, group: str) -> tuple[Any, ...]:
    row = db.execute(f"{_VISIT} WHERE group_name=? ORDER BY accepted DESC LIMIT 1", (group,)).fetchone()
    if row is None:
        raise HistoryError(f"The journal has no visit {group!r}.")
    return tuple(row)


def _detectors(
    db: sqlite3.Connection,
    instrument: str,
    group: str,
    detector: int | None = None,
    judged: bool = False,
) -> list[DetectorLine]:
    rows = db.execute(
        "SELECT detector, state, attempt, pipeline, reason, updated FROM detector_visit"
        " WHERE instrument=? AND group_name=? AND (? IS NULL OR detector=?) ORDER BY detector",
        (instrument, group, detector, detector),
    )
    alerts = read_judged(db, instrument, group) if judged else {}
    return [
        DetectorLine(number, state, attempt, pipeline or "", reason or "", updated, alerts.get(number, ""))
        for number, state, attempt, pipeline, reason, updated in rows
    ]


def _visit_line(row: tuple[Any, ...], detectors: list[DetectorLine]) -> VisitLine:
    instrument, group, message, source, accepted, night, deployment = row
    states = {state: sum(d.state == state for d in detectors) for state in STATES}
    reasons = [d for d in detectors if d.reason]
    return VisitLine(
        instrument=instrument,
        group=group,
        night=night,
        filter=str(json.loads(message).get("filters") or ""),
        accepted=accepted,
        source=source,
        deployment=deployment,
        states={state: count for state, count in states.items() if count},
        again=sum(d.attempt > 1 for d in detectors),
        reason=max(reasons, key=lambda d: d.updated).reason if reasons else "",
    )


def _attempts(happenings: list[Happening], log_of: Callable[[int], Path]) -> list[Attempt]:
    """Put together what is known of each child."""
    # After a restart the same number may come again.
    found: dict[tuple[int, int], dict[str, Happening]] = {}
    for h in happenings:
        if h.name in ("forked", "ended") and "attempt" in h.detail:
            child = (int(h.detail["attempt"]), int(h.detail.get("pid") or 0))
            found.setdefault(child, {})[h.name] = h
    attempts = []
    for (number, pid), own in found.items():
        begin, end = own.get("forked"), own.get("ended")
        detail = end.detail if end else {}
        attempts.append(
            Attempt(
                number=number,
                pid=pid or None,
                begun=begin.time if begin else None,
                ended=end.time if end else None,
                how=str(detail.get("how", "")),
                phase=str(detail.get("phase", "")),
                log=str(log_of(number)),
                log_there=log_of(number).exists(),
            )
        )
    return attempts
