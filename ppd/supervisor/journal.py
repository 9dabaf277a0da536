"""The journal: what was accepted and what became of it, durable."""

from __future__ import annotations

__all__ = ["Journal"]

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE visit (
    instrument TEXT NOT NULL, group_name TEXT NOT NULL, message TEXT NOT NULL,
    source TEXT NOT NULL, accepted REAL NOT NULL, PRIMARY KEY (instrument, group_name));
CREATE TABLE detector_visit (
    instrument TEXT NOT NULL, group_name TEXT NOT NULL, detector INTEGER NOT NULL,
    state TEXT NOT NULL, attempt INTEGER NOT NULL, pipeline TEXT, reason TEXT, updated REAL NOT NULL,
    PRIMARY KEY (instrument, group_name, detector));
CREATE TABLE event (
    id INTEGER PRIMARY KEY, t REAL NOT NULL, instrument TEXT NOT NULL, group_name TEXT NOT NULL,
    detector INTEGER, name TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX event_of ON event (group_name, detector);
"""


class Journal:
    """SQLite file of visits, detector-visits and events.

    Parameters
    ----------
    path : `pathlib.Path`
        The file; made if it does not exist.

    Raises
    ------
    RuntimeError
        Raised if the file is of another schema version.

    Notes
    -----
    Only the supervisor's main thread uses it.  Writes are in one open
    transaction until `commit`, which the loop calls before it acknowledges
    anything: one fsync serves all that happened in a turn of the loop.
    """

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA busy_timeout=5000")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise RuntimeError(f"{path} has journal schema {version}; this ppd knows {_SCHEMA_VERSION}.")
        self._open = False

    def visit_accepted(
        self, instrument: str, group: str, detectors: Iterable[int], message: Mapping[str, Any], source: str
    ) -> None:
        """Note a visit and its detector-visits as accepted, durably."""
        now = time.time()
        self._begin()
        self._db.execute(
            "INSERT OR IGNORE INTO visit VALUES (?, ?, ?, ?, ?)",
            (instrument, group, json.dumps(message), source, now),
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO detector_visit VALUES (?, ?, ?, 'accepted', 1, NULL, NULL, ?)",
            [(instrument, group, d, now) for d in detectors],
        )
        self.event(instrument, group, None, "accepted", {"source": source}, now)
        self.commit()

    def state(
        self,
        instrument: str,
        group: str,
        detector: int,
        state: str,
        *,
        attempt: int,
        pipeline: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Note a change of state of one detector-visit."""
        self._begin()
        self._db.execute(
            "UPDATE detector_visit"
            " SET state=?, attempt=?, pipeline=COALESCE(?, pipeline), reason=?, updated=?"
            " WHERE instrument=? AND group_name=? AND detector=?",
            (state, attempt, pipeline, reason, time.time(), instrument, group, detector),
        )

    def event(
        self,
        instrument: str,
        group: str,
        detector: int | None,
        name: str,
        detail: Mapping[str, Any] | None = None,
        when: float | None = None,
    ) -> None:
        """Note that something happened; ``detector`` `None`: to the whole visit."""
        self._begin()
        self._db.execute(
            "INSERT INTO event (t, instrument, group_name, detector, name, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (when or time.time(), instrument, group, detector, name, json.dumps(detail or {})),
        )

    def commit(self) -> None:
        """Make all that was noted durable."""
        if self._open:
            self._db.execute("COMMIT")
            self._open = False

    def knows(self, instrument: str, group: str, detector: int) -> bool:
        """Tell whether a detector-visit was accepted before, by any supervisor."""
        row = self._db.execute(
            "SELECT 1 FROM detector_visit WHERE instrument=? AND group_name=? AND detector=?",
            (instrument, group, detector),
        ).fetchone()
        return row is not None

    def known_detectors(self, instrument: str, group: str) -> set[int]:
        """Detectors of a group that were accepted before."""
        rows = self._db.execute(
            "SELECT detector FROM detector_visit WHERE instrument=? AND group_name=?", (instrument, group)
        )
        return {int(row[0]) for row in rows}

    def unfinished(self) -> list[tuple[str, str, dict[str, Any], float, list[int]]]:
        """Visits with detector-visits that an earlier supervisor did not finish.

        Returns
        -------
        visits : `list` of `tuple`
            Instrument, group, message, time of acceptance, detectors.
        """
        rows = self._db.execute(
            "SELECT v.instrument, v.group_name, v.message, v.accepted, d.detector"
            " FROM visit v JOIN detector_visit d USING (instrument, group_name)"
            " WHERE d.state IN ('accepted', 'resolving', 'waiting', 'forked', 'ready', 'running')"
            " ORDER BY v.accepted, d.detector"
        ).fetchall()
        visits: dict[tuple[str, str], tuple[str, str, dict[str, Any], float, list[int]]] = {}
        for instrument, group, message, accepted, detector in rows:
            entry = visits.setdefault(
                (instrument, group), (instrument, group, json.loads(message), accepted, [])
            )
            entry[4].append(int(detector))
        return list(visits.values())

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self._db.close()

    def _begin(self) -> None:
        if not self._open:
            self._db.execute("BEGIN")
            self._open = True
