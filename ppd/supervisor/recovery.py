"""Taking up what an earlier supervisor accepted and did not finish."""

from __future__ import annotations

__all__ = ["take_up"]

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..crash_points import here
from ..errors import PpdError, StaleVisitError
from .journal import Journal, UnfinishedVisit
from .lifecycle import Lifecycle
from .spool import read_manifest, ready_entries
from .table import VisitEntry

_LOG = logging.getLogger(__name__)

Admit = Callable[[Any, float | None, Iterable[int] | None], VisitEntry]
"""Validates a message that was first accepted at a time, for some detectors."""


def take_up(journal: Journal, spool: Path, lifecycle: Lifecycle, admit: Admit) -> None:
    """Take up unfinished visits, or account for them.

    After this, each detector-visit that the journal has as unfinished is
    either accepted again, or known to be in the spool or in central, or
    failed with the reason.

    Parameters
    ----------
    journal : `ppd.supervisor.journal.Journal`
        What was accepted.
    spool : `pathlib.Path`
        Root of the spool.
    lifecycle : `ppd.supervisor.lifecycle.Lifecycle`
        Takes visits on.
    admit : callable
        See `Admit`.
    """
    here("supervisor.recovery-not-begun")
    waiting = _handed_over(spool)
    for left in journal.unfinished():
        again = []
        for detector in (*left.handed_over, *left.detectors):
            where = (left.instrument, left.group, detector)
            if where in waiting:
                # Also one that was killed before the journal knew of it.
                journal.state(*where, "handed_over", attempt=waiting[where])
            elif detector in left.handed_over:
                # The spool forgets a hand-over only once central has it.
                journal.state(*where, "exported", attempt=1)
            else:
                again.append(detector)
        if again:
            _accept_again(journal, lifecycle, admit, left, again)
            here("supervisor.recovery-visit-taken")
    here("supervisor.recovery-done")


def _accept_again(
    journal: Journal, lifecycle: Lifecycle, admit: Admit, left: UnfinishedVisit, detectors: list[int]
) -> None:
    try:
        entry = admit(left.message, left.accepted, detectors)
        if any(d.expires < time.time() for d in entry.detectors.values()):
            raise StaleVisitError(f"Visit {entry.visit.identity} expired while ppd was down.")
        for d in entry.detectors.values():
            # Not the first attempt: the APDB is asked before it runs.
            d.attempt = 2
        lifecycle.accept(entry, "recovery")
        _LOG.warning(
            "Visit %s is taken up again for %d detectors.", entry.visit.identity, len(entry.detectors)
        )
    except PpdError as e:
        _LOG.error("Visit %s group %s is not taken up again: %s", left.instrument, left.group, e)
        for detector in detectors:
            reason = f"not taken up again: {e}"
            lifecycle.counters.error("failed", f"{left.group}/{detector}", reason)
            journal.state(left.instrument, left.group, detector, "failed", attempt=1, reason=reason)


def _handed_over(spool: Path) -> dict[tuple[str, str, int], int]:
    """Attempt of each detector-visit whose outputs wait in the spool."""
    found = {}
    for entry in ready_entries(spool):
        try:
            key = read_manifest(entry).key
        except (ValueError, OSError):
            continue  # the exporter sets it aside
        found[key.instrument, key.group, key.detector] = key.attempt
    return found
