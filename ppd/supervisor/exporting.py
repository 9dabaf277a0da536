"""Which hand-overs are exported together, and what follows when that fails.

What central refuses for one hand-over's sake must not keep the others: a batch
that fails is halved until the culprits stand alone.  What is away comes back:
then nobody is blamed.
"""

from __future__ import annotations

__all__ = ["Exporting", "Outcome"]

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from ..config import Settings
from ..crash_points import here
from ..errors import one_line
from ..messages import DetectorKey, Exported, ExportedEntry, Fault, SetAside
from .dead_letters import set_aside
from .spool import Backlog, HandOver, Waiting, discard, read_manifest, verify

_LOG = logging.getLogger(__name__)

_MAX_DEFERRAL = 600.0
# A batch that takes longer than this is too much for this central at a time; one that takes
# less than half of it is too little.
_BATCH_SECONDS = 4.0
_FIRST_BATCH = 20


@dataclasses.dataclass
class Outcome:
    """What came of a turn."""

    exported: list[ExportedEntry] = dataclasses.field(default_factory=list)
    set_aside: list[SetAside] = dataclasses.field(default_factory=list)
    trouble: str | None = None
    """Why central takes nothing now."""


class Exporting:
    """The spool on its way to central.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    write : callable
        Writes hand-overs to central, all or none; see
        `ppd.supervisor.export_batch.BatchWriter.write`.
    central_answers : callable
        Whether central takes anything at all.
    """

    def __init__(
        self,
        settings: Settings,
        write: Callable[[Sequence[HandOver]], None],
        central_answers: Callable[[], bool],
    ):
        self._settings = settings
        self._spool = Path(settings.spool_dir)
        self._write = write
        self._central_answers = central_answers
        self._backlog = Backlog(self._spool)
        self._letters = Backlog(self._spool, "dead-letters")
        self._reported: set[str] = set()
        self._deferred: dict[str, tuple[int, float]] = {}
        self._most = _FIRST_BATCH
        self.hurry = False
        """Whether fuller batches are not waited for."""

    def reconfigure(self, settings: Settings) -> None:
        """Go by other limits; the spool is the same."""
        self._settings = settings

    def look(self) -> list[Waiting]:
        """List what is in the spool, also what was exported and may not be discarded yet."""
        waiting = self._backlog.look()
        self._reported = {name for name in self._reported if name in self._backlog}
        self._deferred = {name: d for name, d in self._deferred.items() if name in self._backlog}
        return waiting

    def letters(self) -> list[Waiting]:
        """List the dead letters."""
        return self._letters.look()

    @property
    def bytes(self) -> int:
        """Bytes of what is in the spool, when it was last looked at."""
        return self._backlog.bytes

    @property
    def deferred(self) -> int:
        """How many hand-overs wait longer because their own export failed."""
        return len(self._deferred)

    def due(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Choose what is to be exported now, oldest first.

        Parameters
        ----------
        waiting : sequence of `ppd.supervisor.spool.Waiting`
            What `look` found.
        """
        now = time.monotonic()
        # Not all of a long backlog each time.
        fresh = (
            w
            for w in waiting
            if (name := w.path.name) not in self._reported and self._deferred.get(name, (0, 0.0))[1] <= now
        )
        batch: list[Waiting] = []
        size = 0
        most = min(self._most, self._settings.export_batch)
        for one in fresh:
            if batch and size + one.bytes > self._settings.export_bytes:
                return batch
            batch.append(one)
            size += one.bytes
            if len(batch) == most:
                return batch
        if self.hurry or (batch and time.time() - batch[0].since >= self._settings.export_age):
            return batch
        # A clock that was set back must not keep them.
        return batch if batch and batch[0].since > time.time() + 1.0 else []

    def export(self, batch: Sequence[Waiting]) -> Outcome:
        """Export some hand-overs.

        Parameters
        ----------
        batch : sequence of `ppd.supervisor.spool.Waiting`
            What `due` chose.

        Returns
        -------
        outcome : `Outcome`
            What is in central now, and what never will be.
        """
        outcome = Outcome()
        sound = []
        begin = time.monotonic()
        for one in batch:
            key = None
            try:
                manifest = read_manifest(one.path)
                key = manifest.key
                here("exporter.manifest-read")
                verify(one.path, manifest)
                here("exporter.files-verified")
                sound.append(HandOver(one.path, manifest))
            except (ValueError, OSError) as e:
                if _faults().is_passing(e):
                    self._defer(one.path, e)
                elif one.path.exists():
                    self._set_aside(one.path, key, "corrupt", e, outcome)
        self._try(sound, outcome)
        if outcome.trouble is None:
            self._suit(len(batch), time.monotonic() - begin)
        return outcome

    def discard(self, entries: Sequence[str]) -> None:
        """Remove hand-overs of which the journal has that they are exported.

        Raises
        ------
        OSError
            Raised if one can't be removed; it is reported again then.
        """
        for name in entries:
            if name in self._reported:
                discard(self._spool / "ready" / name)
                self._reported.discard(name)

    def report(self, outcome: Outcome, seconds: float) -> list[Exported | SetAside]:
        """Say what came of a turn, as messages for the supervisor."""
        messages: list[Exported | SetAside] = list(outcome.set_aside)
        if outcome.exported:
            self._reported.update(e.entry for e in outcome.exported)
            messages.append(Exported(entries=tuple(outcome.exported), seconds=seconds))
        return messages

    def _suit(self, size: int, seconds: float) -> None:
        """Have as much in a batch as central takes in some seconds, be it fast or slow."""
        if seconds > _BATCH_SECONDS:
            self._most = max(1, size // 2)
        elif seconds < _BATCH_SECONDS / 2.0 and size >= self._most:
            self._most = min(2 * self._most, self._settings.export_batch)

    def _try(self, batch: Sequence[HandOver], outcome: Outcome) -> None:
        """Write a batch; if it is refused, its halves."""
        if not batch or outcome.trouble is not None:
            return
        try:
            self._write(batch)
        except Exception as e:
            passing = _faults().is_passing(e)
            if passing and not self._central_answers():
                outcome.trouble = one_line(e)
            elif len(batch) > 1:
                _LOG.warning("A batch of %d can't be exported (%s); by halves now.", len(batch), one_line(e))
                here("exporter.batch-refused")
                middle = len(batch) // 2
                self._try(batch[:middle], outcome)
                self._try(batch[middle:], outcome)
            elif passing:
                self._defer(batch[0].path, e)
            else:
                _LOG.exception("Hand-over %s can't be exported.", batch[0].path.name)
                self._set_aside(batch[0].path, batch[0].manifest.key, _faults().fault_of(e), e, outcome)
        else:
            for one in batch:
                self._deferred.pop(one.path.name, None)
                m = one.manifest
                outcome.exported.append(
                    ExportedEntry(
                        entry=one.path.name,
                        key=m.key,
                        datasets=len(m.datasets),
                        success=m.success,
                        reason=m.reason,
                    )
                )

    def _defer(self, entry: Path, error: Exception) -> None:
        """Try one again later: central answers others."""
        tries = self._deferred.get(entry.name, (0, 0.0))[0] + 1
        delay = min(2.0**tries, _MAX_DEFERRAL) * random.uniform(0.5, 1.0)
        self._deferred[entry.name] = (tries, time.monotonic() + delay)
        _LOG.error(
            "Hand-over %s could not be exported (try %d, the next in %.0f s): %s",
            entry.name,
            tries,
            delay,
            one_line(error),
        )

    def _set_aside(
        self, entry: Path, key: DetectorKey | None, fault: Fault, error: Exception, outcome: Outcome
    ) -> None:
        reason = one_line(error, 1000)
        try:
            set_aside(entry, reason, fault)
        except OSError as e:
            # No room for the reason: it waits where it is, and the others go on.
            self._defer(entry, e)
            return
        outcome.set_aside.append(SetAside(entry=entry.name, key=key, fault=fault, reason=reason))


def _faults() -> ModuleType:
    """Import what tells faults apart: it needs the middleware, which an exporter starts without."""
    from . import export_faults

    return export_faults
