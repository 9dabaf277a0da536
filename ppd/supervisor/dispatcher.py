"""Giving slots and processors to detector-visits, in the order of the policy."""

from __future__ import annotations

__all__ = ["Dispatcher"]

import os
import time
from collections.abc import Callable

import pydantic

from ..config import Settings
from ..crash_points import here
from ..messages import CancelWork, ForkRequest, Job, PermitGrant
from .child_logs import log_file
from .containment import Containment
from .endings import Endings, local_repo
from .ledger import Ledger
from .permits import Permits
from .scheduling import Claim, Pace
from .slots import plan_forks
from .table import DetectorVisit, State, VisitTable

_BEFORE_RAWS = ("", "starting", "queued_preprocess", "preprocess")


class Dispatcher:
    """Forks children and lets them work.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    endpoint : `str`
        Where children connect to.
    table : `ppd.supervisor.table.VisitTable`
        All detector-visits.
    ledger : `ppd.supervisor.ledger.Ledger`
        Where things are written down.
    endings : `ppd.supervisor.endings.Endings`
        Lets those fail that have waited too long.
    containment : `ppd.supervisor.containment.Containment`
        Looks after what children leave behind.
    fork : callable
        Sends a request to the nursery of a generation; returns whether there is one.
    send : callable
        Sends a message to the child with a ZeroMQ identity.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        table: VisitTable,
        ledger: Ledger,
        endings: Endings,
        containment: Containment,
        fork: Callable[[ForkRequest, int], bool],
        send: Callable[[bytes, pydantic.BaseModel], None],
    ):
        self._settings = settings
        self._endpoint = endpoint
        self._table = table
        self._ledger = ledger
        self._endings = endings
        self._containment = containment
        self._fork = fork
        self._send = send
        self.permits = Permits(1)
        self.pace = Pace(settings.alert_deadline)
        self.settings_changed()

    def settings_changed(self) -> None:
        """Take the settings in force."""
        self.permits.limit = self._settings.running or os.cpu_count() or 1
        self.pace.alert_deadline = self._settings.alert_deadline

    def _claim(self, d: DetectorVisit, preprocessing: bool | None = None) -> Claim:
        if preprocessing is None:
            preprocessing = bool(d.preprocessing) and d.phase in _BEFORE_RAWS
        return self.pace.claim(
            d.key, d.accepted, self._table.visits[d.group].visit.duration, d.closed, preprocessing
        )

    def ask(self, d: DetectorVisit, *, preprocessing: bool) -> None:
        """Let a child stand in line for a processor."""
        self.permits.ask(self._claim(d, preprocessing))

    def grant(self, now: float) -> None:
        """Give out permits, and note who can't make it in time any more."""
        if not self.permits.queued:
            return
        patience = 3.0 * self._settings.heartbeat_interval
        silent = {d.key for d in self._table.live() if now > d.heard_at + patience}
        clock = time.time()
        for claim in self.permits.late(clock):
            d = self._table.of_key(claim.who)
            if d is not None and not d.expected_late:
                d.expected_late = True
                self._ledger.counters.add("late")
                self._ledger.event(d, "late", seconds=clock + claim.work - claim.deadline)
        for key in self.permits.grant(clock, silent):
            holder = self._table.of_key(key)
            if holder is None or holder.identity is None:
                self.permits.give_back(key)
            else:
                self._send(holder.identity, PermitGrant())
                here("supervisor.permit-granted")

    def fork_waiting(self, now: float, room: bool = True) -> None:
        """Fork those whose turn it is, and let those that have waited too long fail.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.
        room : `bool`, optional
            Whether there is room on the disk: children would fail one after
            the other, and use up their tries.
        """
        waiting = []
        for d in self._table:
            if d.state is not State.WAITING or d.not_before > now:
                continue
            if time.time() > d.expires:
                if d.predecessor is None:
                    self._ledger.counters.add("shed")
                    self._endings.fail(d, "its message expired while it waited for a slot")
                    continue
                # It may not be run again, but what it may have changed has to be known.
                d.predecessor = d.predecessor.model_copy(update={"last": True})
            waiting.append(d)
        if not waiting or not room:
            return
        turn = plan_forks(waiting, self._table.live(), self._settings.slots, self._claim, time.time())
        for d in turn.fork:
            generation = self._table.visits[d.group].deployment.generation
            request = ForkRequest(job=self._job(d))
            here("supervisor.fork-not-asked")
            if self._fork(request, generation):
                self._ledger.change(d, State.FORKED)
                d.forked_at = d.heard_at = now
                here("supervisor.fork-asked")
        for d in turn.put_back:
            self._put_back(d)

    def _put_back(self, d: DetectorVisit) -> None:
        """Take the slot of a child that only waits, and is late in any case."""
        d.putting_back = True
        self.permits.give_back(d.key)
        self._ledger.fault(d, "put_back", "it is late, and makes room for one that can be in time")
        self._ledger.event(d, "put_back")
        self._send(d.identity or b"", CancelWork(reason="it makes room for one that can be in time"))

    def _job(self, d: DetectorVisit) -> Job:
        entry = self._table.visits[d.group]
        assert d.view is not None
        cgroup = self._containment.prepare(d)
        return Job(
            key=d.key,
            visit=entry.visit.model_dump(mode="json"),
            accepted=d.accepted,
            expires=d.expires,
            cache=d.view,
            preprocessing=d.preprocessing,
            main=d.main,
            runs=entry.runs,
            deployment=entry.deployment.id,
            traceparent=self._ledger.measures.traces.parent(d),
            endpoint=self._endpoint,
            local_repo=str(local_repo(self._settings, d)),
            spool=str(self._settings.spool_dir),
            log_file=str(log_file(self._settings.state_dir, entry.day_obs, d.key)),
            predecessor=d.predecessor,
            mark=self._containment.mark(d),
            cgroup=str(cgroup) if cgroup else None,
        )
