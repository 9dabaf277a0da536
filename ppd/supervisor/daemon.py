"""The supervisor: set-up, event loop and end.

Signals set flags, and nothing that arrives may end the loop: what can't be
understood is answered or logged, and counted.
"""

from __future__ import annotations

__all__ = ["EXIT_LEFT_WORK", "Supervisor", "run"]

import contextlib
import logging
import os
import signal
import time
from typing import Any

import pydantic
import zmq

from ..config import Settings
from ..deployment import day_obs, deployment_id
from ..errors import (
    ConfigurationError,
    IgnorableVisitError,
    InvalidVisitError,
    PpdError,
    StaleVisitError,
)
from ..initializer import check_initialized, initialize
from ..instruments.description import find_description
from ..messages import ControlReply, ControlRequest, MessageError, NurseryReady, SetupFailed, decode, encode
from ..sources.directory import Candidate, DirectorySource
from .admission import DuplicateVisitError, admit
from .central import CentralReader, Resolved
from .counters import Counters
from .exporter import Exported, Exporter, Undeliverable
from .inbox import Inbox
from .journal import Journal
from .lifecycle import Lifecycle
from .lock import StateLock
from .notify import sd_notify
from .nursery_client import NurseryClient
from .spool import prepare, ready_entries, used_bytes
from .status import describe

_LOG = logging.getLogger(__name__)

EXIT_LEFT_WORK = 6
"""Exit code when work or outputs are left for the next start."""

