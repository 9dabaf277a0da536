"""The journal's tables, and the steps by which an older file gets them."""

from __future__ import annotations

__all__ = ["SCHEMA_VERSION", "STEPS", "migrate", "schema_version"]

import contextlib
import sqlite3
from collections.abc import Sequence

from ..errors import ConfigurationError
from ..visit import TAI_MINUS_UTC

_FIRST = (
    "CREATE TABLE visit ("
    " instrument TEXT NOT NULL, group_name TEXT NOT NULL, message TEXT NOT NULL,"
    " source TEXT NOT NULL, accepted REAL NOT NULL, PRIMARY KEY (instrument, group_name))",
    "CREATE TABLE detector_visit ("
    " instrument TEXT NOT NULL, group_name TEXT NOT NULL, detector INTEGER NOT NULL,"
    " state TEXT NOT NULL, attempt INTEGER NOT NULL, pipeline TEXT, reason TEXT, updated REAL NOT NULL,"
    " PRIMARY KEY (instrument, group_name, detector))",
    "CREATE TABLE event ("
    " id INTEGER PRIMARY KEY, t REAL NOT NULL, instrument TEXT NOT NULL, group_name TEXT NOT NULL,"
    " detector INTEGER, name TEXT NOT NULL, detail TEXT NOT NULL)",
    "CREATE INDEX event_of ON event (group_name, detector)",
    "CREATE INDEX detector_visit_state ON detector_visit (state)",
)

# Visits know their night and deployment; of what older files have, the night
# follows from the time, and the deployment nobody wrote down. What happened is
# noted under a visit's number: the names, written twenty times for each
# detector-visit and once more in an index, were a third of the file.
_NIGHTS = (
    "CREATE TABLE visit_2 ("
    " id INTEGER PRIMARY KEY, instrument TEXT NOT NULL, group_name TEXT NOT NULL, message TEXT NOT NULL,"
    " source TEXT NOT NULL, accepted REAL NOT NULL, day_obs INTEGER NOT NULL, deployment TEXT NOT NULL,"
    " UNIQUE (instrument, group_name))",
    "INSERT INTO visit_2 (instrument, group_name, message, source, accepted, day_obs, deployment)"
    " SELECT instrument, group_name, message, source, accepted, CAST("
    f"strftime('%Y%m%d', accepted + {TAI_MINUS_UTC - 43200.0!r}, 'unixepoch') AS INTEGER), ''"
    " FROM visit ORDER BY accepted, rowid",
    "DROP TABLE visit",
    "ALTER TABLE visit_2 RENAME TO visit",
    "CREATE INDEX visit_group ON visit (group_name)",
    "CREATE INDEX visit_accepted ON visit (accepted)",
    "CREATE INDEX visit_night ON visit (day_obs, accepted)",
    "CREATE TABLE note ("
    " id INTEGER PRIMARY KEY, t REAL NOT NULL, visit INTEGER NOT NULL,"
    " detector INTEGER, name TEXT NOT NULL, detail TEXT NOT NULL)",
    "INSERT INTO note SELECT e.id, e.t, v.id, e.detector, e.name, e.detail"
    " FROM event e JOIN visit v USING (instrument, group_name) ORDER BY e.id",
    "DROP TABLE event",
    "CREATE INDEX note_of ON note (visit, detector)",
    "CREATE VIEW event AS"
    " SELECT n.id AS id, n.t AS t, v.instrument AS instrument, v.group_name AS group_name,"
    " n.detector AS detector, n.name AS name, n.detail AS detail"
    " FROM note n JOIN visit v ON v.id = n.visit",
)

STEPS: tuple[Sequence[str], ...] = (_FIRST, _NIGHTS)
"""Statements of each step; the n-th makes a file of version n - 1 one of version n."""

SCHEMA_VERSION = len(STEPS)
"""The version that this ppd writes and reads."""


def schema_version(db: sqlite3.Connection) -> int:
    """Return the schema's version of a file; 0: it has no tables yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: sqlite3.Connection, name: str) -> int:
    """Give a file the current schema, step by step.

    Each step is one transaction with the version that it makes: whatever
    ends the process, the file is of one version or the next.

    Parameters
    ----------
    db : `sqlite3.Connection`
        The file, in autocommit mode.
    name : `str`
        What to call it in messages.

    Returns
    -------
    version : `int`
        The version that it had.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if it is of a newer version, or can't be changed; what it
        holds is as it was after the last step that could be done.
    """
    before = schema_version(db)
    if before > SCHEMA_VERSION:
        raise ConfigurationError(
            f"The journal {name} has schema {before}, of a newer ppd; this one knows {SCHEMA_VERSION}. "
            "Run the newer one, or move the file away: what is unfinished in it is then not taken up."
        )
    for version, statements in enumerate(STEPS[before:], before + 1):
        try:
            db.execute("BEGIN IMMEDIATE")
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={version}")
            db.execute("COMMIT")
        except sqlite3.Error as e:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise ConfigurationError(
                f"The journal {name} can't be brought from schema {version - 1} to {version}: {e}. "
                "It is unchanged."
            ) from e
    return before
