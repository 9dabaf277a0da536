"""Announcements that sources have heard: accepted as those of the control socket are, many at a time."""

from __future__ import annotations

__all__ = ["take_announcements"]

import collections
import logging
import sqlite3
from typing import TYPE_CHECKING

from ..errors import InvalidVisitError, JournalError, PpdError, with_cause
from ..sources.visits import Announcement, Heard, Judgement, Verdict
from .admission import OtherInstrumentError
from .readiness import why_not_hearing
from .refusals import Refusal, refusal_of
from .table import VisitEntry

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)

_OTHERS = Refusal("visits_ignored", "ignored")
_VERDICTS = {
    "duplicate": Verdict.DONE,
    "stale": Verdict.DONE,
    "ignored": Verdict.DONE,
    "malformed": Verdict.REJECTED,
    "unavailable": Verdict.LATER,
}
# What a stream delivers twice, or for others, is nothing that an operator has to know.
_USUAL = ("duplicate", "ignored")


class _Hearing:
    """One batch on its way to be judged."""

    def __init__(self, heard: Heard):
        self.heard = heard
        self.judged: dict[str, Judgement] = {}
        self.refused: dict[Refusal, list[str]] = collections.defaultdict(list)
        # Announcements of one visit are one acceptance.
        self.entries: list[VisitEntry] = []
        self.tickets: list[str] = []

    def detectors(self, group: str) -> set[int]:
        """Detectors that this batch has announced already."""
        return {d for e in self.entries if e.visit.groupId == group for d in e.detectors}

    def add(self, ticket: str, entry: VisitEntry) -> None:
        """Take one that can be accepted."""
        self.tickets.append(ticket)
        for known in self.entries:
            if known.visit.groupId == entry.visit.groupId and known.day_obs == entry.day_obs:
                known.detectors |= entry.detectors
                known.runs |= entry.runs
                return
        self.entries.append(entry)

    def judge(self, ticket: str, verdict: Verdict, reason: str = "") -> None:
        """Say what becomes of one."""
        self.judged[ticket] = Judgement(ticket, verdict, reason)

    def refuse(self, ticket: str, refusal: Refusal, text: str) -> None:
        """Say that one is not accepted."""
        self.refused[refusal].append(text)
        self.judge(ticket, _VERDICTS[refusal.code], text)


def take_announcements(supervisor: Supervisor, heard: Heard) -> None:
    """Accept what can be; the source is told when the journal has it, at the end of the turn.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    heard : `ppd.sources.visits.Heard`
        Announcements of one source.
    """
    hearing = _Hearing(heard)
    try:
        reason = why_not_hearing(supervisor)
        for announcement in heard.announcements:
            if reason is not None:
                hearing.judge(announcement.ticket, Verdict.LATER, reason)
            else:
                _admit(supervisor, hearing, announcement)
        _accept(supervisor, hearing)
        _tell(supervisor, hearing)
    finally:
        # A source that is not answered would wait for ever.
        for announcement in heard.announcements:
            if announcement.ticket not in hearing.judged:
                hearing.judge(announcement.ticket, Verdict.DEFECT, "a defect; the log has it")
        supervisor.judgements.append((heard.source, tuple(hearing.judged.values())))


def _admit(supervisor: Supervisor, hearing: _Hearing, announcement: Announcement) -> None:
    ticket = announcement.ticket
    try:
        if announcement.fault is not None:
            raise InvalidVisitError(f"Visit unknown: {announcement.fault}.")
        hearing.add(ticket, supervisor.admit(announcement.message, besides=hearing.detectors))
    except OtherInstrumentError as e:
        hearing.refuse(ticket, _OTHERS, str(e))
    except PpdError as e:
        refusal = refusal_of(e)
        if refusal is None:
            raise
        hearing.refuse(ticket, refusal, str(e))
    except (sqlite3.Error, OSError) as e:
        # Of our disk, not of the announcement.
        _LOG.exception("Announcement %s could not be looked at.", ticket)
        supervisor.counters.add("internal_errors")
        hearing.judge(ticket, Verdict.LATER, with_cause(e))
    except Exception as e:
        _LOG.exception("Announcement %s could not be taken.", ticket)
        supervisor.counters.add("internal_errors")
        hearing.judge(ticket, Verdict.DEFECT, with_cause(e))


def _accept(supervisor: Supervisor, hearing: _Hearing) -> None:
    if not hearing.entries:
        return
    delivered = {a.ticket: a.delivered for a in hearing.heard.announcements}
    first = min(delivered[ticket] for ticket in hearing.tickets)
    try:
        supervisor.lifecycle.accept_all(hearing.entries, hearing.heard.source.kind, delivered=first)
    except JournalError as e:
        refusal = refusal_of(e)
        assert refusal is not None
        for ticket in hearing.tickets:
            hearing.refuse(ticket, refusal, str(e))
    else:
        supervisor.counters.add("visits_accepted", len(hearing.tickets))
        for ticket in hearing.tickets:
            hearing.judge(ticket, Verdict.DONE)


def _tell(supervisor: Supervisor, hearing: _Hearing) -> None:
    """Count what was refused; many alike are one line for people."""
    counters, name = supervisor.counters, hearing.heard.source.name
    for refusal, texts in hearing.refused.items():
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        if refusal.code in _USUAL:
            counters.add(refusal.name, len(texts))
            _LOG.info("%s%s", texts[0], more)
        else:
            counters.add(refusal.name, len(texts) - 1)
            counters.error(refusal.name, name, texts[0] + more)
            _LOG.error("Refused: %s%s", texts[0], more)
