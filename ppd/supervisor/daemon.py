"""The supervisor: set-up, event loop and end.

Signals set flags, and nothing that arrives may end the loop: what can't be
understood is answered or logged, and counted.
"""

from __future__ import annotations

__all__ = ["Supervisor", "run"]

import contextlib
import dataclasses
import functools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Set
from typing import Any

import zmq

from ..config import Settings
from ..crash_points import here
from ..deployment import day_obs, deployment_id
from ..errors import ConfigurationError, NotInitializedError
from ..initializer import check_initialized
from ..instruments.description import find_description
from ..logs import setup_logging
from ..messages import ControlReply, NurseryReady
from ..sources.visits import Judgement, VisitSource
from .admission import admit
from .callers import Caller, find_groups
from .central import CentralReader
from .child_logs import prune_logs
from .containment import Containment
from .counters import Counters
from .deployments import Deployment
from .exporter_keeper import ExporterKeeper
from .exports import Exports
from .hearing import hear_children, hear_inbox, hear_nursery, hear_requests
from .hidden import tell_exposed
from .inbox import Inbox
from .init_process import initialize_now
from .journal import Journal
from .ledger import Ledger
from .lifecycle import Lifecycle
from .lock import StateLock
from .measures import Measures
from .notify import ServiceNotifier
from .nurseries import Nurseries
from .pauses import Pauses
from .processes import age_of_this_process
from .questions import Questions
from .raw_sources import RawSources, make_sources
from .readiness import why_not_hearing
from .recovery import take_up
from .reloading import Reloader
from .retention import Retention
from .rollover import Rollover
from .setting_kinds import SettingsInForce, in_force
from .signals import Signals
from .sockets import Sockets
from .spool import clear_building, has_ready, make_folders
from .spool_watch import SpoolWatch
from .stalls import LoopWatch
from .surroundings import allow_files, prepare_folders
from .table import VisitEntry
from .traces import start_traces
from .visit_sources import VisitSources, make_visit_sources
from .web_keeper import WebKeeper
from .winding_up import seconds_for, wind_up

_LOG = logging.getLogger(__name__)

_TICK_MS = 100
# How long after our process was begun, when that of a killed supervisor had ended, its children
# may still hand over what they have.
_LAST_GRACE = 2.0
_LOG_CHECK_SECONDS = 3600.0


