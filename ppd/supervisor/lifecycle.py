"""What moves detector-visits from state to state.

Every function of `Lifecycle` is called from the supervisor's one loop; none
waits for anything.
"""

from __future__ import annotations

__all__ = ["Lifecycle"]

import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pydantic

from ..config import Settings
from ..crash_points import here
from ..logs import bound
from ..messages import (
    ChildDone,
    ChildHeartbeat,
    ChildReady,
    Exited,
    Forked,
    ForkRequest,
    MessageError,
    PermitRequest,
    PermitReturn,
    PhaseEvent,
    RawArrived,
)
from ..sources.raws import Candidate
from .central import CentralReader
from .containment import Containment
from .deadlines import check_time, terminate
from .dispatcher import Dispatcher
from .endings import Endings
from .input_seeker import InputSeeker
from .ledger import Ledger
from .outputs import Outputs
from .raw_sources import RawSources
from .raws import RawTable
from .requests import Released
from .table import LIVE, DetectorVisit, State, VisitEntry, VisitTable

_LOG = logging.getLogger(__name__)

_OF_CHILDREN = (ChildReady, ChildHeartbeat, PhaseEvent, PermitRequest, PermitReturn, ChildDone)
# Messages for single detectors of one visit come one after the other; their
# inputs are looked for together.
_GATHER_SECONDS = 0.2
_MAX_NURSERY_DEATHS = 3
_DONE_WITH_RAWS = frozenset({State.RUNNING, State.HANDED_OVER, State.EXPORTED, State.FAILED})
# Events of a child that are faults, and how they are counted.
_FAULTS = {
    "raw_refused": "raws_refused",
    "raw_repeated": "raws_repeated",
    "raw_not_fetched": "raws_not_fetched",
    "exposure_dropped": "exposures_dropped",
    "spool_full": "spool_full",
}


