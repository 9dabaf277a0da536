"""Visits as the journal has them, and how they are read there."""

from __future__ import annotations

__all__ = [
    "Acceptance",
    "JournaledVisit",
    "OldVisit",
    "Standing",
    "UnfinishedVisit",
    "read_judged",
    "read_over",
    "read_unfinished",
    "read_visit",
]

import dataclasses
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Acceptance(NamedTuple):
    """A visit that is about to be accepted, or some of its detectors."""

    instrument: str
    group: str
    detectors: tuple[int, ...]
    message: Mapping[str, Any]
    day_obs: int
    """The night that it is accepted for."""
    deployment: str
    """The deployment that it is accepted for."""
    detail: Mapping[str, Any]
    """What the event is to have: its source."""


@dataclasses.dataclass(frozen=True)
class UnfinishedVisit:
    """A visit of which an earlier supervisor left something undone."""

    instrument: str
    group: str
    message: dict[str, Any]
    accepted: float
    """Unix seconds."""
    day_obs: int
    """The night that it was accepted for."""
    deployment: str
    """The deployment that it was accepted for; empty: an older ppd has not written it down."""
    detectors: tuple[int, ...]
    """Accepted and neither handed over nor failed."""
    handed_over: tuple[int, ...]
    """Handed over, and not known to be exported."""
    attempts: Mapping[int, int]
    """The last attempt at each of these."""


@dataclasses.dataclass(frozen=True)
class OldVisit:
    """A visit all of whose detector-visits are over."""

    instrument: str
    group: str
    message: dict[str, Any]
    accepted: float
    """Unix seconds."""


class Standing(NamedTuple):
    """What the journal says of one detector-visit."""

    state: str
    attempt: int
    exported: int
    """How many of its outputs went to central, of whatever attempt."""
    raws: tuple[str, ...]
    """URIs of the raws that were matched to it, each once."""


@dataclasses.dataclass(frozen=True)
class JournaledVisit:
    """A visit with all that may decide whether it can be tried again."""

    message: dict[str, Any]
    accepted: float
    """Unix seconds."""
    day_obs: int
    """The night that it was accepted for."""
    detectors: Mapping[int, Standing]


def read_unfinished(db: sqlite3.Connection) -> list[UnfinishedVisit]:
    """List the visits of which something is unfinished, oldest first."""
    rows = db.execute(
        "SELECT v.instrument, v.group_name, v.message, v.accepted, v.day_obs, v.deployment,"
        " d.detector, d.state, d.attempt"
        " FROM visit v JOIN detector_visit d USING (instrument, group_name)"
        " WHERE d.state NOT IN ('exported', 'failed')"
        " ORDER BY v.accepted, v.instrument, v.group_name, d.detector"
    ).fetchall()
    visits = []
    for visit, own in itertools.groupby(rows, key=lambda r: r[:6]):
        instrument, group, message, accepted, day_obs, deployment = visit
        rows_of = list(own)
        states = [(int(row[6]), row[7]) for row in rows_of]
        visits.append(
            UnfinishedVisit(
                instrument,
                group,
                json.loads(message),
                accepted,
                int(day_obs),
                deployment,
                tuple(d for d, state in states if state != "handed_over"),
                tuple(d for d, state in states if state == "handed_over"),
                {int(row[6]): int(row[8]) for row in rows_of},
            )
        )
    return visits


def read_judged(db: sqlite3.Connection, instrument: str, group: str) -> dict[int, str]:
    """Look up whether the alerts of a visit's detectors were in time."""
    rows = db.execute(
        "SELECT detector, detail FROM event WHERE instrument=? AND group_name=? AND name='judged'",
        (instrument, group),
    )
    return {int(detector): str(json.loads(detail)["alerts"]) for detector, detail in rows}


def read_visit(db: sqlite3.Connection, instrument: str, group: str) -> JournaledVisit | None:
    """Look up a visit; `None`: it is not there."""
    whose = (instrument, group)
    row = db.execute(
        "SELECT message, accepted, day_obs FROM visit WHERE instrument=? AND group_name=?", whose
    ).fetchone()
    if row is None:
        return None
    exported: dict[int, int] = {}
    raws: dict[int, dict[str, None]] = {}
    for detector, name, detail in db.execute(
        "SELECT detector, name, detail FROM event WHERE instrument=? AND group_name=?"
        " AND name IN ('exported', 'raw_seen') ORDER BY id",
        whose,
    ):
        found = json.loads(detail)
        if name == "exported":
            exported[detector] = exported.get(detector, 0) + int(found.get("datasets", 0))
        else:
            raws.setdefault(detector, {})[str(found.get("uri", ""))] = None
    detectors = {
        int(d): Standing(state, int(attempt), exported.get(d, 0), tuple(raws.get(d, ())))
        for d, state, attempt in db.execute(
            "SELECT detector, state, attempt FROM detector_visit"
            " WHERE instrument=? AND group_name=? ORDER BY detector",
            whose,
        )
    }
    return JournaledVisit(json.loads(row[0]), float(row[1]), int(row[2]), detectors)


def read_over(db: sqlite3.Connection, day_obs: int) -> Iterator[OldVisit]:
    """List the visits of the nights before one of which nothing is unfinished, oldest first."""
    rows = db.execute(
        "SELECT instrument, group_name, message, accepted FROM visit v WHERE day_obs < ?"
        " AND NOT EXISTS (SELECT 1 FROM detector_visit d WHERE d.instrument = v.instrument"
        " AND d.group_name = v.group_name AND d.state NOT IN ('exported', 'failed'))"
        " ORDER BY day_obs, accepted",
        (day_obs,),
    )
    for instrument, group, message, accepted in rows:
        yield OldVisit(instrument, group, json.loads(message), accepted)
