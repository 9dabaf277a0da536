"""Writing down what happens: to the journal, the counters, the metrics and the log, in one breath."""

from __future__ import annotations

__all__ = ["Ledger"]

import logging
import time
from typing import Any

from ..logs import bound
from .counters import Counters
from .journal import Journal
from .measures import Measures
from .table import DetectorVisit, State, VisitEntry
from .timeliness import Timeliness

_LOG = logging.getLogger(__name__)


class Ledger:
    """Notes changes of detector-visits wherever someone will look for them.

    Parameters
    ----------
    journal : `ppd.supervisor.journal.Journal`
        For restarts, and for history.
    counters : `ppd.supervisor.counters.Counters`
        For the operator's status.
    measures : `ppd.supervisor.measures.Measures`
        For Prometheus.
    """

    def __init__(self, journal: Journal, counters: Counters, measures: Measures):
        self.journal = journal
        self.counters = counters
        self.measures = measures

    def change(
        self, d: DetectorVisit, state: State, *, reason: str | None = None, pipeline: str | None = None
    ) -> None:
        """Change the state of a detector-visit."""
        d.state, d.since = state, time.time()
        d.reason = reason or ""
        self.journal.state(
            d.instrument,
            d.group,
            d.detector,
            state.value,
            attempt=d.attempt,
            pipeline=pipeline,
            reason=reason,
        )
        alerts = self.measures.changed(d)
        if alerts is not None:
            d.alerts = alerts
            # For the next supervisor, too: what is tried again under it is not judged again.
            detail = {"attempt": d.attempt, "alerts": alerts.value}
            self.journal.event(d.instrument, d.group, d.detector, "judged", detail)

    def recall(self, entry: VisitEntry) -> None:
        """Take what was judged of detector-visits, by whatever supervisor, from the journal."""
        judged = self.journal.judged(entry.visit.instrument, entry.visit.groupId)
        for detector in judged.keys() & entry.detectors.keys():
            entry.detectors[detector].alerts = Timeliness(judged[detector])

    def event(self, d: DetectorVisit, name: str, when: float | None = None, /, **detail: Any) -> None:
        """Note that something happened to a detector-visit, by default just now."""
        when = time.time() if when is None else when
        self.journal.event(d.instrument, d.group, d.detector, name, {"attempt": d.attempt, **detail}, when)
        self.measures.happened(d, name, when, detail)

    def fault(self, d: DetectorVisit, kind: str, reason: str) -> None:
        """Count a fault of a detector-visit and log it as an error."""
        self.counters.error(kind, str(d.key), reason)
        with bound(group=d.group, detector=d.detector):
            _LOG.error("Detector-visit %s, %s: %s", d.key, kind.replace("_", " "), reason)

    def failed(self, d: DetectorVisit, reason: str, failure: str) -> None:
        """Note that a detector-visit has failed for good; its state changes separately."""
        self.fault(d, "failed", reason)
        self.event(d, "failed", reason=reason, failure=failure)

    def incomplete(self, d: DetectorVisit, reason: str) -> None:
        """Note that a detector-visit succeeded and has fewer outputs than it might have."""
        self.counters.error("incomplete", str(d.key), reason)
        with bound(group=d.group, detector=d.detector):
            _LOG.warning("Detector-visit %s succeeded without all outputs: %s", d.key, reason)