class Lifecycle:
    """The states of all detector-visits and what changes them.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    endpoint : `str`
        Where children connect to.
    ledger : `ppd.supervisor.ledger.Ledger`
        Where things are written down.
    central : `ppd.supervisor.central.CentralReader`
        Finds inputs.
    fork : callable
        Sends a request to the nursery of a generation; returns whether there is one.
    send : callable
        Sends a message to the child with a ZeroMQ identity.
    containment : `ppd.supervisor.containment.Containment`
        Looks after what children leave behind.
    sources : `ppd.supervisor.raw_sources.RawSources`
        Look for raws.
    has_room : callable, optional
        Whether there is room on the disk for what children write.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        ledger: Ledger,
        central: CentralReader,
        fork: Callable[[ForkRequest, int], bool],
        send: Callable[[bytes, pydantic.BaseModel], None],
        containment: Containment,
        sources: RawSources,
        has_room: Callable[[], bool] = lambda: True,
    ):
        self.settings = settings
        self.ledger = ledger
        self.counters = ledger.counters
        self.central = central
        self.table = VisitTable()
        self.raws = RawTable(settings.raw_keep_seconds, settings.raw_keep_count)
        self.endings = Endings(settings, ledger, self._release)
        self.dispatcher = Dispatcher(
            settings, endpoint, self.table, ledger, self.endings, containment, fork, send
        )
        self.permits = self.dispatcher.permits
        self.outputs = Outputs(settings, self.table, ledger, self.endings)
        self.inputs = InputSeeker(settings, central, self.table, ledger, self.endings)
        self._send = send
        self._containment = containment
        self._sources = sources
        self._has_room = has_room

    # Visits and inputs

    def accept(self, entry: VisitEntry, source: str) -> None:
        """Take a visit on; see `accept_all`."""
        self.accept_all([entry], source)
        self.counters.add("visits_accepted")

    def accept_all(self, entries: Sequence[VisitEntry], source: str, **detail: Any) -> None:
        """Take visits on: journal them all at once, then ask for their inputs; the caller counts them.

        Parameters
        ----------
        entries : sequence of `ppd.supervisor.table.VisitEntry`
            The visits.
        source : `str`
            Where they came from.
        **detail
            What else the journal should have of their acceptance.

        Raises
        ------
        ppd.errors.JournalError
            Raised if they can't be made durable; then none is accepted.
        """
        here("supervisor.acceptance-not-journaled")
        self.ledger.journal.visits_accepted([entry.acceptance(source=source, **detail) for entry in entries])
        here("supervisor.acceptance-journaled")
        for entry in entries:
            with bound(group=entry.visit.groupId):
                _LOG.info("Visit %s accepted for %d detectors.", entry.visit.identity, len(entry.detectors))
            self.take_on(entry)

    def accept_again(self, entry: VisitEntry, seen: Mapping[int, tuple[str, ...]], why: str) -> None:
        """Take detector-visits on again that had failed: journal it, then ask for their inputs.

        Parameters
        ----------
        entry : `ppd.supervisor.table.VisitEntry`
            Just these detector-visits, as their next attempts.
        seen : `~collections.abc.Mapping`
            URIs of raws that were there once, by detector.
        why : `str`
            What an operator said.

        Raises
        ------
        ppd.errors.JournalError
            Raised if it can't be made durable; then nothing has changed.
        """
        visit = entry.visit
        self.ledger.journal.accepted_again(
            visit.instrument,
            visit.groupId,
            visit.model_dump(mode="json"),
            {d.detector: d.attempt for d in entry.detectors.values()},
            why,
        )
        self.counters.add("retries_asked", len(entry.detectors))
        self.ledger.recall(entry)
        self.raws.recall(visit.groupId, entry.detectors.keys())
        self.take_on(entry, seen)
        # It is as fresh as it was announced now, for all that is left to do of it.
        self.table.visits[visit.groupId].visit = visit

    def take_on(self, entry: VisitEntry, seen: Mapping[int, tuple[str, ...]] = MappingProxyType({})) -> None:
        """Take on a visit that the journal has: ask for its inputs, and look for its raws."""
        visit = entry.visit
        delay = _GATHER_SECONDS if entry.fanned_out else 0.0
        for detector in entry.detectors:
            # Raws that came before have found their visit: they don't expire.
            self.raws.of(visit.groupId, detector)
        self._sources.expect(visit, entry.detectors, self._raws_until(entry), seen)
        entry = self.table.add(entry)
        entry.taken_on = time.monotonic()
        entry.resolve_at = entry.taken_on + delay

    def raw_seen(self, candidate: Candidate) -> None:
        """Take a raw: to its child, or to wait for its visit."""
        key = candidate.key
        if key is None or key.instrument != self.settings.instrument:
            fault = candidate.fault if key is None else f"it is of {key.instrument}"
            self.counters.error("raws_unrecognised", candidate.uri, fault)
            _LOG.error("%s is ignored: %s.", candidate.uri, fault)
            return
        d = self.table.get(key.group, key.detector)
        if d is None and key.detector in self.ledger.journal.known_detectors(key.instrument, key.group):
            # Of an earlier supervisor's visit: a start looks at all that is there.
            self.counters.add("raws_of_finished_visits")
            self.raws.remember(candidate)  # an operator may have it tried again
        elif not self.raws.add(candidate, known=d is not None):
            self.counters.add("raws_seen_again")
        else:
            here("supervisor.raw-seen")
            self.counters.add("raws_seen")
            if d is not None and d.state in _DONE_WITH_RAWS:
                if self.raws.is_copy(candidate):
                    return
                self.ledger.fault(d, "raws_too_late", f"{candidate.uri} came when it was over")
            elif d is not None:
                self._note_raw(d, candidate)
                self._feed(d)

    # The nursery and its children

    def nursery_said(self, message: Any) -> None:
        """Take a message of the nursery."""
        if isinstance(message, Forked):
            d = self.table.of_key(message.key)
            if d is not None:
                d.pid = message.pid
                d.heard_at = time.monotonic()
                self.ledger.event(d, "forked", pid=message.pid)
                here("supervisor.fork-noted")
        elif isinstance(message, Exited):
            self.child_ended(message.pid, message.code)

    def nursery_lost(self, generation: int, orphans: Iterable[int]) -> None:
        """Take note that a nursery has ended; the kernel ends its children too.

        Parameters
        ----------
        generation : `int`
            Whose nursery it was.
        orphans : iterable of `int`
            Process IDs of children that are still there; `child_ended` tells
            of their end.
        """
        for d in self.table.live():
            if self._entry(d).deployment.generation != generation:
                continue
            if d.nursery_deaths < _MAX_NURSERY_DEATHS:
                # Not its fault: no retry, unless it happens to it again and again.
                d.nursery_deaths += 1
                d.put_backs += 1
            if d.pid not in set(orphans):
                d.exited_at = d.exited_at or time.monotonic()

    def child_ended(self, pid: int, code: int | None) -> None:
        """Take note that a child was reaped; negative codes are signals."""
        for d in self.table.live():
            if d.pid == pid:
                d.exited_at, d.exit_code = time.monotonic(), code
                here("supervisor.child-end-heard")

    def child_said(self, identity: bytes, message: Any) -> None:
        """Take a message of a child.

        Raises
        ------
        ppd.messages.MessageError
            Raised if it is no child's, or not of the child that its key names.
        """
        if not isinstance(message, _OF_CHILDREN):
            raise MessageError(f"{type(message).__name__} is nothing that a child says")
        if identity != message.key.line:
            raise MessageError(f"{type(message).__name__} of {message.key} from another's line")
        d = self.table.of_key(message.key)
        if d is None or d.state not in LIVE:
            return
        d.heard_at = time.monotonic()
        d.identity = identity
        if isinstance(message, ChildHeartbeat):
            d.enter(message.phase)
        elif isinstance(message, ChildReady):
            wait = 2 * self._entry(d).visit.duration + self.settings.image_timeout
            d.raws_until = time.monotonic() + wait
            if d.attempt > 1:  # the last one had all its raws, but they may be others by now
                entry = self._entry(d)
                self._sources.expect(entry.visit, [d.detector], self._raws_until(entry))
            self.ledger.change(d, State.READY)
            self.ledger.event(d, "ready", pid=message.pid, seconds=message.seconds, opened=message.opened)
            here("supervisor.child-ready-noted")
            for candidate in self.raws.of(d.group, d.detector):
                self._note_raw(d, candidate)
            self._feed(d)
        elif isinstance(message, PhaseEvent):
            self._phase(d, message)
        elif isinstance(message, PermitRequest):
            self.dispatcher.ask(d, preprocessing=message.work == "preprocess")
            here("supervisor.permit-asked", message.work)
        elif isinstance(message, PermitReturn):
            self.permits.give_back(d.key)
        elif isinstance(message, ChildDone):
            d.done = message
            self.permits.give_back(d.key)
            here("supervisor.last-word-heard")

    # Time

    def turn(self) -> None:
        """Do what is due: inputs to ask for, forks, permits, time-outs, ends."""
        now = time.monotonic()
        for entry in list(self.table.visits.values()):
            self.inputs.turn(entry, now)
        self._containment.turn(self.table.live(), now)
        for d in self.table.live():
            if self.endings.due(d, now):
                self.permits.give_back(d.key)
                if self._containment.cleared(d, now):
                    here("supervisor.ending-not-decided")
                    self.endings.settle(d)
                    here("supervisor.ending-decided")
            else:
                for message in check_time(d, now, self.settings):
                    self._send(d.identity or b"", message)
        if not self.endings.stopping:
            self.dispatcher.fork_waiting(now, self._has_room())
        self.dispatcher.grant(now)
        for candidate in self.raws.expire():
            self.counters.error("raws_unmatched", candidate.uri, "no visit was announced for it")
            _LOG.warning("Raw %s matched no visit in time.", candidate.uri)
        self._close_visits()

    def terminate_all(self, reason: str, signum: signal.Signals) -> None:
        """End every child that is still alive."""
        for d in self.table.live():
            terminate(d, reason, signum)

    def generations(self) -> set[int]:
        """Generations of the deployments whose visits may still need a child."""
        return {e.deployment.generation for e in self.table.visits.values() if e.unfinished}

    def settings_changed(self) -> None:
        """Take the settings in force, where they are not read each time."""
        self.raws.keep(self.settings.raw_keep_seconds, self.settings.raw_keep_count)
        self.dispatcher.settings_changed()

    # Steps

    def _entry(self, d: DetectorVisit) -> VisitEntry:
        return self.table.visits[d.group]

    def _raws_until(self, entry: VisitEntry) -> float:
        """When the last of a visit's children must be over, Unix seconds."""
        last = max((d.expires for d in entry.detectors.values()), default=0.0)
        return last + (1 + self.settings.retries) * self.settings.worker_timeout

    def _note_raw(self, d: DetectorVisit, candidate: Candidate) -> None:
        assert candidate.key is not None
        d.closed = max(d.closed or 0.0, candidate.closed)
        detail = {"uri": candidate.uri, "snap": candidate.key.snap, "closed": candidate.closed}
        self.ledger.event(d, "raw_seen", **detail)

    def _feed(self, d: DetectorVisit) -> None:
        if d.identity is None or d.state is not State.READY:
            return
        for candidate in self.raws.of(d.group, d.detector):
            if d.sent.get(candidate.uri) == candidate:
                continue
            d.sent[candidate.uri] = candidate
            assert candidate.key is not None
            here("supervisor.raw-not-sent")
            self._send(
                d.identity,
                RawArrived(
                    uri=candidate.uri,
                    snap=candidate.key.snap,
                    exposure=candidate.key.exposure,
                    size=candidate.size,
                    stamp=candidate.stamp,
                ),
            )
            here("supervisor.raw-sent")

    def _phase(self, d: DetectorVisit, message: PhaseEvent) -> None:
        self.ledger.event(d, message.name, message.time, **message.detail)
        reason = str(message.detail.get("reason", ""))
        self.dispatcher.pace.note(d.key, message.name, message.time)
        if message.name == "main_start":
            d.putting_back = False
            self.ledger.change(d, State.RUNNING)
            self._sources.dismiss(d.group, d.detector)
        elif message.name == "preprocess_end" and not message.detail.get("success", True):
            self.ledger.fault(d, "preprocess_failed", reason)
        elif message.name in _FAULTS:
            self.ledger.fault(d, _FAULTS[message.name], reason)
        here("supervisor.phase-noted", message.name)

    def _release(self, d: DetectorVisit) -> None:
        self.dispatcher.pace.forget(d.key)
        self.central.request(Released(d.holder))
        self.raws.forget(d.group, d.detector)
        self._sources.dismiss(d.group, d.detector)

    def _close_visits(self) -> None:
        """Log each visit's end once, and forget those that are long over."""
        for entry in self.table.finished():
            if not entry.over:
                entry.over = True
                self.ledger.measures.traces.visit(entry, time.time())
                states = [d.state for d in entry.detectors.values()]
                failed = states.count(State.FAILED)
                level = logging.WARNING if failed else logging.INFO
                with bound(group=entry.visit.groupId):
                    _LOG.log(
                        level,
                        "Visit %s is over after %.1f s: %d detectors in central, %d failed.",
                        entry.visit.identity,
                        time.time() - entry.accepted,
                        len(states) - failed,
                        failed,
                    )
        for entry in self.table.prune():
            for detector in entry.detectors:
                # Raws that came after their detector-visit was over.
                self.raws.forget(entry.visit.groupId, detector)
