"""Keeping a nursery alive: start, restart with back-off, orphans reaped."""

from __future__ import annotations

__all__ = ["NurseryKeeper"]

import contextlib
import ctypes
import dataclasses
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from ..config import Settings
from ..messages import Exited, ForkRequest, NurseryPrepared, NurseryReady, PrepareNursery, Retire, SetupFailed
from .nursery_client import NurseryClient
from .processes import Process
from .succession import Succession

_LOG = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_START_SECONDS = 120.0
_MAX_DELAY = 30.0
# A nursery that lived this long was a good one: the next delay is short again.
_GOOD_SECONDS = 60.0
_ORPHAN_GRACE = 5.0


@dataclasses.dataclass(frozen=True)
class Inherited:
    """What children inherit from the nursery, for people."""

    datasets: int = 0
    bytes: int = 0
    quick: bool = False
    """Whether children open their repos the quick way."""


class NurseryKeeper:
    """The supervisor's nursery: there is one, or there will soon be.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    others : callable
        Process IDs of nurseries and orphans of other keepers than the one given.
    """

    def __init__(
        self,
        settings: Settings,
        others: Callable[[NurseryKeeper], set[int]] = lambda keeper: set(),
    ):
        self._settings = settings
        self._others = others
        self.max_age = settings.nursery_max_age
        """Seconds after which a fresh nursery takes over."""
        self._begun: float
        self._client: NurseryClient
        self.ready = False
        self.trouble: str | None = None
        """Why there is none; for the operator."""
        self._failures = 0
        self._restart_at: float | None = None
        self._orphans: dict[int, float] = {}
        self._succession = Succession(settings)
        self._wanted: PrepareNursery | None = None
        self.leases: list[str] = []
        """Leases on what it has read, or is to read."""
        self.inherited = Inherited()
        # Children of a nursery that has died come to us: nobody else would
        # reap them, least of all in a container where we are process 1.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._begin()

    def first_word(self) -> NurseryReady | str | None:
        """Return what a nursery that has just been started has built, or why it can't; `None`: not yet."""
        for message in self._client.receive():
            if isinstance(message, SetupFailed):
                return message.reason
            if isinstance(message, NurseryReady):
                self._is_ready(message)
                return message
        if not self._client.alive():
            return "The nursery ended before it was ready; its error is in the log."
        return None

    def leave(self) -> None:
        """Let the nursery end, which no visit needs any more; `gone` tells when it has."""
        self._restart_at = None
        if not self.ready and self._client.alive():
            self._client.kill()
        self._client.send(Retire())

    def gone(self, kill: bool) -> bool:
        """Whether a nursery that was to leave has ended; it may be killed."""
        self._reap_orphans()
        self._succession.stop(0.0)
        if self._client.alive():
            self._client.flush()
            self._client.receive()
            if kill:
                self._client.kill()
            return False
        if self._client.fileno() != -1:
            self._client.close()
            self._remove_repos()
        return not self._orphans

    @property
    def pid(self) -> int:
        """Process ID of the last nursery."""
        return self._client.pid

    @property
    def was_killed(self) -> bool:
        """Whether the last nursery was ended by a signal: another may do better."""
        return (self._client.returncode or 0) < 0

    @property
    def pids(self) -> set[int]:
        """Process IDs of all nurseries, and of children that have lost theirs."""
        return {self.pid, *self._succession.pids, *self._orphans}

    def fileno(self) -> int:
        """Descriptor that becomes readable when the nursery says something; it changes with a restart."""
        return self._client.fileno()

    def fork(self, request: ForkRequest) -> bool:
        """Ask for a child; `False`: there is no nursery now."""
        if self.ready:
            self._client.send(request)
        return self.ready

    def prepare(self, request: PrepareNursery) -> None:
        """Have the nursery read inputs for its children; every later nursery too."""
        self._wanted = request
        self.leases.append(request.holder)
        if self.ready:
            self._client.send(request)

    def prepared(self, report: NurseryPrepared) -> list[str]:
        """Take note of what the nursery has read.

        Returns
        -------
        holders : `list` [ `str` ]
            Leases that are not needed any more.
        """
        self.inherited = Inherited(report.held, report.bytes, report.quick)
        if report.trouble:
            _LOG.warning("The nursery could not read all that it was asked to: %s", report.trouble)
        _LOG.info(
            "The nursery holds %d inputs in memory (%.1f MB) after %.2f s.",
            report.held,
            report.bytes / 1e6,
            report.seconds,
        )
        if report.holder not in self.leases:
            return []
        # What it holds now is needed again if it has to be replaced.
        index = self.leases.index(report.holder)
        old, self.leases = self.leases[:index], self.leases[index:]
        return old

    def flush(self) -> None:
        """Write what the pipe takes now."""
        self._client.flush()

    def receive(self) -> list[Any]:
        """Return what the nursery has said, and the ends of orphans as if it had."""
        messages = self._client.receive()
        for message in messages:
            if isinstance(message, NurseryReady):
                self._is_ready(message)
            elif isinstance(message, SetupFailed):
                self.trouble = message.reason
        return [*messages, *self._succession.receive(), *self._reap_orphans()]

    def check(self) -> set[int] | None:
        """Look after the nursery.

        Returns
        -------
        orphans : `set` [ `int` ] or `None`
            Children that a nursery has left which has just ended; `None`:
            nothing happened.
        """
        now = time.monotonic()
        if self._restart_at is not None:
            if now >= self._restart_at:
                self._restart_at = None
                self._begin()
            return None
        if self._client.alive():
            if not self.ready and now > self._begun + _START_SECONDS:
                _LOG.error("The nursery was not ready in %.0f s; it is killed.", _START_SECONDS)
                self._client.kill()
            self._succeed(now)
            if self._succession.ended():
                # A retired nursery that died leaves children as any other does.
                self._adopt(now)
            return None
        return self._lost(now)

    def _succeed(self, now: float) -> None:
        if self.ready and now > self._begun + self.max_age:
            self._succession.begin()
        heir = self._succession.heir()
        if heir is not None:
            _LOG.info("Nursery %d takes over; %d ends with its last child.", heir[0].pid, self.pid)
            self._succession.retire(self._client)
            self._client, ready = heir
            self._begun = now
            self._is_ready(ready)

    def stop(self, timeout: float) -> None:
        """End the nursery and all children; bounded."""
        self._restart_at = None
        if not self.ready and self._client.alive():
            # It imports and would not hear of it for seconds; it has no children yet.
            self._client.kill()
        self._succession.stop(timeout)
        self._client.stop(timeout)
        self._remove_repos()
        deadline = time.monotonic() + _ORPHAN_GRACE
        while self._orphans and time.monotonic() < deadline:
            self._reap_orphans()
            time.sleep(0.02)

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._client = NurseryClient(self._settings)

    def _is_ready(self, message: NurseryReady) -> None:
        self.ready, self.trouble = True, None
        _LOG.info("The nursery (pid %d) is ready after %.1f s.", message.pid, message.seconds)
        if self._wanted is not None:
            self._client.send(self._wanted)

    def _lost(self, now: float) -> set[int]:
        self._failures = 0 if now > self._begun + _GOOD_SECONDS else self._failures + 1
        delay = min(_MAX_DELAY, 2.0 ** (self._failures - 1)) if self._failures > 1 else 0.0
        self.ready = False
        self.trouble = self.trouble or "the nursery ended unasked"
        _LOG.error("The nursery (pid %d) is gone; a new one starts in %.0f s.", self.pid, delay)
        self._client.close()
        self._remove_repos()
        self._restart_at = now + delay
        return self._adopt(now) | self._succession.children()

    def _remove_repos(self) -> None:
        """Remove what a nursery that was killed has left."""
        for path in self._settings.local_repos.glob(f"ppd-nursery-{self.pid}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _adopt(self, now: float) -> set[int]:
        # The kernel has sent SIGTERM to its children and given them to us.
        own = os.getsid(0)  # of what the supervisor itself has started
        found = {p.pid for p in psutil.Process().children() if _session(p.pid) != own}
        found -= {self.pid} | self._succession.pids | self._others(self)
        self._orphans.update(dict.fromkeys(found, now))
        return found

    def _reap_orphans(self) -> list[Exited]:
        ended = []
        for pid, since in list(self._orphans.items()):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, 0
            if done:
                del self._orphans[pid]
                ended.append(Exited(key=None, pid=pid, code=os.waitstatus_to_exitcode(status)))
            elif time.monotonic() > since + _ORPHAN_GRACE:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return ended


def _session(pid: int) -> int | None:
    process = Process.of(pid)
    return None if process is None else process.session
