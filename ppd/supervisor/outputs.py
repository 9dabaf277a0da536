"""What becomes of a detector-visit when its outputs are exported, or can't be."""

from __future__ import annotations

__all__ = ["Outputs"]

import logging

from ..config import Settings
from ..crash_points import here
from ..messages import DetectorKey, Exported, ExportedEntry, SetAside
from .dead_letters import list_letters
from .endings import Endings
from .ledger import Ledger
from .table import OVER, State, VisitTable

_LOG = logging.getLogger(__name__)


class Outputs:
    """The last step of detector-visits, also of those that an earlier supervisor left.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    table : `ppd.supervisor.table.VisitTable`
        Has the visits that are at work.
    ledger : `ppd.supervisor.ledger.Ledger`
        Where things are written down.
    endings : `ppd.supervisor.endings.Endings`
        Ends those whose outputs are set aside.
    """

    def __init__(self, settings: Settings, table: VisitTable, ledger: Ledger, endings: Endings):
        self._settings = settings
        self._table = table
        self._ledger = ledger
        self._endings = endings

    def exported(self, report: Exported) -> None:
        """Note that central has some outputs; to be told again changes nothing."""
        here("supervisor.export-heard")
        for entry in report.entries:
            key = entry.key
            d = self._table.get(key.group, key.detector)
            current = d is not None and d.attempt == key.attempt
            if d.exported if current and d is not None else self._is_over(key):
                continue  # the exporter, or we, had ended before it could be discarded
            detail = {"datasets": entry.datasets, "seconds": report.seconds, "batch": len(report.entries)}
            self._ledger.journal.event(key.instrument, key.group, key.detector, "exported", detail)
            self._ledger.counters.add("datasets_exported", entry.datasets)
            if d is None:
                self._exported_for_another(entry)
            elif current:
                d.exported = True
                if d.state is State.HANDED_OVER:
                    final = State.FAILED if d.lost_cause else State.EXPORTED
                    self._ledger.change(d, final, reason=d.lost_cause or d.remark or None)
        here("supervisor.export-noted")

    def settled(self, key: DetectorKey) -> bool:
        """Whether it stands in the journal what became of an attempt that was exported."""
        d = self._table.of_key(key)
        return d is None or d.state in OVER

    def _is_over(self, key: DetectorKey) -> bool:
        known = self._ledger.journal.state_of(key.instrument, key.group, key.detector)
        return known is not None and known[0] in ("exported", "failed")

    def _exported_for_another(self, entry: ExportedEntry) -> None:
        """Note that central has a hand-over that an earlier supervisor left."""
        key = entry.key
        state, reason = "exported", None
        if not entry.success:
            known = self._ledger.journal.state_of(key.instrument, key.group, key.detector)
            state, reason = "failed", known[1] if known else ""
            if not reason:
                reason = entry.reason or "its pipeline failed; the child's log has it"
                self._ledger.counters.error("failed", str(key), reason)
        self._ledger.journal.state(
            key.instrument, key.group, key.detector, state, attempt=key.attempt, reason=reason
        )

    def undeliverable(self, report: SetAside) -> None:
        """Note that outputs can't be exported."""
        what = str(report.key) if report.key else report.entry
        self._ledger.counters.error("dead_letters", what, report.reason)
        _LOG.error("Hand-over %s (%s) was set aside: %s", report.entry, report.fault, report.reason)
        reason = f"its outputs can't be exported: {report.reason}"
        for d in self._table:
            # What has no readable manifest still has its name.
            if d.key == report.key or d.key.file_name == report.entry:
                d.set_aside = reason
                if d.state is State.HANDED_OVER:
                    self._endings.fail(d, reason)
                return
        for key in [report.key] if report.key else self._ledger.journal.named(report.entry):
            self._ledger.journal.state(
                key.instrument, key.group, key.detector, "failed", attempt=key.attempt, reason=reason
            )

    def find_dead_letters(self) -> None:
        """Note what an exporter has set aside that ended before it could say so."""
        for letter in list_letters(self._settings.spool_dir):
            fault = "refused" if letter.kind == "unknown" else letter.kind
            for key in self._ledger.journal.named(letter.name):
                d = self._table.of_key(key)
                if d is None or not d.set_aside:
                    self.undeliverable(
                        SetAside(entry=letter.entry, key=key, fault=fault, reason=letter.reason)
                    )
