"""Taking up what an earlier supervisor accepted and did not finish."""

from __future__ import annotations

__all__ = ["clear_local_repos", "take_up"]

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from ..config import Settings
from ..crash_points import here
from ..errors import PpdError, StaleVisitError
from ..messages import DetectorKey, Predecessor
from .dead_letters import find_letter
from .journal import Journal, UnfinishedVisit
from .lifecycle import Lifecycle
from .table import DetectorVisit, VisitEntry

_LOG = logging.getLogger(__name__)

_MAX_STARTS = 5
_KILLED = "ppd itself ended while its main pipeline ran"

Admit = Callable[[Any, float | None, Iterable[int] | None], VisitEntry]
"""Validates a message that was first accepted at a time, for some detectors."""


def take_up(settings: Settings, journal: Journal, lifecycle: Lifecycle, admit: Admit) -> None:
    """Take up unfinished visits, or account for them.

    After this, each detector-visit that the journal has as unfinished is
    either accepted again, or known to be in the spool or in central, or
    failed with the reason.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Where the spool and the local repos are.
    journal : `ppd.supervisor.journal.Journal`
        What was accepted.
    lifecycle : `ppd.supervisor.lifecycle.Lifecycle`
        Takes visits on.
    admit : callable
        See `Admit`.
    """
    here("supervisor.recovery-not-begun")
    waiting = _handed_over(settings.spool_dir)
    kept = set()
    for left in journal.unfinished():
        again = []
        for detector in (*left.handed_over, *left.detectors):
            where = (left.instrument, left.group, detector)
            key = _key(left, detector)
            stem = key.file_name.rpartition("-")[0]
            if stem in waiting:
                # Also one that was killed before the journal knew of it.
                journal.state(*where, "handed_over", attempt=waiting[stem])
            elif (letter := find_letter(settings.spool_dir, key)) is not None:
                # Killed before the journal knew of it.
                _fail(lifecycle, left, [detector], f"its outputs can't be exported: {letter.reason}")
            elif detector in left.handed_over:
                # A hand-over is discarded only once the journal has that it is exported.
                reason = f"its hand-over is gone from the spool {settings.spool_dir}, and was not exported"
                _fail(lifecycle, left, [detector], reason)
            else:
                again.append(detector)
        if again:
            kept |= _accept_again(settings, lifecycle, admit, left, again)
            here("supervisor.recovery-visit-taken")
    journal.commit()
    here("supervisor.recovery-committed")
    clear_local_repos(settings.local_repos, kept)
    here("supervisor.recovery-done")


def clear_local_repos(folder: Path, kept: Collection[Path]) -> None:
    """Remove local repos of an earlier supervisor's children.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where local repos are.
    kept : collection of `pathlib.Path`
        Repos that are to be looked into.
    """
    for path in folder.glob("ppd-*"):
        # A nursery's folder has its process in its name: that of ours is in use.
        if path not in kept and not _of_living_nursery(path):
            shutil.rmtree(path, ignore_errors=True)


def _accept_again(
    settings: Settings, lifecycle: Lifecycle, admit: Admit, left: UnfinishedVisit, detectors: list[int]
) -> set[Path]:
    """Take detector-visits on again; return the repos that their next children look into."""
    try:
        entry = admit(left.message, left.accepted, detectors)
    except PpdError as e:
        _give_up(lifecycle, left, detectors, e)
        return set()
    expired, kept = [], set[Path]()
    starts = 1 + lifecycle.ledger.journal.times_taken_up(left.instrument, left.group)
    for number, d in list(entry.detectors.items()):
        repo = _remains(settings, left, number)
        if d.expires < time.time() and repo is None:
            expired.append(number)
            del entry.detectors[number]
            continue
        _as_next_attempt(d, left.attempts.get(number, 1), repo, starts)
        if repo is not None:
            kept.add(repo)
    missing = [n for n in detectors if n not in entry.detectors and n not in expired]
    if expired:
        stale = StaleVisitError(f"Visit {entry.visit.identity} expired while ppd was down.")
        _give_up(lifecycle, left, expired, stale)
    if missing:
        _give_up(lifecycle, left, missing, PpdError("the configuration has no pipeline for it any more"))
    if entry.detectors:
        lifecycle.ledger.recall(entry)
        # It is in the journal already: a disk that is full now must not make it fail.
        lifecycle.take_on(entry)
        for d in entry.detectors.values():
            lifecycle.ledger.change(d, d.state, reason="taken up again by a new start")
        journal = lifecycle.ledger.journal
        journal.event(left.instrument, left.group, None, "accepted", {"source": "recovery"})
        lifecycle.counters.add("visits_taken_up")
        _LOG.warning(
            "Visit %s is taken up again for %d detectors; what %d of them have left is looked into.",
            entry.visit.identity,
            len(entry.detectors),
            len(kept),
        )
    return kept


def _as_next_attempt(d: DetectorVisit, last: int, repo: Path | None, starts: int) -> None:
    # Not the first attempt: the APDB is asked before it runs.
    d.attempt = last + 1
    # It was not its fault: a start counts as no retry, unless there are suspiciously many.
    d.put_backs = min(starts, _MAX_STARTS, last)
    if repo is not None:
        # It may not be run again then, but what it may have changed has to be known.
        expired = d.expires < time.time()
        d.predecessor = Predecessor(local_repo=str(repo), reason=_KILLED, last=expired)


def _remains(settings: Settings, left: UnfinishedVisit, detector: int) -> Path | None:
    """Find the last local repo of a detector-visit: its main pipeline may have begun there."""
    last = _key(left, detector)
    for attempt in range(last.attempt, 0, -1):
        name = last.model_copy(update={"attempt": attempt}).file_name
        repo = settings.local_repos / f"ppd-{name}"
        if repo.is_dir():
            return repo
    return None


def _key(left: UnfinishedVisit, detector: int) -> DetectorKey:
    return DetectorKey(
        instrument=left.instrument,
        group=left.group,
        detector=detector,
        attempt=left.attempts.get(detector, 1),
    )


def _give_up(lifecycle: Lifecycle, left: UnfinishedVisit, detectors: list[int], error: PpdError) -> None:
    _LOG.error("Visit %s group %s is not taken up again: %s", left.instrument, left.group, error)
    _fail(lifecycle, left, detectors, f"not taken up again: {error}")


def _fail(lifecycle: Lifecycle, left: UnfinishedVisit, detectors: Iterable[int], reason: str) -> None:
    journal = lifecycle.ledger.journal
    for detector in detectors:
        where = (left.instrument, left.group, detector)
        lifecycle.counters.error("failed", f"{left.group}/{detector}", reason)
        journal.event(*where, "failed", {"reason": reason})
        journal.state(*where, "failed", attempt=left.attempts.get(detector, 1), reason=reason)


def _handed_over(spool: Path) -> dict[str, int]:
    """Find the hand-overs in the spool by their names: when central was away there are many."""
    found: dict[str, int] = {}
    with os.scandir(spool / "ready") as entries:
        for entry in entries:
            stem, _, attempt = entry.name.rpartition("-")
            if attempt.isdecimal():
                found[stem] = max(int(attempt), found.get(stem, 0))
    return found


def _of_living_nursery(path: Path) -> bool:
    pid = path.name.removeprefix("ppd-nursery-").partition("-")[0]
    return path.name.startswith("ppd-nursery-") and pid.isdigit() and Path(f"/proc/{pid}").exists()
