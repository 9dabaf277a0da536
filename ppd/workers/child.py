"""One child: the life of one detector-visit after the fork."""

from __future__ import annotations

__all__ = ["run_child"]

import ctypes
import errno
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base import Pipeline

from ..config import Settings
from ..errors import FinalError, IgnorableVisitError, RetriableError
from ..instruments.description import InstrumentDescription
from ..logs import bind, setup_logging
from ..messages import (
    CancelWork,
    ChildDone,
    ChildReady,
    FailureClass,
    Job,
    NoMoreRaws,
    PermitGrant,
    PermitRequest,
    PermitReturn,
    PhaseEvent,
    RawArrived,
)
from ..visit import BareVisit
from .apdb_guard import apdb_has
from .execute import NoPipelineError, PipelineFailedError, run_first_possible
from .handover import HandOver, find_outputs, hand_over
from .ingesting import choose_ingest
from .inherited import Inherited
from .link import ChildLink, LinkClosedError
from .local_repo import clone_repo, remove_repo
from .preload import put_preload_products
from .raws import RawTaker

_LOG = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_SPOOL_RETRY_SECONDS = 1.0


class _NoRawError(RetriableError):
    """Raised when the time for raws is over and there is none to process."""


class _MismatchError(RetriableError):
    """Raised when the inputs for what the header says are not there; another try gets the same."""


class _Terminated(BaseException):
    """Raised in the child's main thread by SIGTERM."""


def run_child(
    job: Job,
    settings: Settings,
    pipelines: Mapping[str, Pipeline],
    description: InstrumentDescription,
    inherited: Inherited,
    forked: float,
) -> int:
    """Process one detector-visit from the first to the last step.

    Called right after the fork, with no thread, socket or database open.

    Parameters
    ----------
    job : `ppd.messages.Job`
        The detector-visit.
    settings : `ppd.config.Settings`
        The configuration.
    pipelines : `~collections.abc.Mapping` [ `str`, `lsst.pipe.base.Pipeline` ]
        Pipelines by path, built before the fork.
    description : `ppd.instruments.description.InstrumentDescription`
        The instrument.
    inherited : `ppd.workers.inherited.Inherited`
        What the nursery has read.
    forked : `float`
        When the fork began, Unix seconds.

    Returns
    -------
    code : `int`
        Exit code: 0 success, 1 failure that was reported, 3 the supervisor
        is gone.
    """
    _settle_process(Path(job.log_file))
    setup_logging(settings)
    bind(group=job.key.group, detector=job.key.detector, instrument=job.key.instrument)
    life = _Life(job, settings, pipelines, description, inherited)
    done = ChildDone(key=job.key, success=False, reason="the child did not start", failure="retriable")
    code = 1
    try:
        life.start(forked)
        done = life.process()
        code = 0 if done.success else 1
    except LinkClosedError as e:
        _LOG.error("The supervisor is gone: %s", e)
        code = 3
    except _Terminated:
        # Whatever was running is over; SIGKILL would follow a second delay.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        done = life.fail("ended by SIGTERM", None)
    except Exception as e:
        done = life.fail(f"{type(e).__name__}: {e}", e)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        remove_repo(Path(job.local_repo))
        life.finish(done)
    return code


