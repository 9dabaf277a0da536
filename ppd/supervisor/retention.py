"""Forgetting old nights, a bite at a time."""

from __future__ import annotations

__all__ = ["Retention"]

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from ..config import Settings
from ..deployment import day_obs
from ..errors import InvalidVisitError
from ..visit import parse_visit
from .dead_letters import entry_names, names_visit
from .journal import Journal, OldVisit

_LOG = logging.getLogger(__name__)

_DAY_SECONDS = 86400.0
_LOOK_SECONDS = 3600.0
# A bite waits for the disk once, and is as large as this allows.
_BITE_SECONDS = 0.01
_PAUSE_SECONDS = 0.2
_FEWEST, _MOST = 20, 2000
# Visits that are looked up together.
_AT_ONCE = 20


class Retention:
    """Deletes from the journal what is older than its nights.

    What is unfinished stays, and what a dead letter is of, and all whose
    announcement might come again and still be fresh.

    Parameters
    ----------
    journal : `ppd.supervisor.journal.Journal`
        What is shortened.
    settings : `ppd.config.Settings`
        Says how many nights are kept, and where the spool is.
    """

    def __init__(self, journal: Journal, settings: Settings):
        self._journal = journal
        # Asked each time: a reload may have changed what is kept.
        self._settings = settings
        self._spool = Path(settings.spool_dir)
        self._visits: Iterator[OldVisit] = iter(())
        self._visit: OldVisit | None = None
        self._not_before = 0.0
        self._bite = _FEWEST
        self.forgotten = 0
        """Visits that this supervisor has deleted."""
        self.longest = 0.0
        """The longest bite, seconds."""

    def turn(self) -> None:
        """Take a bite, if it is time for one; called in each turn of the supervisor's loop."""
        begin = time.monotonic()
        if begin < self._not_before or self._journal.trouble is not None:
            return
        self._not_before = begin + _PAUSE_SECONDS
        if self._visit is None:
            self._visit = next(self._visits, None)
        if self._visit is None:
            # A list, so that no cursor is open on what is deleted.
            self._visits = iter(self._due())
            self._visit = next(self._visits, None)
        if self._visit is None:
            self._not_before = begin + _LOOK_SECONDS
            return
        begin = time.monotonic()
        if self._journal.forget(self._visit.instrument, self._visit.group, self._bite):
            _LOG.debug("Visit %s group %s is forgotten.", self._visit.instrument, self._visit.group)
            self._visit = None
            self.forgotten += 1
        seconds = time.monotonic() - begin
        self.longest = max(self.longest, seconds)
        factor = 0.5 if seconds > _BITE_SECONDS else 1.5
        self._bite = int(min(_MOST, max(_FEWEST, self._bite * factor)))

    def oldest_night(self, now: float) -> int:
        """Return the first night of which everything is kept; what is older may be half forgotten."""
        return day_obs(now - self._settings.history_nights * _DAY_SECONDS)

    def _due(self) -> list[OldVisit]:
        """List the next visits to forget; some, for there may be thousands."""
        now = time.time()
        aside = entry_names(self._spool)
        found = []
        for visit in self._journal.over_before(self.oldest_night(now)):
            kept = any(names_visit(name, visit.instrument, visit.group) for name in aside)
            if not kept and self._age(visit, now) > self._settings.message_expiration:
                found.append(visit)
            if len(found) == _AT_ONCE:
                break
        return found

    @staticmethod
    def _age(visit: OldVisit, now: float) -> float:
        """Seconds since it was announced; a stamp may be ahead of its arrival."""
        try:
            return min(now - visit.accepted, parse_visit(visit.message).age(now))
        except InvalidVisitError:
            return now - visit.accepted
