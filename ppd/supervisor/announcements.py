"""Announcements of streams and HTTP: accepted as those of the control socket are, many at a time."""

from __future__ import annotations

__all__ = ["announce", "judge_announcements", "take_announcements"]

import collections
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import InvalidVisitError, JournalError, PpdError, with_cause
from ..messages import ControlReply, ControlRequest
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
# What comes twice, or is for others, is nothing that an operator has to know.
_USUAL = ("duplicate", "ignored")


class _Hearing:
    """A batch on its way to be judged."""

    def __init__(self) -> None:
        self.judged: dict[str, Judgement] = {}
        self.refused: dict[Refusal, list[str]] = collections.defaultdict(list)
        # Announcements of one visit are one acceptance.
        self.entries: list[VisitEntry] = []
        self.accepted: list[Announcement] = []

    def detectors(self, group: str) -> set[int]:
        """Detectors that this batch has announced already."""
        return {d for e in self.entries if e.visit.groupId == group for d in e.detectors}

    def add(self, announcement: Announcement, entry: VisitEntry) -> None:
        """Take one that can be accepted."""
        self.accepted.append(announcement)
        for known in self.entries:
            if known.visit.groupId == entry.visit.groupId and known.day_obs == entry.day_obs:
                known.detectors |= entry.detectors
                known.runs |= entry.runs
                return
        self.entries.append(entry)

    def judge(self, announcement: Announcement, verdict: Verdict, code: str = "ok", reason: str = "") -> None:
        """Say what becomes of one."""
        self.judged[announcement.ticket] = Judgement(announcement.ticket, verdict, code, reason)

    def refuse(self, announcement: Announcement, refusal: Refusal, text: str) -> None:
        """Say that one is not accepted."""
        self.refused[refusal].append(text)
        self.judge(announcement, _VERDICTS[refusal.code], refusal.code, text)


def take_announcements(supervisor: Supervisor, heard: Heard) -> None:
    """Accept what can be; the source is told when the journal has it, at the end of the turn.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    heard : `ppd.sources.visits.Heard`
        Announcements of one source.
    """
    judgements = judge_announcements(supervisor, heard.announcements, heard.source.kind, heard.source.name)
    supervisor.judgements.append((heard.source, judgements))


def announce(supervisor: Supervisor, request: ControlRequest) -> ControlReply:
    """Accept announcements that came by HTTP: many that came at once are one request.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    request : `ppd.messages.ControlRequest`
        Has the announcements.

    Returns
    -------
    reply : `ppd.messages.ControlReply`
        A code, and the reason of a refusal, for each of them.
    """
    now = time.time()
    some = [
        Announcement(str(number), message, now)
        if isinstance(message, Mapping)
        else Announcement(str(number), {}, now, "the message is no object")
        for number, message in enumerate(request.visits)
    ]
    judged = judge_announcements(supervisor, some, "http", "HTTP")
    return ControlReply(ok=True, result={"judged": [{"code": j.code, "error": j.reason} for j in judged]})


def judge_announcements(
    supervisor: Supervisor, announcements: Sequence[Announcement], kind: str, name: str
) -> tuple[Judgement, ...]:
    """Accept what can be, all in one transaction of the journal.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    announcements : sequence of `ppd.sources.visits.Announcement`
        The announcements.
    kind, name : `str`
        Their source, for the journal and for people.

    Returns
    -------
    judgements : `tuple` [ `ppd.sources.visits.Judgement` ]
        One for each, in their order; to be told when the journal's commit is over.
    """
    hearing = _Hearing()
    try:
        reason = why_not_hearing(supervisor)
        for announcement in announcements:
            if reason is not None:
                hearing.judge(announcement, Verdict.LATER, "unavailable", reason)
            else:
                _admit(supervisor, hearing, announcement)
        _accept(supervisor, hearing, kind)
        _tell(supervisor, hearing, name)
    except Exception:
        # Each is answered: a source would wait for ever.
        supervisor.counters.add("internal_errors")
        _LOG.exception("Announcements from %s could not be taken.", name)
        for announcement in announcements:
            if announcement.ticket not in hearing.judged:
                hearing.judge(announcement, Verdict.DEFECT, "defect", "a defect; the log has it")
    return tuple(hearing.judged[announcement.ticket] for announcement in announcements)


def _admit(supervisor: Supervisor, hearing: _Hearing, announcement: Announcement) -> None:
    try:
        if announcement.fault is not None:
            raise InvalidVisitError(f"Visit unknown: {announcement.fault}.")
        hearing.add(announcement, supervisor.admit(announcement.message, besides=hearing.detectors))
    except OtherInstrumentError as e:
        hearing.refuse(announcement, _OTHERS, str(e))
    except (PpdError, sqlite3.Error, OSError) as e:
        refusal = refusal_of(e) if isinstance(e, PpdError) else None
        if refusal is not None:
            hearing.refuse(announcement, refusal, str(e))
            return
        # Of our disk, or of our configuration: not of the announcement.
        _LOG.exception("Announcement %s could not be looked at.", announcement.ticket)
        supervisor.counters.add("internal_errors")
        hearing.judge(announcement, Verdict.LATER, "unavailable", with_cause(e))
    except Exception as e:
        _LOG.exception("Announcement %s could not be taken.", announcement.ticket)
        supervisor.counters.add("internal_errors")
        hearing.judge(announcement, Verdict.DEFECT, "defect", with_cause(e))


def _accept(supervisor: Supervisor, hearing: _Hearing, kind: str) -> None:
    if not hearing.entries:
        return
    first = min(announcement.delivered for announcement in hearing.accepted)
    try:
        supervisor.lifecycle.accept_all(hearing.entries, kind, delivered=first)
    except JournalError as e:
        refusal = refusal_of(e)
        assert refusal is not None
        # The others of the group may take what comes meanwhile.
        supervisor.visit_sources.rest(str(e))
        for announcement in hearing.accepted:
            hearing.refuse(announcement, refusal, str(e))
    else:
        supervisor.counters.add("visits_accepted", len(hearing.accepted))
        for announcement in hearing.accepted:
            hearing.judge(announcement, Verdict.DONE)


def _tell(supervisor: Supervisor, hearing: _Hearing, name: str) -> None:
    """Count what was refused; many alike are one line for people."""
    counters = supervisor.counters
    for refusal, texts in hearing.refused.items():
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        if refusal.code in _USUAL:
            counters.add(refusal.name, len(texts))
            _LOG.info("%s%s", texts[0], more)
        else:
            counters.add(refusal.name, len(texts) - 1)
            counters.error(refusal.name, name, texts[0] + more)
            _LOG.error("Refused: %s%s", texts[0], more)