class Supervisor:
    """The daemon's one loop and all that it owns.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.

    Raises
    ------
    ppd.errors.PpdError
        Raised if something that it can't do without is missing.
    """

    def __init__(self, settings: Settings):
        allow_files()
        self._in_force = SettingsInForce(settings)
        # Read as it is when it is read, by all that get it from here.
        self.settings = in_force(self._in_force)
        self.started = time.time()
        self.counters = Counters()
        self.watch = LoopWatch(self._stalled)
        self.notifier = ServiceNotifier(os.environ)
        self.draining = False
        self.stopping = False
        self.fatal: ConfigurationError | None = None
        self.signals = Signals()
        self._at_once = False
        self.answers: list[tuple[Caller, ControlReply]] = []
        self.judgements: list[tuple[VisitSource, tuple[Judgement, ...]]] = []
        self.questions = Questions()
        self._logs_checked = -math.inf
        self._undo = contextlib.ExitStack()
        try:
            self.groups = find_groups(settings)
            prepare_folders(settings)
            self._set_up()
        except BaseException:
            self._undo.close()
            raise

    def _set_up(self) -> None:
        settings = self.settings
        lock = StateLock(settings.state_dir)
        self._undo.callback(lock.close)
        self.deployment = Deployment(deployment_id(settings), self._in_force.now)
        self.reloader = Reloader(self)
        self._undo.callback(self.reloader.stop)
        description = find_description(settings.instrument, settings.instrument_description)
        self.focal_plane = description.focal_plane
        # Before the nursery: it is in our control group then, wherever that is.
        self.containment = Containment(settings, self.counters, self._own_pids)
        self._undo.callback(lambda: self.containment.close(self.patience(5.0)))
        # The nursery's imports take seconds; they go on while we set up.
        tell_exposed(settings)
        self.nursery = Nurseries(self.deployment.settings)
        self._undo.callback(lambda: self.nursery.stop(self.patience(8.0)))
        make_folders(settings.spool_dir)
        self.journal = Journal(settings.state_dir / "journal.sqlite3")
        self._undo.callback(self.journal.close)
        self.pauses = Pauses(settings.state_dir / "paused.json")
        self.retention = Retention(self.journal, settings)
        self.inbox = Inbox()
        # What waits for a database that does not answer may be broken off.
        with self.signals.raising():
            self.central = CentralReader(settings, description, self.inbox)
        self._undo.callback(self.central.stop, 10.0, lambda: self.hurried)
        with self.signals.raising():
            self._check_initialized(day_obs(time.time()))
        self.exporter = ExporterKeeper(settings)
        self._undo.callback(lambda: self.exporter.stop(self.patience(10.0)))
        self.spool_watch = SpoolWatch(settings, self.counters, self.exporter)
        self.rollover = Rollover(settings, self.central.request)
        self._undo.callback(self.rollover.stop)
        self.sockets = Sockets(settings.socket_dir, self.groups)
        self._undo.callback(self.sockets.close)
        self.web = WebKeeper(settings, self.focal_plane)
        self._undo.callback(lambda: self.web.stop(self.patience(2.0)))
        names = {d.name: d.id for d in description.focal_plane.detectors}
        self.sources = RawSources(make_sources(settings, names, self.inbox.put), names)
        self.visit_sources = VisitSources(make_visit_sources(settings, self.inbox.put))
        traces = start_traces(settings)
        self._undo.callback(traces.stop)
        self.measures = Measures(settings, traces)
        self.measures.know_detectors(self.central.detectors)
        ledger = Ledger(self.journal, self.counters, self.measures)
        self.lifecycle = Lifecycle(
            settings,
            self.sockets.child_endpoint,
            ledger,
            self.central,
            self.nursery.fork,
            self.sockets.send_child,
            self.containment,
            self.sources,
            lambda: self.spool_watch.has_room,
        )
        self.exports = Exports(self.exporter, self.lifecycle.outputs, ledger, settings.spool_dir)

    def _own_pids(self) -> set[int]:
        """All that we have started in sessions of their own."""
        ours = (getattr(self, name, None) for name in ("nursery", "web"))
        return {pid for keeper in ours if keeper is not None for pid in keeper.pids}

    def task_pids(self) -> set[int]:
        """Process IDs of all that runs tasks, or will."""
        children = {d.pid for d in self.lifecycle.table.live() if d.pid is not None}
        return children | set(self.nursery.pids)

    def _check_initialized(self, day: int) -> None:
        """See that init-outputs are there, or make them where that is configured."""
        settings, deployment = self._in_force.now, self.deployment
        try:
            # The primary knows first what ppd-init wrote.
            self.central.on_primary(lambda butler: check_initialized(butler, settings, day, deployment.id))
        except NotInitializedError:
            if not settings.initialize_automatically:
                raise
            initialize_now(deployment, day)

    def begin_work(self, ready: NurseryReady) -> None:
        """Go on with what was accepted meanwhile: there are children from now on."""
        self.deployment = dataclasses.replace(self.deployment, pipelines=ready.pipelines)
        self.central.start(self.deployment)
        _LOG.info("Ready: deployment %s, %d detectors.", self.deployment.id, len(self.central.detectors))

    def run(self) -> int:
        """Work until told to stop.

        Returns
        -------
        code : `int`
            See `ppd.cli.daemon`.
        """
        wake_read, wake_write = os.pipe()
        self._undo.callback(os.close, wake_read)
        self._undo.callback(os.close, wake_write)
        for descriptor in (wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, -1)
        try:
            # Our own imports have taken most of this time.
            self.containment.end_left_behind(max(0.0, _LAST_GRACE - age_of_this_process()))
            clear_building(self.settings.spool_dir)
            take_up(self.settings, self.journal, self.lifecycle, self.admit)
            self._undo.callback(self.sources.stop)
            self.sources.start()
            self._undo.callback(lambda: self.visit_sources.stop(self.patience(2.0)))
            self.visit_sources.start()
            self._undo.enter_context(self.watch)
            seconds = time.time() - self.started
            _LOG.info("Visits are accepted %.1f s after the start; the nursery is being built.", seconds)
            here("supervisor.ready")
            self._loop(wake_read, lambda: self.stopping or self.fatal is not None)
            if self.fatal is not None:
                raise self.fatal
            return wind_up(self, lambda enough, seconds: self._loop(wake_read, enough, seconds))
        finally:
            self.notifier.close()
            self._undo.close()

    def _loop(self, wake: int, enough: Callable[[], bool], seconds: float | None = None) -> None:
        """Serve until it is enough, and no longer than some seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not enough() and (deadline is None or time.monotonic() < deadline):
            poller = zmq.Poller()
            own = (self.exporter, self.web, self.inbox)
            pipes = (*self.nursery.filenos(), *(one.fileno() for one in own), wake)
            for source in (*self.sockets.all(), *pipes):
                if source != -1:  # there is none now
                    poller.register(source, zmq.POLLIN)
            ready = dict(poller.poll(_TICK_MS))
            self.watch.begin()
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            for step in (
                functools.partial(hear_children, self),
                functools.partial(hear_nursery, self),
                self.exports.turn,
                functools.partial(hear_inbox, self),
                functools.partial(hear_requests, self),
                self.lifecycle.turn,
                self.spool_watch.look,
                functools.partial(self.visit_sources.turn, functools.partial(why_not_hearing, self)),
                self.web.turn,
                self._turn_days,
                self._turn_deployments,
                self._check_logs,
                self.nursery.flush,
                self.journal.commit,
                self.exports.let_go,
                self.retention.turn,
                self._send_answers,
                functools.partial(self.notifier.turn, self),
            ):
                self.guarded(step)
            self.watch.end()
            self.stopping |= self.signals.stops > 0

    def idle(self) -> bool:
        """Whether nothing is left to do."""
        try:
            return not self.lifecycle.table.unfinished() and not has_ready(self.settings.spool_dir)
        except OSError:
            return False  # nobody knows what is in the spool

    def drain(self) -> None:
        """Take no more visits, and export without waiting for fuller batches."""
        self.draining = True
        self.exporter.hurry()

    @property
    def hurried(self) -> bool:
        """Whether it was told to end at once."""
        return self._at_once or self.signals.stops > 1

    def patience(self, seconds: float) -> float:
        """Seconds to wait for something to end: hardly any, when told to end at once."""
        return seconds_for(seconds, self.hurried)

    def stop(self, *, now: bool = False) -> None:
        """End soon, or at once; what is unfinished is left for the next start."""
        self.stopping = True
        self._at_once |= now

    def put_in_force(self, settings: Settings, deployment: Deployment | None) -> None:
        """Go on with other settings, and with another deployment for new visits if one is given.

        Parameters
        ----------
        settings : `ppd.config.Settings`
            The settings, checked.
        deployment : `ppd.supervisor.deployments.Deployment` or `None`
            Its nursery is the candidate, which is ready.
        """
        if deployment is not None:
            self.nursery.promote(deployment.generation)
            self.deployment = deployment
        self._in_force.replace(settings)
        self.lifecycle.settings_changed()
        self.nursery.set_max_age(settings.nursery_max_age)
        self.exporter.reconfigure(settings)
        self.web.reconfigure(settings)
        setup_logging(settings)

    def last_words(self) -> None:
        """Take what other threads have said, and make all durable."""
        self.guarded(functools.partial(hear_inbox, self))
        self.journal.commit()

    def admit(
        self,
        message: Any,
        accepted: float | None = None,
        only: Iterable[int] | None = None,
        among: Iterable[int] | None = None,
        besides: Callable[[str], Set[int]] = lambda group: frozenset(),
    ) -> VisitEntry:
        """Validate a nextVisit message; see `ppd.supervisor.admission.admit`.

        ``besides`` tells which detectors of a group are about to be accepted.
        """
        return admit(
            message,
            settings=self.settings,
            deployment=self.deployment,
            focal_plane=self.focal_plane,
            detectors=self.central.detectors,
            filters=self.central.filters,
            known=lambda instrument, group: self.journal.known_detectors(instrument, group) | besides(group),
            earlier=self.lifecycle.table.visits.get,
            accepted=accepted,
            only=only,
            paused=self.pauses.detectors,
            among=among,
        )

    # One turn of the loop

    def _stalled(self, seconds: float, stack: str) -> None:
        """Count a turn that nobody could be answered in for too long."""
        where = stack.splitlines()[-2].strip() if stack else "nobody saw where"
        self.counters.error("loop_stalls", "loop", f"a turn took {seconds:.1f} s ({where})")

    def guarded(self, step: Callable[[], object]) -> None:
        """Do a step; one that fails is logged and counted, and ends nothing else."""
        try:
            step()
        except Exception:
            self.counters.add("internal_errors")
            _LOG.exception("A step of the loop failed; the supervisor goes on.")

    def _turn_days(self) -> None:
        if not self.stopping:
            self.rollover.turn(self.deployment, self.lifecycle.inputs.days_wanted(self.deployment.id))

    def _turn_deployments(self) -> None:
        if self.signals.take_reload():
            self.reloader.begin("SIGHUP")
        self.reloader.turn()
        self.nursery.retire(self.lifecycle.generations())

    def _send_answers(self) -> None:
        """Send the answers: after the journal's commit, not before."""
        answers, self.answers = self.answers, []
        for caller, reply in answers:
            self.guarded(functools.partial(self.sockets.answer, caller, reply))
        judgements, self.judgements = self.judgements, []
        for source, some in judgements:
            self.visit_sources.settle(source, some)

    def _check_logs(self) -> None:
        now = time.monotonic()
        if now > self._logs_checked + _LOG_CHECK_SECONDS:
            self._logs_checked = now
            prune_logs(self.settings.state_dir, self.settings.child_log_days)


def run(settings: Settings) -> int:
    """Run the supervisor.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.

    Returns
    -------
    code : `int`
        Exit code.

    Raises
    ------
    ppd.errors.PpdError
        Raised if it can't start.
    """
    supervisor = Supervisor(settings)
    code = supervisor.run()
    if supervisor.hurried:
        # A thread may still wait for a database or a disk, and an end of the interpreter for it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code
