"""The journal: what was accepted and what became of it, durable."""

from __future__ import annotations

__all__ = ["Journal", "OldVisit", "UnfinishedVisit"]

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..crash_points import here
from ..deployment import day_obs as day_obs_of
from ..errors import ConfigurationError, JournalError
from ..messages import DetectorKey
from .journal_schema import SCHEMA_VERSION, migrate
from .journaled import (
    Acceptance,
    JournaledVisit,
    OldVisit,
    UnfinishedVisit,
    read_judged,
    read_over,
    read_unfinished,
    read_visit,
)

_LOG = logging.getLogger(__name__)

_STATE = (
    "UPDATE detector_visit"
    " SET state=?, attempt=?, pipeline=COALESCE(?, pipeline), reason=?, updated=?"
    " WHERE instrument=? AND group_name=? AND detector=?"
)
_VISIT = (
    "INSERT OR IGNORE INTO visit (instrument, group_name, message, source, accepted, day_obs, deployment)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_DETECTOR_VISIT = "INSERT OR IGNORE INTO detector_visit VALUES (?, ?, ?, 'accepted', 1, NULL, NULL, ?)"
# Of a visit that the journal does not have (its file was lost), nothing is noted.
_EVENT = (
    "INSERT INTO note (t, visit, detector, name, detail)"
    " SELECT ?, id, ?, ?, ? FROM visit WHERE instrument=? AND group_name=?"
)
# What is wrong with the values, whatever the state of the disk.
_UNTAKABLE = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, ValueError, OverflowError)
_BUSY_MS = 2000
# What is held back while the disk is full; a night of 189 detectors and
# 1,000 visits has about 2 million events.
_MAX_PENDING = 200_000