_TICK_MS = 100
_SPOOL_CHECK_SECONDS = 1.0
_NURSERY_START_SECONDS = 120.0


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
        self.settings = settings
        self.started = time.time()
        self.counters = Counters()
        self.draining = False
        self.stopping = False
        self.spool_bytes = 0
        self._signals: list[int] = []
        self._spool_checked = 0.0
        self._undo = contextlib.ExitStack()
        try:
            self._set_up()
        except BaseException:
            self._undo.close()
            raise

    def _set_up(self) -> None:
        settings = self.settings
        for folder in (settings.state_dir, settings.local_repos, settings.state_dir / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        settings.socket_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.socket_dir.chmod(0o700)
        lock = StateLock(settings.state_dir)
        self._undo.callback(lock.close)
        self.deployment = deployment_id(settings)
        description = find_description(settings.instrument, settings.instrument_description)
        self.focal_plane = description.focal_plane
        # The nursery's imports take seconds; they go on while we set up.
        self.nursery = NurseryClient(settings)
        self._undo.callback(self.nursery.stop, 8.0)
        prepare(settings.spool_dir)
        self._clean_local_repos()
        self.journal = Journal(settings.state_dir / "journal.sqlite3")
        self._undo.callback(self.journal.close)
        self.inbox = Inbox()
        self.central = CentralReader(settings, description, self.inbox)
        self._undo.callback(self.central.stop, 10.0)
        self.exporter = Exporter(settings, self.inbox)
        self._undo.callback(self.exporter.stop, 10.0)
        day = day_obs(time.time())
        if settings.initialize_automatically:
            initialize(settings, day)
            self.central.butler.registry.refresh()
        # The primary knows first what ppd-init wrote.
        check_initialized(self.exporter.butler, settings, day, self.deployment)
        self._open_sockets()
        self.lifecycle = Lifecycle(
            settings, self.child_endpoint, self.journal, self.central, self.counters, self._send_child
        )
        self.sources = [DirectorySource(d, settings.raw_settle, self.inbox.put) for d in settings.raw_dirs]

    def _open_sockets(self) -> None:
        folder = self.settings.socket_dir
        self._context = zmq.Context()
        self._undo.callback(self._context.destroy, 500)
        self.child_endpoint = f"ipc://{folder / 'children.ipc'}"
        self.children = self._context.socket(zmq.ROUTER)
        self.control = self._context.socket(zmq.ROUTER)
        for socket, name in ((self.children, "children.ipc"), (self.control, "control.ipc")):
            path = folder / name
            path.unlink(missing_ok=True)
            socket.setsockopt(zmq.LINGER, 500)
            # A peer may not make us hold without bound what it sends.
            socket.setsockopt(zmq.MAXMSGSIZE, 4 << 20)
            socket.bind(f"ipc://{path}")
            self._undo.callback(path.unlink, missing_ok=True)

    def run(self) -> int:
        """Work until told to stop.

        Returns
        -------
        code : `int`
            0, or `EXIT_LEFT_WORK`.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda s, _: self._signals.append(s))
        wake_read, wake_write = os.pipe()
        self._undo.callback(os.close, wake_read)
        self._undo.callback(os.close, wake_write)
        for descriptor in (wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, -1)
        try:
            self._await_nursery()
            self._recover()
            for source in self.sources:
                source.start()
                self._undo.callback(source.stop)
            self.exporter.start()
            sd_notify("READY=1")
            _LOG.info("Ready: deployment %s, %d detectors.", self.deployment, len(self.central.detectors))
            self._loop(wake_read)
            return self._wind_up(wake_read)
        finally:
            sd_notify("STOPPING=1")
            self._undo.close()

    def _loop(self, wake: int, until: float | None = None) -> None:
        """Serve until stopping; with ``until``, until all work is done or that time."""
        poller = zmq.Poller()
        for source in (self.children, self.control, self.nursery.fileno(), self.inbox.fileno(), wake):
            poller.register(source, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(_TICK_MS))
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            for step in (self._take_children, self._take_nursery, self._take_inbox, self._take_control):
                self._guarded(step)
            self._guarded(self.lifecycle.turn)
            self._guarded(self._check_spool)
            self.nursery.flush()
            self.journal.commit()
            self._answer()
            if until is None:
                if self._signals:
                    self._signals.clear()
                    self.stopping = True
                if self.stopping:
                    return
            elif self._signals or self.idle() or time.monotonic() > until:
                return

    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.lifecycle.table.unfinished() and not ready_entries(self.settings.spool_dir)

    def _wind_up(self, wake: int) -> int:
        """Let children finish and the spool drain, each within its grace."""
        _LOG.info("Stopping: no more visits; running children have %.0f s.", self.settings.stop_grace)
        self.draining = True
        self.exporter.hurry()
        for source in self.sources:
            source.stop()
        self._loop(wake, until=time.monotonic() + self.settings.stop_grace)
        if self.lifecycle.table.live():
            self.lifecycle.terminate_all("ppd stops", signal.SIGTERM)
            self._signals.clear()
            self._loop_until_childless(wake, 8.0)
        self._loop(wake, until=time.monotonic() + min(self.settings.stop_grace, 10.0))
        self.journal.commit()
        if self.idle():
            return 0
        _LOG.warning("Work or outputs are left for the next start.")
        return EXIT_LEFT_WORK

    def _loop_until_childless(self, wake: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.lifecycle.table.live() and time.monotonic() < deadline:
            self._loop(wake, until=time.monotonic())

    def _await_nursery(self) -> None:
        deadline = time.monotonic() + _NURSERY_START_SECONDS
        while time.monotonic() < deadline:
            for message in self.nursery.receive():
                if isinstance(message, SetupFailed):
                    raise ConfigurationError(message.reason)
                if isinstance(message, NurseryReady):
                    _LOG.info("The nursery (pid %d) is ready after %.1f s.", message.pid, message.seconds)
                    self.central.start(message.pipelines)
                    self.lifecycle.nursery = self.nursery
                    return
            if not self.nursery.alive():
                raise ConfigurationError("The nursery ended before it was ready; its error is in the log.")
            if self._signals:
                raise KeyboardInterrupt
            time.sleep(0.02)
        raise ConfigurationError(f"The nursery was not ready in {_NURSERY_START_SECONDS:.0f} s.")

    def _recover(self) -> None:
        """Take up what an earlier supervisor accepted and did not finish."""
        for instrument, group, message, accepted, detectors in self.journal.unfinished():
            try:
                entry = self._admit(message, accepted, detectors)
            except PpdError as e:
                for d in detectors:
                    self.journal.state(instrument, group, d, "failed", attempt=1, reason=f"not resumed: {e}")
                continue
            fresh = next(iter(entry.detectors.values())).expires > time.time()
            if not fresh:
                for d in detectors:
                    reason = "its message expired while ppd was down"
                    self.journal.state(instrument, group, d, "failed", attempt=1, reason=reason)
                continue
            for d in entry.detectors.values():
                # Not the first attempt: the APDB is asked before it runs.
                d.attempt = 2
            _LOG.warning("Visit %s is taken up again.", entry.visit.identity)
            self.lifecycle.accept(entry, "recovery")

    def _admit(self, message: Any, accepted: float | None = None, only: Any = None) -> Any:
        return admit(
            message,
            settings=self.settings,
            deployment=self.deployment,
            focal_plane=self.focal_plane,
            detectors=self.central.detectors,
            filters=self.central.filters,
            known=self.journal.known_detectors,
            accepted=accepted,
            only=only,
        )

    # One turn of the loop

    def _guarded(self, step: Any) -> None:
        try:
            step()
        except Exception:
            self.counters.add("internal_errors")
            _LOG.exception("A step of the loop failed; the supervisor goes on.")

    def _take_children(self) -> None:
        for _ in range(1000):
            try:
                identity, *frames = self.children.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames[-1] if frames else b"")
                self.lifecycle.child_said(identity, message)
            except (MessageError, AttributeError) as e:
                self.counters.error("child_messages_refused", repr(identity), str(e))

    def _take_nursery(self) -> None:
        for message in self.nursery.receive():
            self.lifecycle.nursery_said(message)
        if not self.nursery.alive() and not self.stopping:
            self._replace_nursery()

    def _replace_nursery(self) -> None:
        """Start a new nursery; the old one's children have got SIGTERM from the kernel."""
        _LOG.error("The nursery is gone; its children end and are tried again.")
        self.counters.error("nursery_restarts", "nursery", "the nursery ended unasked")
        for d in self.lifecycle.table.live():
            d.exited_at = d.exited_at or time.monotonic()
        self.lifecycle.nursery = None
        self.stopping = True

    def _take_inbox(self) -> None:
        for item in self.inbox.drain():
            if isinstance(item, Candidate):
                self.lifecycle.raw_seen(item)
            elif isinstance(item, Resolved):
                self.lifecycle.resolved(item)
            elif isinstance(item, Exported):
                self.lifecycle.exported(item)
            elif isinstance(item, Undeliverable):
                self.lifecycle.undeliverable(item)

    def _take_control(self) -> None:
        self._answers: list[tuple[list[bytes], ControlReply]] = []
        for _ in range(200):
            try:
                *envelope, body = self.control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                request = decode(body)
                if not isinstance(request, ControlRequest):
                    raise MessageError(f"{type(request).__name__} is no request")
                reply = self._command(request)
            except MessageError as e:
                self.counters.error("requests_refused", "control", str(e))
                reply = ControlReply(ok=False, code="malformed", error=str(e))
            except Exception as e:
                self.counters.add("internal_errors")
                _LOG.exception("A command failed.")
                reply = ControlReply(ok=False, code="unavailable", error=f"{type(e).__name__}: {e}")
            self._answers.append((envelope, reply))

    def _answer(self) -> None:
        """Send the answers: after the journal's commit, not before."""
        for envelope, reply in self._answers:
            with contextlib.suppress(zmq.ZMQError):
                self.control.send_multipart([*envelope, encode(reply)], zmq.NOBLOCK)
        self._answers = []

    def _send_child(self, identity: bytes, message: pydantic.BaseModel) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self.children.send_multipart([identity, encode(message)], zmq.NOBLOCK)

    def _check_spool(self) -> None:
        now = time.monotonic()
        if now > self._spool_checked + _SPOOL_CHECK_SECONDS:
            self._spool_checked = now
            self.spool_bytes = used_bytes(self.settings.spool_dir)

    # Commands

    def _command(self, request: ControlRequest) -> ControlReply:
        if request.command == "submit":
            return self._submit(request.visit)
        if request.command == "drain":
            self.draining = True
            self.exporter.hurry()
            return ControlReply(ok=True, result={"drained": self.idle()})
        if request.command == "stop":
            self.stopping = True
            return ControlReply(ok=True)
        return ControlReply(ok=True, result=describe(self))

    def _submit(self, message: Any) -> ControlReply:
        faults = {
            DuplicateVisitError: ("visits_duplicate", "duplicate"),
            StaleVisitError: ("visits_stale", "stale"),
            InvalidVisitError: ("visits_malformed", "malformed"),
            IgnorableVisitError: ("visits_ignored", "ignored"),
        }
        if self.draining:
            return ControlReply(ok=False, code="unavailable", error="ppd is draining and takes no visits.")
        if self.spool_bytes > self.settings.spool_max_bytes:
            error = f"The spool is full ({self.spool_bytes} bytes); no visit is taken until it drains."
            self.counters.error("visits_refused_spool_full", "submit", error)
            return ControlReply(ok=False, code="unavailable", error=error)
        try:
            entry = self._admit(message)
        except tuple(faults) as e:
            name, code = next(v for k, v in faults.items() if isinstance(e, k))
            if code == "ignored":
                self.counters.add(name)
                _LOG.info("%s", e)
            else:
                self.counters.error(name, "submit", str(e))
                _LOG.error("Refused: %s", e)
            return ControlReply(ok=False, code=code, error=str(e))
        self.lifecycle.accept(entry, "control")
        return ControlReply(
            ok=True, result={"group": entry.visit.groupId, "detectors": sorted(entry.detectors)}
        )

    def _clean_local_repos(self) -> None:
        """Remove the local repos that a killed supervisor's children left."""
        import shutil

        for path in self.settings.local_repos.glob("ppd-*"):
            shutil.rmtree(path, ignore_errors=True)


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
    return Supervisor(settings).run()
