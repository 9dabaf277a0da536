"""Asking for the inputs of visits, and again, until they are there or it is too late."""

from __future__ import annotations

__all__ = ["InputSeeker"]

import logging
import random
import time

from ..config import Settings
from ..crash_points import here
from ..logs import bound
from .central import CentralReader
from .endings import Endings
from .ledger import Ledger
from .requests import Resolve, Resolved
from .table import State, VisitEntry, VisitTable

_LOG = logging.getLogger(__name__)


class InputSeeker:
    """Asks the reader of the central repo, and takes its answers.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    central : `ppd.supervisor.central.CentralReader`
        Finds inputs.
    table : `ppd.supervisor.table.VisitTable`
        All detector-visits.
    ledger : `ppd.supervisor.ledger.Ledger`
        Where things are written down.
    endings : `ppd.supervisor.endings.Endings`
        Lets those fail that get none.
    """

    def __init__(
        self,
        settings: Settings,
        central: CentralReader,
        table: VisitTable,
        ledger: Ledger,
        endings: Endings,
    ):
        self._settings = settings
        self._central = central
        self._table = table
        self._ledger = ledger
        self._endings = endings

    def turn(self, entry: VisitEntry, now: float) -> None:
        """Ask for a visit's inputs if it is time, or let it fail if it is too late.

        Parameters
        ----------
        entry : `ppd.supervisor.table.VisitEntry`
            The visit.
        now : `float`
            Monotonic seconds.
        """
        if entry.resolve_at is not None and now >= entry.resolve_at:
            entry.resolve_at = None
            self._resolve(entry)
        # Nobody has looked before the nursery was built for the first time.
        begun = max(entry.taken_on, self._central.started_at or now)
        if not entry.over and now > begun + self._settings.inputs_timeout:
            self._give_up_inputs(entry)

    def resolved(self, answer: Resolved) -> None:
        """Take the inputs of a visit, or the reason why there are none."""
        entry = self._table.visits.get(answer.group)
        if entry is None:
            return
        here("supervisor.inputs-heard")
        # Others of the visit may have been asked for since: their answer is still to come.
        ours = [d for d in entry.detectors.values() if d.detector in answer.asked]
        asked = [d for d in ours if d.resolving and d.state is State.ACCEPTED]
        for d in asked:
            d.resolving = False
        identity = entry.visit.identity
        with bound(group=answer.group):
            if answer.error is not None:
                if answer.retry and self._ask_again(entry, answer.error):
                    return
                for d in asked:
                    self._endings.fail(d, f"its inputs could not be had: {answer.error}")
                return
            _LOG.info(
                "Inputs of %s are ready for %d detectors, %d without, after %.2f s and %d statements;"
                " %d datasets were fetched.",
                identity,
                len(answer.views),
                len(answer.refused),
                answer.seconds,
                answer.statements,
                answer.fetched,
            )
        detail = {"statements": answer.statements, "datasets": answer.fetched, "seconds": answer.seconds}
        self._ledger.journal.event(entry.visit.instrument, answer.group, None, "resolved", detail)
        self._ledger.counters.add("central_statements", answer.statements)
        if answer.inputs is not None:
            self._table.keep_inputs(entry, answer.inputs)
        again = False
        if answer.postponed:
            detector, reason = next(iter(answer.postponed.items()))
            again = self._ask_again(entry, f"{len(answer.postponed)} detectors, such as {detector}: {reason}")
        for d in asked:
            if d.detector in answer.views:
                d.view = answer.views[d.detector]
                self._ledger.change(d, State.WAITING)
                self._ledger.event(d, "inputs_ready")
            elif d.detector in answer.postponed:
                if not again:
                    reason = answer.postponed[d.detector]
                    self._endings.fail(d, f"no main pipeline has its inputs: {reason}")
            else:
                reason = answer.refused.get(d.detector, "they were not found")
                self._endings.fail(d, f"no main pipeline has its inputs: {reason}")
        here("supervisor.inputs-noted")

    def days_wanted(self, deployment: str) -> set[int]:
        """Days of visits of a deployment that wait to ask again for their inputs."""
        return {entry.day_obs for entry in self._waiting(deployment)}

    def ask_now(self, day_obs: int, deployment: str) -> None:
        """Let visits of a day ask at once: what they have waited for may be there."""
        for entry in self._waiting(deployment):
            if entry.day_obs == day_obs:
                entry.resolve_at = time.monotonic()

    def _waiting(self, deployment: str) -> list[VisitEntry]:
        entries = self._table.visits.values()
        return [e for e in entries if e.tries and e.resolve_at is not None and e.deployment.id == deployment]

    def _ask_again(self, entry: VisitEntry, reason: str) -> bool:
        """Plan another search for what a visit lacks, unless its message expires before."""
        if entry.visit.age(time.time()) > self._settings.message_expiration:
            return False
        entry.tries += 1
        delay = min(self._settings.repo_retry_delay, 2.0**entry.tries) * random.uniform(0.5, 1.0)
        entry.resolve_at = time.monotonic() + delay
        self._ledger.counters.error("inputs_retried", entry.visit.identity, reason)
        _LOG.error("Inputs of %s: %s; next try in %.1f s.", entry.visit.identity, reason, delay)
        return True

    def _resolve(self, entry: VisitEntry) -> None:
        due = [d for d in entry.detectors.values() if d.state is State.ACCEPTED and not d.resolving]
        for d in due:
            d.resolving = True
        if due:
            self._central.request(
                Resolve(
                    visit=entry.visit,
                    preprocessing={d.detector: d.preprocessing for d in due},
                    main={d.detector: d.main for d in due},
                    day_obs=entry.day_obs,
                    deployment=entry.deployment.id,
                    runs=tuple(entry.runs.values()),
                )
            )
            here("supervisor.inputs-asked")

    def _give_up_inputs(self, entry: VisitEntry) -> None:
        """Let detector-visits fail that have waited too long for the central repo."""
        late = [d for d in entry.detectors.values() if d.state is State.ACCEPTED]
        for d in late:
            seconds = self._settings.inputs_timeout
            self._endings.fail(d, f"its inputs were not there within {seconds:.0f} s")
