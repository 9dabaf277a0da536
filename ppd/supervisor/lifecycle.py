"""What moves detector-visits from state to state.

Every function of `Lifecycle` is called from the supervisor's one loop; none
waits for anything.
"""

from __future__ import annotations

__all__ = ["Lifecycle"]

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from ..config import Settings
from ..messages import (
    ChildDone,
    ChildHeartbeat,
    ChildReady,
    Exited,
    Forked,
    ForkRequest,
    Job,
    NoMoreRaws,
    PermitGrant,
    PermitRequest,
    PermitReturn,
    PhaseEvent,
    RawArrived,
)
from ..sources.directory import Candidate
from .central import CentralReader, Released, Resolve, Resolved
from .counters import Counters
from .exporter import Exported, Undeliverable
from .journal import Journal
from .nursery_client import NurseryClient
from .permits import Permits
from .raws import RawTable
from .table import LIVE, DetectorVisit, State, VisitEntry, VisitTable

_LOG = logging.getLogger(__name__)

# A child's last word and the news of its end come by different ways.
_LAST_WORD_SECONDS = 1.0
_KILL_AFTER_SECONDS = 5.0


class Lifecycle:
    """The states of all detector-visits and what changes them.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    endpoint : `str`
        Where children connect to.
    journal, central, counters : `Journal`, `CentralReader`, `Counters`
        Where things are written down, found and counted.
    send : callable
        Sends a message to the child with a ZeroMQ identity.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        journal: Journal,
        central: CentralReader,
        counters: Counters,
        send: Callable[[bytes, pydantic.BaseModel], None],
    ):
        self.settings = settings
        self.endpoint = endpoint
        self.journal = journal
        self.central = central
        self.counters = counters
        self.nursery: NurseryClient | None = None
        self.table = VisitTable()
        self.raws = RawTable(settings.raw_keep_seconds, settings.raw_keep_count)
        self.permits = Permits(settings.running or os.cpu_count() or 1)
        self._send = send

    # Visits and inputs

    def accept(self, entry: VisitEntry, source: str) -> None:
        """Take a visit on: journal it, then ask for its inputs."""
        visit = entry.visit
        self.journal.visit_accepted(
            visit.instrument, visit.groupId, entry.detectors, visit.model_dump(mode="json"), source
        )
        self.counters.add("visits_accepted")
        self.table.add(entry)
        _LOG.info("Visit %s accepted for %d detectors.", visit.identity, len(entry.detectors))
        self._resolve(entry)

    def resolved(self, answer: Resolved) -> None:
        """Take the inputs of a visit, or the reason why there are none."""
        entry = self.table.visits.get(answer.group)
        if entry is None:
            return
        instrument = entry.visit.instrument
        if answer.error is not None:
            expired = time.time() > entry.visit.private_sndStamp - 37.0 + self.settings.message_expiration
            if answer.retry and not expired:
                entry.tries += 1
                delay = min(self.settings.repo_retry_delay, 2.0**entry.tries)
                entry.resolve_at = time.monotonic() + delay
                self.counters.error("inputs_retried", entry.visit.identity, answer.error)
                _LOG.error("Inputs of %s: %s; next try in %.0f s.", entry.visit.identity, answer.error, delay)
                return
            for d in entry.detectors.values():
                if d.state is State.ACCEPTED:
                    self._fail(d, f"its inputs could not be had: {answer.error}")
            return
        self.journal.event(
            instrument,
            answer.group,
            None,
            "resolved",
            {"statements": answer.statements, "datasets": answer.fetched, "seconds": answer.seconds},
        )
        self.counters.add("central_statements", answer.statements)
        for detector, reason in answer.refused.items():
            self._fail(entry.detectors[detector], f"no main pipeline has its inputs: {reason}")
        for detector, view in answer.views.items():
            d = entry.detectors[detector]
            d.view = view
            self._change(d, State.WAITING)
            self._event(d, "inputs_ready")

    def raw_seen(self, candidate: Candidate) -> None:
        """Take a raw: to its child, or to wait for its visit."""
        key = candidate.key
        if key is None or key.instrument != self.settings.instrument:
            self.counters.error("raws_unrecognised", str(candidate.path), "its path is of no known layout")
            return
        d = self.table.get(key.group, key.detector)
        if not self.raws.add(candidate, known=d is not None):
            self.counters.add("raws_repeated")
            return
        self.counters.add("raws_seen")
        if d is not None:
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
                self._event(d, "forked", pid=message.pid)
        elif isinstance(message, Exited):
            d = self.table.of_key(message.key)
            if d is not None and d.state in LIVE:
                d.exited_at, d.exit_code = time.monotonic(), message.code

    def child_said(self, identity: bytes, message: Any) -> None:
        """Take a message of a child."""
        d = self.table.of_key(message.key)
        if d is None or d.state not in LIVE:
            return
        d.heard_at = time.monotonic()
        d.identity = identity
        if isinstance(message, ChildHeartbeat):
            d.phase = message.phase
        elif isinstance(message, ChildReady):
            wait = 2 * self._entry(d).visit.duration + self.settings.image_timeout
            d.raws_until = time.monotonic() + wait
            self._change(d, State.READY)
            self._event(d, "ready", pid=message.pid, seconds=message.seconds)
            for candidate in self.raws.of(d.group, d.detector):
                self._note_raw(d, candidate)
            self._feed(d)
        elif isinstance(message, PhaseEvent):
            self._phase(d, message)
        elif isinstance(message, PermitRequest):
            self.permits.ask(d.key, urgent=message.work == "main", since=d.accepted)
        elif isinstance(message, PermitReturn):
            self.permits.give_back(d.key)
        elif isinstance(message, ChildDone):
            d.done = message
            self.permits.give_back(d.key)

    def exported(self, report: Exported) -> None:
        """Note that central has some outputs."""
        for key, datasets in report.entries:
            self.journal.event(
                key.instrument,
                key.group,
                key.detector,
                "exported",
                {"datasets": datasets, "seconds": report.seconds, "batch": len(report.entries)},
            )
            self.counters.add("datasets_exported", datasets)
            d = self.table.get(key.group, key.detector)
            final = State.FAILED if d is not None and d.lost_cause else State.EXPORTED
            if d is not None and d.state is State.HANDED_OVER:
                self._change(d, final, reason=d.lost_cause or None)
            elif d is None:
                # A hand-over that an earlier supervisor left.
                self.journal.state(key.instrument, key.group, key.detector, "exported", attempt=key.attempt)

    def undeliverable(self, report: Undeliverable) -> None:
        """Note that outputs can't be exported."""
        what = str(report.key) if report.key else report.entry
        self.counters.error("dead_letters", what, report.reason)
        _LOG.error("Hand-over %s was set aside: %s", report.entry, report.reason)
        if report.key is not None:
            d = self.table.get(report.key.group, report.key.detector)
            if d is not None:
                self._fail(d, f"its outputs can't be exported: {report.reason}")

    # Time

    def turn(self) -> None:
        """Do what is due: forks, permits, time-outs, ends."""
        now = time.monotonic()
        for entry in list(self.table.visits.values()):
            if entry.resolve_at is not None and now >= entry.resolve_at:
                entry.resolve_at = None
                self._resolve(entry)
        for d in self.table.live():
            self._check_end(d, now)
            if d.state in LIVE:
                self._check_time(d, now)
        self._fork_waiting(now)
        for key in self.permits.grant():
            holder = self.table.of_key(key)
            if holder is None or holder.identity is None:
                self.permits.give_back(key)
            else:
                self._send(holder.identity, PermitGrant())
        for candidate in self.raws.expire():
            self.counters.error("raws_unmatched", str(candidate.path), "no visit was announced for it")
            _LOG.warning("Raw %s matched no visit in time.", candidate.path)
        for group in self.table.prune():
            _LOG.debug("Visit %s is over and forgotten here; the journal has it.", group)

    def terminate_all(self, reason: str, signum: signal.Signals) -> None:
        """End every child that is still alive."""
        for d in self.table.live():
            self._terminate(d, reason, signum)

    # Steps

    def _entry(self, d: DetectorVisit) -> VisitEntry:
        return self.table.visits[d.group]

    def _resolve(self, entry: VisitEntry) -> None:
        due = [d for d in entry.detectors.values() if d.state is State.ACCEPTED]
        if due:
            self.central.request(
                Resolve(
                    visit=entry.visit,
                    preprocessing={d.detector: d.preprocessing for d in due},
                    main={d.detector: d.main for d in due},
                    day_obs=entry.day_obs,
                    deployment=entry.deployment,
                    runs=tuple(entry.runs.values()),
                )
            )

    def _fork_waiting(self, now: float) -> None:
        if self.nursery is None:
            return
        free = self.settings.slots - len(self.table.live())
        waiting = [d for d in self.table if d.state is State.WAITING and d.not_before <= now]
        for d in sorted(waiting, key=lambda d: d.accepted)[: max(0, free)]:
            if time.time() > d.expires:
                self._fail(d, "its message expired while it waited for a slot")
                continue
            self._change(d, State.FORKED)
            d.forked_at = d.heard_at = now
            self.nursery.send(ForkRequest(job=self._job(d)))

    def _job(self, d: DetectorVisit) -> Job:
        entry = self._entry(d)
        assert d.view is not None
        name = f"{d.group}-{d.detector}-{d.attempt}".replace(":", "").replace("/", "_")
        return Job(
            key=d.key,
            visit=entry.visit.model_dump(mode="json"),
            accepted=d.accepted,
            expires=d.expires,
            cache=d.view,
            preprocessing=d.preprocessing,
            main=d.main,
            runs=entry.runs,
            endpoint=self.endpoint,
            local_repo=str(self._local_repo(d)),
            spool=str(self.settings.spool_dir),
            log_file=str(self.settings.state_dir / "logs" / f"{name}.log"),
        )

    def _local_repo(self, d: DetectorVisit) -> Path:
        name = f"ppd-{d.group}-{d.detector}-{d.attempt}".replace(":", "").replace("/", "_")
        return Path(self.settings.local_repos) / name

    def _note_raw(self, d: DetectorVisit, candidate: Candidate) -> None:
        assert candidate.key is not None
        detail = {"path": str(candidate.path), "snap": candidate.key.snap, "closed": candidate.closed}
        self._event(d, "raw_seen", **detail)

    def _feed(self, d: DetectorVisit) -> None:
        if d.identity is None or d.state is not State.READY:
            return
        for candidate in self.raws.of(d.group, d.detector):
            if d.sent.get(str(candidate.path)) == candidate:
                continue
            d.sent[str(candidate.path)] = candidate
            assert candidate.key is not None
            self._send(
                d.identity,
                RawArrived(
                    path=str(candidate.path), snap=candidate.key.snap, exposure=candidate.key.exposure
                ),
            )

    def _phase(self, d: DetectorVisit, message: PhaseEvent) -> None:
        self._event(d, message.name, message.time, **message.detail)
        what = str(d.key)
        if message.name == "main_start":
            self._change(d, State.RUNNING)
        elif message.name == "raw_refused":
            self.counters.error("raws_refused", what, str(message.detail.get("reason", "")))
        elif message.name == "exposure_dropped":
            self.counters.error("exposures_dropped", what, str(message.detail.get("reason", "")))
        elif message.name == "preprocess_end" and not message.detail.get("success", True):
            self.counters.error("preprocess_failed", what, str(message.detail.get("reason", "")))

    def _check_time(self, d: DetectorVisit, now: float) -> None:
        if d.raws_until is not None and now > d.raws_until and not d.told_no_more and d.state is State.READY:
            d.told_no_more = True
            if d.identity is not None:
                self._send(d.identity, NoMoreRaws(reason="the time-out for raws has passed"))
        if d.terminated_at is not None:
            if now > d.terminated_at + _KILL_AFTER_SECONDS and d.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(d.pid, signal.SIGKILL)
        elif now > d.forked_at + self.settings.worker_timeout:
            self._terminate(d, f"it took longer than {self.settings.worker_timeout:.0f} s", signal.SIGTERM)
        elif now > d.heard_at + self.settings.heartbeat_timeout:
            self._terminate(d, "its child was not heard of for too long", signal.SIGKILL)

    def _terminate(self, d: DetectorVisit, reason: str, signum: signal.Signals) -> None:
        d.terminated_at = d.terminated_at or time.monotonic()
        d.termination = d.termination or reason
        if d.pid is not None:
            _LOG.error("Detector-visit %s: %s; its child gets %s.", d.key, reason, signum.name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(d.pid, signum)

    def _check_end(self, d: DetectorVisit, now: float) -> None:
        if d.exited_at is None or (d.done is None and now < d.exited_at + _LAST_WORD_SECONDS):
            return
        self.permits.give_back(d.key)
        self._clean(d)
        done = d.done
        if done is None:
            done = ChildDone(
                key=d.key,
                success=False,
                reason=f"its child ended by {_ending(d.exit_code)} while {d.phase or 'starting'}",
                failure="retriable",
            )
        if d.termination:
            done = done.model_copy(update={"reason": f"{d.termination}; {done.reason}"})
        if done.success:
            self._finish(d, done)
        elif done.failure == "retriable" and self._may_retry(d):
            self.counters.error("retries", str(d.key), done.reason)
            _LOG.warning("Detector-visit %s is tried again: %s", d.key, done.reason)
            self._event(d, "retried", reason=done.reason)
            d.next_attempt(delay=0.5)
            self.journal.state(
                d.instrument, d.group, d.detector, "waiting", attempt=d.attempt, reason=done.reason
            )
        elif done.entry:
            # A final failure's outputs are exported, and it stays a failure.
            d.lost_cause = done.reason
            self.counters.error("failed", str(d.key), done.reason)
            self._event(d, "failed", reason=done.reason, failure=done.failure)
            self._release(d)
            self._change(d, State.HANDED_OVER, reason=done.reason, pipeline=done.pipeline)
        else:
            self._fail(d, done.reason, done)

    def _may_retry(self, d: DetectorVisit) -> bool:
        return d.attempt <= self.settings.retries and time.time() < d.expires and not d.termination

    def _finish(self, d: DetectorVisit, done: ChildDone) -> None:
        self.counters.add("succeeded")
        self._release(d)
        state = State.HANDED_OVER if done.entry else State.EXPORTED
        self._change(d, state, pipeline=done.pipeline)
        if not done.entry:
            self._event(d, "exported", datasets=0)

    def _fail(self, d: DetectorVisit, reason: str, done: ChildDone | None = None) -> None:
        if d.state is State.FAILED:
            return
        self.counters.error("failed", str(d.key), reason)
        _LOG.error("Detector-visit %s failed: %s", d.key, reason)
        self._event(d, "failed", reason=reason, failure=done.failure if done else "retriable")
        self._release(d)
        self._change(d, State.FAILED, reason=reason, pipeline=done.pipeline if done else None)

    def _release(self, d: DetectorVisit) -> None:
        self.central.request(Released(d.holder))
        self.raws.forget(d.group, d.detector)

    def _clean(self, d: DetectorVisit) -> None:
        """Remove what a child that could not do so itself has left."""
        import shutil

        shutil.rmtree(self._local_repo(d), ignore_errors=True)
        entry = f"{d.instrument}-{d.group}-{d.detector}-{d.attempt}".replace(":", "").replace("/", "_")
        shutil.rmtree(Path(self.settings.spool_dir) / "building" / entry, ignore_errors=True)

    def _change(
        self, d: DetectorVisit, state: State, reason: str | None = None, pipeline: str | None = None
    ) -> None:
        d.state = state
        d.reason = reason or ""
        self.journal.state(
            d.instrument,
            d.group,
            d.detector,
            state.value,
            attempt=d.attempt,
            reason=reason,
            pipeline=pipeline,
        )

    def _event(self, d: DetectorVisit, name: str, when: float | None = None, /, **detail: Any) -> None:
        self.journal.event(d.instrument, d.group, d.detector, name, {"attempt": d.attempt, **detail}, when)


def _ending(code: int | None) -> str:
    if code is None:
        return "an unknown cause"
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