class _Life:
    """State of the one detector-visit that this process exists for."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        pipelines: Mapping[str, Pipeline],
        description: InstrumentDescription,
        inherited: Inherited,
    ):
        self.job = job
        self.key = job.key
        self.settings = settings
        self.pipelines = pipelines
        self.description = description
        self.inherited = inherited
        self.visit = BareVisit.model_validate(job.visit)
        self.link = ChildLink(job.endpoint, job.key, settings.heartbeat_interval)
        self.butler: Butler | None = None
        self.raw_run = f"{job.key.instrument}/raw/all"
        self.visit_ids: tuple[int, ...] = ()
        self.main_started = False
        self.pipeline: str | None = None

    def start(self, forked: float) -> None:
        """Open the clone and put what pre-processing needs into it."""
        self.butler = clone_repo(Path(self.job.local_repo), self.job.cache, self.inherited.template)
        opened = time.time() - forked
        put_preload_products(self.butler, self.visit, self.job, self.settings, self.description)
        self.link.send(ChildReady(key=self.key, pid=os.getpid(), seconds=time.time() - forked, opened=opened))

    def process(self) -> ChildDone:
        """Run pre-processing, wait for raws, run the main pipeline, hand over."""
        assert self.butler is not None
        self._preprocess()
        raws = RawTaker(
            self.butler, self.job, self.visit, self.settings, self.description, self.raw_run, self._event
        )
        self._take_raws(raws)
        if not raws.exposures:
            reasons = "; ".join(r.reason for r in raws.refusals) or "none was seen"
            error = RetriableError if raws.may_come_right else _NoRawError
            raise error(f"no usable raw came ({reasons})")
        ingest = choose_ingest(self.settings.ingest, self.description)
        self.visit_ids = ingest.define_visits(
            self.butler, list(raws.exposures.values()), self.job.cache.collections
        )
        if self.key.attempt > 1:
            stored = apdb_has(self.settings.apdb_config, self.visit_ids, self.key.detector)
            if stored:
                raise FinalError("an earlier attempt has stored its sources in the APDB")
        self._permit("main")
        self.link.enter("main")
        self._event("main_start")
        where = (
            f"instrument='{self.key.instrument}' AND detector={self.key.detector} "
            f"AND group='{self.key.group}' "
            f"AND exposure IN ({', '.join(str(e) for e in sorted(raws.exposures))})"
        )
        try:
            self.pipeline = self._run(self.job.main, where)
        except NoPipelineError as e:
            if raws.mismatches:
                raise _MismatchError(f"{'; '.join(raws.mismatches)}; no main pipeline can run: {e}") from e
            raise RetriableError(f"no main pipeline can run: {e}") from e
        self._event("pipeline_end", pipeline=self.pipeline, success=True)
        return self._hand_over(success=True)

    def fail(self, reason: str, error: Exception | None) -> ChildDone:
        """Class a failure and hand over what there is if it is final."""
        if isinstance(error, PipelineFailedError):
            self.pipeline = error.pipeline
        failure = self._class_of(error)
        _LOG.error("Failed (%s): %s", failure, reason, exc_info=error if error else None)
        if self.main_started:
            self._event("pipeline_end", pipeline=self.pipeline, success=False)
        done = ChildDone(
            key=self.key,
            success=False,
            reason=reason[:2000],
            failure=failure,
            pipeline=self.pipeline,
            # The supervisor would only feed the next attempt the same raws.
            retry=not isinstance(error, _NoRawError | _MismatchError),
        )
        if failure != "final" or self.butler is None:
            return done
        try:
            handed = self._hand_over(success=False)
        except Exception as e:
            _LOG.exception("The partial outputs of this failure are lost.")
            return done.model_copy(update={"reason": f"{done.reason}; outputs lost: {e}"})
        return done.model_copy(update={"entry": handed.entry, "datasets": handed.datasets})

    def finish(self, done: ChildDone) -> None:
        """Say how it ended and close the line."""
        self.link.send(done)
        self.link.close()

    def _class_of(self, error: Exception | None) -> FailureClass:
        """Class a failure from what is known to have changed (invariant 7)."""
        if isinstance(error, IgnorableVisitError):
            return "ignorable"
        if isinstance(error, FinalError):
            return "final"
        if not self.main_started:
            return "retriable"
        return (
            "final" if apdb_has(self.settings.apdb_config, self.visit_ids, self.key.detector) else "retriable"
        )

    def _preprocess(self) -> None:
        if not self.job.preprocessing:
            return
        self._permit("preprocess")
        self.link.enter("preprocess")
        self._event("preprocess_start")
        where = (
            f"instrument='{self.key.instrument}' AND detector={self.key.detector} "
            f"AND group='{self.key.group}'"
        )
        success, reason = True, ""
        try:
            self._run(self.job.preprocessing, where, main=False)
        except (NoPipelineError, PipelineFailedError) as e:
            # The main pipeline goes on without: that is better than nothing.
            success, reason = False, str(e)
            _LOG.error("Pre-processing failed; the main pipeline goes on without it: %s", e)
        self._event("preprocess_end", success=success, reason=reason[:500])

    def _run(self, order: tuple[str, ...], where: str, main: bool = True) -> str:
        assert self.butler is not None
        if self.settings.skymap:
            where += f" AND skymap='{self.settings.skymap}'"
        done_runs = [self.job.runs[p] for p in self.job.preprocessing] if main else []
        inputs = list(dict.fromkeys([*done_runs, self.job.runs["NoPipeline"], self.raw_run]))

        def started(path: str, task: str) -> None:
            if main:
                self.main_started = True
                self._event("first_task", pipeline=path, task=task)

        return run_first_possible(
            self.butler,
            self.pipelines,
            order,
            self.job.runs,
            [*inputs, *self.job.cache.collections],
            where,
            {"instrument": self.key.instrument, "group": self.key.group, "detector": self.key.detector},
            started,
            self.inherited,
        )

    def _take_raws(self, raws: RawTaker) -> None:
        """Take raws until all expected are here or the supervisor says enough."""
        self.link.enter("waiting_raws")
        self.link.send(PermitReturn(key=self.key))
        deadline = time.monotonic() + self.settings.worker_timeout
        while time.monotonic() < deadline:
            if self.visit.nimages and len(raws.exposures) >= self.visit.nimages:
                return
            message = self._receive(1.0)
            if isinstance(message, NoMoreRaws):
                _LOG.warning("No more raws: %s; going on with %d.", message.reason, len(raws.exposures))
                return
            if isinstance(message, RawArrived):
                raws.take(message)
        raise RetriableError("waited for raws longer than a visit may last")

    def _hand_over(self, *, success: bool) -> ChildDone:
        assert self.butler is not None
        self.link.enter("handing_over")
        runs = self.job.runs.values()
        refs = find_outputs(self.butler, runs, self.settings.export_types)
        done = ChildDone(key=self.key, success=success, pipeline=self.pipeline)
        if refs:
            begin = time.time()
            handed = self._put_in_spool(refs, success)
            self._event(
                "handed_over", datasets=handed.datasets, bytes=handed.size, seconds=time.time() - begin
            )
            done = done.model_copy(update={"entry": handed.entry, "datasets": handed.datasets})
        return done

    def _put_in_spool(self, refs: list[DatasetRef], success: bool) -> HandOver:
        """Hand over; where the disk is full, wait for room: the outputs are safe where they are."""
        assert self.butler is not None
        deadline = time.monotonic() + self.settings.spool_wait
        waiting = False
        while True:
            try:
                return hand_over(self.butler, refs, Path(self.job.spool), self.key, success=success)
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.EDQUOT) or time.monotonic() > deadline:
                    raise
                if not waiting:
                    waiting = True
                    reason = f"there is no room for {len(refs)} outputs in {self.job.spool}: {e.strerror}"
                    _LOG.error("%s; they wait in the local repo.", reason)
                    self.link.enter("spool_full")
                    self._event("spool_full", reason=reason)
                    self.link.send(PermitReturn(key=self.key))
                self._receive(_SPOOL_RETRY_SECONDS)

    def _permit(self, work: Any) -> None:
        """Wait until the scheduler lets this child use a processor."""
        self.link.enter(f"queued_{work}")
        self.link.send(PermitRequest(key=self.key, work=work))
        deadline = time.monotonic() + self.settings.worker_timeout
        held = []
        while time.monotonic() < deadline:
            message = self._receive(1.0)
            if isinstance(message, PermitGrant):
                break
            if message is not None:
                held.append(message)
        else:
            raise LinkClosedError("no permit was granted")
        for message in held:
            self.link.requeue(message)

    def _receive(self, timeout: float) -> Any:
        message = self.link.receive(timeout)
        if isinstance(message, CancelWork):
            raise RetriableError(f"cancelled: {message.reason}")
        return message

    def _event(self, name: Any, **detail: Any) -> None:
        self.link.send(PhaseEvent(key=self.key, name=name, time=time.time(), detail=detail))


def _settle_process(log_file: Path) -> None:
    """Make a process of its own of what the fork left."""
    # If the nursery dies, nobody would reap or feed this child.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    faulthandler.enable()

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
