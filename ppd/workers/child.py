"""One child: the life of one detector-visit after the fork."""

from __future__ import annotations

__all__ = ["run_child"]

import dataclasses
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base import Pipeline

from ..config import Settings
from ..crash_points import about, here
from ..errors import RetriableError, with_cause
from ..instruments.description import InstrumentDescription
from ..logs import bind, setup_logging
from ..messages import (
    CancelWork,
    ChildDone,
    ChildReady,
    Job,
    NoMoreRaws,
    PermitGrant,
    PermitRequest,
    PermitReturn,
    PhaseEvent,
    RawArrived,
)
from ..visit import BareVisit
from .apdb_guard import ApdbGuard
from .containment import Terminated, leave_folder, settle_process, uninterrupted
from .execute import Candidate, NoPipelineError, PipelineFailedError, Ran, prepare, run_first_possible
from .failures import KilledError, MismatchError, NoRawError, judge
from .graphs import Scope
from .handover import HandOver, find_outputs, hand_over
from .ingesting import choose_ingest
from .inherited import Inherited
from .link import ChildLink, LinkClosedError
from .local_repo import clone_repo, remove_repo
from .phases import CutShort, may_be_cut_short
from .preload import put_preload_products
from .raws import RawTaker
from .remains import open_remains

_LOG = logging.getLogger(__name__)

