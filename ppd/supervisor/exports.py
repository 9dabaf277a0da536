"""What the exporter reports is journaled, and only then may a hand-over go."""

from __future__ import annotations

__all__ = ["Exports"]

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..crash_points import here
from ..messages import DetectorKey, Exported, SetAside
from .exporter_keeper import ExporterKeeper
from .ledger import Ledger
from .outputs import Outputs
from .spool import discard

_LOG = logging.getLogger(__name__)


class Exports:
    """The supervisor's half of the export.

    Parameters
    ----------
    keeper : `ppd.supervisor.exporter_keeper.ExporterKeeper`
        Has the exporter.
    outputs : `ppd.supervisor.outputs.Outputs`
        Is told what became of each hand-over.
    ledger : `ppd.supervisor.ledger.Ledger`
        Has to have it before a hand-over goes.
    spool : `pathlib.Path`
        Root of the spool.
    """

    def __init__(self, keeper: ExporterKeeper, outputs: Outputs, ledger: Ledger, spool: Path):
        self._keeper = keeper
        self._outputs = outputs
        self._ledger = ledger
        self._spool = spool
        self._pending: dict[str, DetectorKey] = {}

    def turn(self) -> None:
        """Take what the exporter has said."""
        self._take(self._keeper.receive())
        if self._keeper.ended:
            self._keeper.ended = False
            try:
                self._outputs.find_dead_letters()
            except Exception:
                self._ledger.counters.add("internal_errors")
                _LOG.exception("What the exporter has set aside can't be looked through.")

    def let_go(self) -> None:
        """Let exported hand-overs go, once the journal has that they are."""
        done = self._sure()
        if done:
            here("supervisor.discard-not-sent")
            self._keeper.discard(done)
            here("supervisor.discard-sent")
        self._keeper.flush()

    def end(self, timeout: float) -> None:
        """End the exporter; what it has exported at the last moment is settled without it.

        Parameters
        ----------
        timeout : `float`
            Seconds that it has.
        """
        self._take(self._keeper.stop(timeout))
        self._ledger.journal.commit()
        for entry in self._sure():
            with contextlib.suppress(OSError):  # the next start's exporter reports it again
                discard(self._spool / "ready" / entry)

    def _take(self, said: Iterable[Any]) -> None:
        for message in said:
            try:
                if isinstance(message, Exported):
                    self._outputs.exported(message)
                    self._ledger.measures.exported(len(message.entries), message.seconds)
                    self._pending.update({e.entry: e.key for e in message.entries})
                elif isinstance(message, SetAside):
                    self._outputs.undeliverable(message)
                    here("supervisor.dead-letter-noted")
            except Exception:
                # It stays in the spool, and is reported again by the next exporter.
                self._ledger.counters.add("internal_errors")
                _LOG.exception("A report of the exporter could not be taken.")

    def _sure(self) -> list[str]:
        """Hand-overs of which the journal has what became of their detector-visits."""
        if not self._pending or self._ledger.journal.trouble is not None:
            return []
        # One whose child's end is still to be heard of would seem to have handed over nothing.
        done = [entry for entry, key in self._pending.items() if self._outputs.settled(key)]
        for entry in done:
            del self._pending[entry]
        return done