class Journal:
    """SQLite file of visits, detector-visits and events.

    Parameters
    ----------
    path : `pathlib.Path`
        The file; made if it does not exist.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if the file is of another schema version or can't be opened.

    Notes
    -----
    Only the supervisor's main thread uses it.  An accepted visit is durable
    when `visit_accepted` returns.  Everything else is held until `commit`,
    which the loop calls once a turn and before it answers anything: one
    fsync serves all that happened in it.  When the disk does not take it, it
    is held for the next turn, and no visit is accepted meanwhile.
    """

    def __init__(self, path: Path):
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self.trouble: str | None = None
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            before = migrate(self._db, str(path))
        except sqlite3.Error as e:
            raise ConfigurationError(f"The journal {path} can't be used: {e}.") from e
        if 0 < before < SCHEMA_VERSION:
            _LOG.warning("The journal %s was brought from schema %d to %d.", path, before, SCHEMA_VERSION)

    def visit_accepted(
        self,
        instrument: str,
        group: str,
        detectors: Iterable[int],
        message: Mapping[str, Any],
        source: str,
        *,
        day_obs: int | None = None,
        deployment: str = "",
    ) -> None:
        """Note a visit and its detector-visits as accepted, durably.

        Parameters
        ----------
        instrument, group : `str`
            Which visit.
        detectors : iterable of `int`
            Its detectors; what is known of one already stays.
        message : `~collections.abc.Mapping`
            The announcement.
        source : `str`
            Where it came from.
        day_obs : `int`, optional
            The night that it is accepted for; today's by default.
        deployment : `str`, optional
            The deployment that it is accepted for.

        Raises
        ------
        ppd.errors.JournalError
            Raised if it could not be made durable; then nothing of it is in
            the journal.
        """
        night = day_obs_of(time.time()) if day_obs is None else day_obs
        detail = {"source": source}
        self.visits_accepted(
            [Acceptance(instrument, group, tuple(detectors), message, night, deployment, detail)]
        )

    def visits_accepted(self, visits: Sequence[Acceptance]) -> None:
        """Note several visits as accepted, all with one fsync; see `visit_accepted`.

        Parameters
        ----------
        visits : sequence of `ppd.supervisor.journaled.Acceptance`
            The visits.

        Raises
        ------
        ppd.errors.JournalError
            Raised if they could not be made durable; then none of them is in
            the journal.
        """
        now = time.time()
        self._check()
        notes: list[tuple[str, tuple[Any, ...]]] = []
        for v in visits:
            source, whose = v.detail.get("source", ""), (v.instrument, v.group)
            notes.append((_VISIT, (*whose, json.dumps(v.message), source, now, v.day_obs, v.deployment)))
            notes += [(_DETECTOR_VISIT, (*whose, detector, now)) for detector in v.detectors]
            notes.append((_EVENT, (now, None, "accepted", json.dumps(v.detail), *whose)))
        self._write(notes, all_or_nothing=True)

    def accepted_again(
        self, instrument: str, group: str, message: Mapping[str, Any], attempts: Mapping[int, int], why: str
    ) -> None:
        """Note that detector-visits that had failed are to be tried again, durably.

        Parameters
        ----------
        instrument, group : `str`
            Which visit.
        message : `~collections.abc.Mapping`
            Its announcement, which a new start would take up.
        attempts : `~collections.abc.Mapping` [ `int`, `int` ]
            Number of the next attempt at each of them.
        why : `str`
            What an operator said.

        Raises
        ------
        ppd.errors.JournalError
            Raised if it could not be made durable; then nothing has changed.
        """
        now = time.time()
        self._check()
        notes: list[tuple[str, tuple[Any, ...]]] = [
            (
                "UPDATE visit SET message=? WHERE instrument=? AND group_name=?",
                (json.dumps(message), instrument, group),
            )
        ]
        for detector, attempt in attempts.items():
            asked = json.dumps({"attempt": attempt} | ({"reason": why} if why else {}))
            changed = json.dumps({"to": "accepted", "attempt": attempt})
            notes += [
                (_STATE, ("accepted", attempt, None, None, now, instrument, group, detector)),
                (_EVENT, (now, detector, "retry_asked", asked, instrument, group)),
                (_EVENT, (now, detector, "state", changed, instrument, group)),
            ]
        self._write(notes, all_or_nothing=True)

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
        """Note a change of state of one detector-visit: as it is now, and as an event."""
        now = time.time()
        self._hold(_STATE, (state, attempt, pipeline, reason, now, instrument, group, detector))
        detail = {"to": state, "attempt": attempt} | ({"reason": reason} if reason else {})
        self.event(instrument, group, detector, "state", detail, now)

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
        self._hold(_EVENT, (when or time.time(), detector, name, json.dumps(detail or {}), instrument, group))

    def commit(self) -> None:
        """Make all that was noted durable; what the disk does not take is kept for the next time."""
        if not self._pending:
            return
        here("supervisor.notes-not-committed")
        try:
            self._write(self._pending)
        except JournalError as e:
            if self.trouble is None:
                _LOG.error("%s What happens is held in memory, and no visit is accepted.", e)
            self.trouble = str(e.__cause__ or e)
        else:
            if self.trouble is not None:
                _LOG.warning("The journal can be written again; %d notes were held.", len(self._pending))
            self._pending, self.trouble = [], None
            here("supervisor.notes-committed")

    def known_detectors(self, instrument: str, group: str) -> set[int]:
        """Detectors of a group that were accepted before."""
        rows = self._db.execute(
            "SELECT detector FROM detector_visit WHERE instrument=? AND group_name=?", (instrument, group)
        )
        return {int(row[0]) for row in rows}

    def times_taken_up(self, instrument: str, group: str) -> int:
        """How many starts have taken a visit up again."""
        (count,) = self._db.execute(
            "SELECT COUNT(*) FROM event WHERE instrument=? AND group_name=? AND name='accepted'"
            " AND detail LIKE '%\"recovery\"%'",
            (instrument, group),
        ).fetchone()
        return int(count)

    def named(self, entry: str) -> list[DetectorKey]:
        """Find whose hand-over has a name in the spool, among those that are not over."""
        rows = self._db.execute(
            "SELECT instrument, group_name, detector, attempt FROM detector_visit"
            " WHERE state NOT IN ('exported', 'failed')"
        )
        keys = (DetectorKey(instrument=i, group=g, detector=d, attempt=a) for i, g, d, a in rows)
        return [key for key in keys if key.file_name == entry]

    def unfinished(self) -> list[UnfinishedVisit]:
        """List what an earlier supervisor did not finish, oldest first."""
        return read_unfinished(self._db)

    def state_of(self, instrument: str, group: str, detector: int) -> tuple[str, str] | None:
        """Look up state and reason of a detector-visit as committed; `None`: nothing is known of it."""
        row = self._db.execute(
            "SELECT state, reason FROM detector_visit WHERE instrument=? AND group_name=? AND detector=?",
            (instrument, group, detector),
        ).fetchone()
        return None if row is None else (row[0], row[1] or "")

    def judged(self, instrument: str, group: str) -> dict[int, str]:
        """Look up whether the alerts of a visit's detectors were in time, as committed."""
        return read_judged(self._db, instrument, group)

    def find(self, instrument: str, group: str) -> JournaledVisit | None:
        """Look up a visit as committed; `None`: it is not there."""
        return read_visit(self._db, instrument, group)

    def over_before(self, day_obs: int) -> Iterator[OldVisit]:
        """List the visits of the nights before one of which nothing is unfinished, oldest first."""
        return read_over(self._db, day_obs)

    def forget(self, instrument: str, group: str, events: int) -> bool:
        """Delete a visit that is over, by bites; the room is used again for later ones.

        Parameters
        ----------
        instrument, group : `str`
            Which visit.
        events : `int`
            How many events to delete at most.

        Returns
        -------
        gone : `bool`
            Whether nothing of it is left.

        Raises
        ------
        ppd.errors.JournalError
            Raised if the disk does not take it; then nothing is deleted.
        """
        with self._transaction():
            deleted = self._db.execute(
                "DELETE FROM note WHERE id IN (SELECT n.id FROM note n JOIN visit v ON n.visit = v.id"
                " WHERE v.instrument=? AND v.group_name=? LIMIT ?)",
                (instrument, group, events),
            ).rowcount
            gone = deleted < events
            if gone:
                for table in ("detector_visit", "visit"):
                    self._db.execute(
                        f"DELETE FROM {table} WHERE instrument=? AND group_name=?", (instrument, group)
                    )
        return gone

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self._db.close()

    def _check(self) -> None:
        """Make all that was noted durable, or say that it can't be."""
        self.commit()
        if self.trouble is not None:
            raise JournalError(f"The journal can't be written: {self.trouble}.")

    def _hold(self, statement: str, values: tuple[Any, ...]) -> None:
        self._pending.append((statement, values))
        if len(self._pending) > _MAX_PENDING:
            # States decide what a restart does; events are history.
            kept = [p for p in self._pending if p[0] is not _EVENT]
            _LOG.error(
                "Too much is held for the journal; %d events are lost.", len(self._pending) - len(kept)
            )
            self._pending = kept[-_MAX_PENDING:]

    def _write(self, notes: Iterable[tuple[str, tuple[Any, ...]]], all_or_nothing: bool = False) -> None:
        with self._transaction():
            for statement, values in notes:
                try:
                    self._db.execute(statement, values)
                except _UNTAKABLE as e:
                    if all_or_nothing:
                        raise
                    # No later try would take it, and all that follows would wait for it.
                    _LOG.error("The journal does not take %.300a: %s", values, e)
            if all_or_nothing:
                here("supervisor.acceptance-in-transaction")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except (sqlite3.Error, *_UNTAKABLE) as e:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise JournalError(f"The journal can't be written: {e}.") from e