_SPOOL_RETRY_SECONDS = 1.0


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
    try:
        setup_logging(settings, settle_process(job))
        key = job.key
        bind(group=key.group, detector=key.detector, attempt=key.attempt, instrument=key.instrument)
        bind(deployment=job.deployment, trace_id=job.traceparent.split("-")[1] if job.traceparent else None)
        about(f"{job.key.group}/{job.key.detector}")
        life = _Life(job, settings, pipelines, description, inherited)
        here("child.settled")
    except Terminated:
        # As if it had come before there was a handler: nothing has begun.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    done = ChildDone(
        key=job.key, success=False, reason="it ended before it could say why", failure="retriable"
    )
    code = 1
    try:
        done = life.look_back() or life.live(forked)
        code = 0 if done.success else 1
    except LinkClosedError as e:
        _LOG.error("The supervisor is gone: %s", e)
        code = 3
    except Terminated:
        # Whatever was running is over; SIGKILL would follow a second delay.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        done = life.end_early()
    except BaseException as e:
        done = life.fail(e)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Killed between the two, its repo would be missed by those who look what it did.
        here("child.last-word-not-said")
        life.finish(done)
        here("child.last-word-said")
        remove_repo(Path(job.local_repo))
        here("child.repo-removed")
        leave_folder(job)
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
        self.runs = tuple(job.runs.values())
        """Where outputs are."""
        self.raw_run = f"{job.key.instrument}/raw/all"
        self.guard = ApdbGuard(settings.apdb_config, settings.apdb_patience)
        self.visits: tuple[int, ...] = ()
        self.main_started = False
        self.pipeline: str | None = None
        self.ran: Ran | None = None
        """The main pipeline, once it has come to its end."""

    def look_back(self) -> ChildDone | None:
        """Look what a killed attempt left; the last word is said if nothing may follow it.

        Its repo is removed by the supervisor, unless an attempt follows here.
        """
        left = self.job.predecessor
        if left is None:
            return None
        self.link.enter("looking_back")
        # However this look ends, it is judged as what is looked into: its main pipeline had begun.
        self.main_started = True
        folder = Path(left.local_repo)
        opened = False
        try:
            remains = open_remains(folder, self.key)
            self.butler, self.visits, opened = remains.butler, remains.visits, True
            self.runs = remains.runs
        except Exception:
            # An attempt that follows asks the APDB itself, once it knows its visits.
            _LOG.exception("What the last attempt left in %s can't be opened.", folder)
        if opened and not self.visits:
            # No visit was defined: it had not come to its main pipeline.
            self.main_started = False
        begun = opened and self.main_started
        if left.last or (begun and self.guard.stored(self.visits, self.key.detector).may_be):
            return self.fail(KilledError(left.reason))
        self.butler, self.visits, self.main_started = None, (), False
        self.runs = tuple(self.job.runs.values())
        here("child.looked-back")
        remove_repo(folder)
        return None

    def live(self, forked: float) -> ChildDone:
        """Do all that a detector-visit takes."""
        self._start(forked)
        return self._process()

    def _start(self, forked: float) -> None:
        """Open the clone and put what pre-processing needs into it."""
        self.butler = clone_repo(Path(self.job.local_repo), self.job.cache, self.inherited.template)
        here("child.repo-cloned")
        opened = time.time() - forked
        put_preload_products(self.butler, self.visit, self.job, self.settings, self.description)
        here("child.preload-put")
        self.link.send(ChildReady(key=self.key, pid=os.getpid(), seconds=time.time() - forked, opened=opened))
        here("child.ready-said")

    def _process(self) -> ChildDone:
        """Run pre-processing, wait for raws, run the main pipeline, hand over."""
        assert self.butler is not None
        self._preprocess()
        # All that can be done before the raws are there is done while nobody waits for it.
        self.link.send(PermitReturn(key=self.key))
        self.link.enter("waiting_raws")
        self.butler.collections.register(self.raw_run)
        main = self._candidates(self.job.main)
        self.guard.open()
        raws = RawTaker(
            self.butler, self.job, self.visit, self.settings, self.description, self.raw_run, self._event
        )
        self._take_raws(raws)
        if not raws.exposures:
            reasons = "; ".join(r.reason for r in raws.refusals) or "none was seen"
            error = RetriableError if raws.not_fetched else NoRawError
            raise error(f"no usable raw came ({reasons})")
        ingest = choose_ingest(self.settings.ingest, self.description)
        self.visits = ingest.define_visits(
            self.butler, list(raws.exposures.values()), self.job.cache.collections
        )
        here("child.visits-defined")
        self.guard.check(self.visits, self.key)
        here("child.apdb-asked")
        self._permit("main")
        self.link.enter("main")
        self._event("main_start")
        here("child.main-begun")
        scope = dataclasses.replace(self._scope, exposures=tuple(raws.exposures), visits=self.visits)
        try:
            ran = self._run(main, scope, self._main_begins)
        except NoPipelineError as e:
            if raws.mismatches:
                raise MismatchError(f"{'; '.join(raws.mismatches)}; no main pipeline can run: {e}") from e
            raise RetriableError(f"no main pipeline can run: {e}") from e
        here("child.pipeline-ended")
        self.ran = ran
        self.pipeline = ran.path
        self._event("pipeline_end", pipeline=ran.path, success=True, reason=ran.remarks[:500])
        return self._deliver(ran)

    def _deliver(self, ran: Ran) -> ChildDone:
        done = self._hand_over(success=True)
        return done.model_copy(update={"reason": ran.remarks[:2000]})

    def end_early(self) -> ChildDone:
        """End because of SIGTERM; what a pipeline has done to its end is handed over all the same."""
        self.guard.patience = 0.0
        if self.ran is not None:
            try:
                return self._deliver(self.ran)
            except Exception as e:
                return self.fail(e)
        return self.fail(RetriableError("ended by SIGTERM"))

    def fail(self, error: BaseException) -> ChildDone:
        """Class a failure and hand over what there is if it is final."""
        if isinstance(error, PipelineFailedError):
            self.pipeline = error.pipeline
        verdict = judge(error, self.main_started, self.guard, self.visits, self.key.detector)
        _LOG.error("Failed (%s): %s", verdict.failure, verdict.reason, exc_info=error)
        if self.main_started:
            self._event("pipeline_end", pipeline=self.pipeline, success=False, reason=verdict.reason[:500])
        done = ChildDone(
            key=self.key,
            success=False,
            reason=verdict.reason[:2000],
            failure=verdict.failure,
            pipeline=self.pipeline,
            retry=verdict.retry,
        )
        if verdict.failure != "final" or self.butler is None or not self.main_started:
            # A refused attempt has no part in what the APDB has: its preload
            # products would only collide with those of the one that has.
            return done
        try:
            handed = self._hand_over(success=False, reason=verdict.reason[:2000])
        except Exception as e:
            _LOG.exception("The partial outputs of this failure are lost.")
            return done.model_copy(update={"reason": f"{done.reason}; outputs lost: {e}"})
        return done.model_copy(update={"entry": handed.entry, "datasets": handed.datasets})

    def finish(self, done: ChildDone) -> None:
        """Say how it ended and close the line."""
        self.link.send(done)
        self.link.close()

    @property
    def _scope(self) -> Scope:
        key = self.key
        return Scope(key.instrument, key.group, key.detector, self.settings.skymap)

    def _preprocess(self) -> None:
        if not self.job.preprocessing:
            return
        self._permit("preprocess")
        self.link.enter("preprocess")
        self._event("preprocess_start")
        here("child.preprocess-begun")
        success, reason = True, ""
        try:
            with may_be_cut_short():
                self._run(self._candidates(self.job.preprocessing), self._scope, lambda path, task: None)
        except (Exception, CutShort) as e:
            # The main pipeline goes on without: that is better than nothing.
            known = isinstance(e, NoPipelineError | PipelineFailedError | CutShort)
            success, reason = False, str(e) if known else with_cause(e)
            _LOG.error("Pre-processing failed; the main pipeline goes on without it: %s", e)
        here("child.preprocess-ended")
        self._event("preprocess_end", success=success, reason=reason[:1500])

    def _candidates(self, order: tuple[str, ...]) -> list[Candidate]:
        assert self.butler is not None
        job = self.job
        done_runs = [job.runs[p] for p in job.preprocessing] if order is job.main else []
        inputs = [*done_runs, job.runs["NoPipeline"], *([self.raw_run] if order is job.main else [])]
        inputs = list(dict.fromkeys([*inputs, *job.cache.collections]))
        return prepare(self.butler, self.pipelines, order, job.runs, inputs)

    def _main_begins(self, path: str, task: str) -> None:
        self.main_started = True
        self._event("first_task", pipeline=path, task=task)
        here("child.first-task")

    def _run(self, candidates: list[Candidate], scope: Scope, started: Callable[[str, str], None]) -> Ran:
        key = self.key
        provenance = {"instrument": key.instrument, "group": key.group, "detector": key.detector}
        memory = self.settings.child_memory
        return run_first_possible(candidates, scope, provenance, started, self.inherited, memory)

    def _take_raws(self, raws: RawTaker) -> None:
        """Take raws until all expected are here or the supervisor says enough."""
        deadline = time.monotonic() + self.settings.worker_timeout
        while time.monotonic() < deadline:
            if self.visit.nimages and len(raws.exposures) >= self.visit.nimages:
                return
            message = self._receive(1.0)
            if isinstance(message, NoMoreRaws):
                _LOG.warning("No more raws: %s; going on with %d.", message.reason, len(raws.exposures))
                return
            if isinstance(message, RawArrived):
                here("child.raw-received")
                raws.take(message)
                if self.visit.nimages and not raws.exposures and raws.not_fetched >= self.visit.nimages:
                    # What has been replaced is announced anew by the next look at the
                    # bucket; for all else, another attempt is better than more waiting.
                    deadline = min(deadline, time.monotonic() + self.settings.raw_poll_max + 1.0)
        if not raws.not_fetched:
            raise RetriableError("waited for raws longer than a visit may last")

    def _hand_over(self, *, success: bool, reason: str = "") -> ChildDone:
        assert self.butler is not None
        self.link.enter("handing_over")
        # From here on it waits for the disk more than it works.
        self.link.send(PermitReturn(key=self.key))
        refs = find_outputs(self.butler, self.runs, self.settings.export_types)
        here("child.outputs-found")
        done = ChildDone(key=self.key, success=success, pipeline=self.pipeline)
        if refs:
            begin = time.time()
            handed = self._put_in_spool(refs, success, reason)
            self._event(
                "handed_over", datasets=handed.datasets, bytes=handed.size, seconds=time.time() - begin
            )
            here("child.hand-over-said")
            done = done.model_copy(update={"entry": handed.entry, "datasets": handed.datasets})
        return done

    def _put_in_spool(self, refs: list[DatasetRef], success: bool, reason: str) -> HandOver:
        """Hand over; where the disk is full, wait for room: the outputs are safe where they are."""
        assert self.butler is not None
        deadline = time.monotonic() + self.settings.spool_wait
        waiting = False
        while True:
            try:
                with uninterrupted():
                    return hand_over(
                        self.butler, refs, Path(self.job.spool), self.key, success=success, reason=reason
                    )
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.EDQUOT) or time.monotonic() > deadline:
                    raise
                if not waiting:
                    waiting = True
                    reason = f"there is no room for {len(refs)} outputs in {self.job.spool}: {e.strerror}"
                    _LOG.error("%s; they wait in the local repo.", reason)
                    self.link.enter("spool_full")
                    self._event("spool_full", reason=reason)
                # What is handed over now is not given up for anything.
                self.link.receive(_SPOOL_RETRY_SECONDS)

    def _permit(self, work: Any) -> None:
        """Wait until the scheduler lets this child use a processor."""
        self.link.enter(f"queued_{work}")
        self.link.send(PermitRequest(key=self.key, work=work))
        # In an overload it may take until the message expires; the supervisor says when it is enough.
        patience = max(self.settings.worker_timeout, self.job.expires - time.time())
        deadline = time.monotonic() + patience
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
