"""Carrying out the soak's faults."""

from __future__ import annotations

__all__ = ["Faults", "Window"]

import contextlib
import dataclasses
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg2

from .moved_clock import move
from .servers import PostgresServer
from .soak_disk import SoakDisk
from .soak_schedule import Fault
from .soak_site import Site
from .soak_watch import SpoolWatch

_PATIENCE = 15.0
_FILL_SECONDS = 0.1


@dataclasses.dataclass
class Window:
    """A fault that happened."""

    fault: Fault
    begin: float
    """Monotonic seconds."""
    end: float | None
    """`None`: it lasts still."""
    heal: Callable[[], None] | None = None


@dataclasses.dataclass
class _Ambush:
    fault: Fault
    seen: int
    give_up: float


class Faults:
    """Does the harm that is planned.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        Whom it meets.
    server : `bench.servers.PostgresServer`
        Its PostgreSQL.
    disk : `bench.soak_disk.SoakDisk`
        Where its state is.
    clock : `pathlib.Path`
        File with the offset of its clock.
    watch : `bench.soak_watch.SpoolWatch`
        Knows when a moment has come.
    note : callable
        Called with a line about each thing done.
    """

    def __init__(
        self,
        site: Site,
        server: PostgresServer,
        disk: SoakDisk,
        clock: Path,
        watch: SpoolWatch,
        note: Callable[[str], None],
    ):
        self._site, self._server, self._disk = site, server, disk
        self._clock, self._watch, self._note = clock, watch, note
        self._ambushes: list[_Ambush] = []
        self._filled = 0.0
        self.windows: list[Window] = []
        self.counts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        """Faults that nothing was there for."""
        self.killed_at: float | None = None
        """When the supervisor was last killed, monotonic seconds."""

    def begin(self, fault: Fault) -> None:
        """Do it, or wait for its moment."""
        if fault.moment == "now" and self._is_there(fault):
            self._do(fault)
        else:
            seen = self._watch.moments[fault.moment]
            self._ambushes.append(_Ambush(fault, seen, time.monotonic() + _PATIENCE))
            self._watch.hasty = fault.moment != "now"

    def turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for ambush in list(self._ambushes):
            fault = ambush.fault
            come = (
                self._watch.moments[fault.moment] > ambush.seen
                if fault.moment != "now"
                else self._is_there(fault)
            )
            if come or now > ambush.give_up:
                self._ambushes.remove(ambush)
                self._do(fault)
        self._watch.hasty = any(a.fault.moment != "now" for a in self._ambushes)
        for window in self.active():
            if window.fault.kind == "full disk" and now > self._filled + _FILL_SECONDS:
                self._filled = now
                self._disk.fill()
            if now >= window.begin + window.fault.seconds:
                self._heal(window)

    def active(self) -> list[Window]:
        """List those that last still."""
        return [w for w in self.windows if w.end is None]

    def heal(self) -> None:
        """End all harm."""
        self._ambushes.clear()
        for window in self.active():
            self._heal(window)

    def _heal(self, window: Window) -> None:
        if window.heal is not None:
            window.heal()
        window.end = time.monotonic()
        self._note(f"end of: {window.fault.kind}")

    def _do(self, fault: Fault) -> None:
        verb, _, whom = fault.kind.partition(" ")
        heal: Callable[[], None] | None = None
        what = ""
        if verb in ("kill", "stop"):
            victim = self._find(whom, fault.pick)
            descriptor = self._signal(victim, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
            if victim is None or descriptor is None:
                self._skip(fault, f"there is no {whom}")
                return
            what = f"process {victim}"
            if verb == "stop":
                heal = self._continue(descriptor)
            else:
                os.close(descriptor)
                if whom == "supervisor":
                    self.killed_at = time.monotonic()
        elif fault.kind == "terminate connections":
            try:
                what = f"{self._server.terminate_clients()} of them"
            except psycopg2.Error:
                self._skip(fault, "PostgreSQL is away")
                return
        elif whom == "PostgreSQL":
            self._server.halt(immediate=verb == "crash")
            heal = self._resume_server
        elif fault.kind == "full disk":
            if not self._disk.can_be_full:
                self._skip(fault, "mounting is not permitted")
                return
            self._disk.fill()
            heal = self._disk.empty
        elif fault.kind == "slow disk":
            if not self._disk.can_be_slow:
                self._skip(fault, "no device can be throttled")
                return
            self._disk.slow()
            heal = self._disk.quick
        elif fault.kind == "clock step":
            what = f"to {fault.offset:+.1f} s"
            move(self._clock, fault.offset)
        now = time.monotonic()
        self.windows.append(Window(fault, now, None if fault.seconds else now, heal))
        self.counts[fault.kind] += 1
        seconds = f" for {fault.seconds:.1f} s" if fault.seconds else ""
        moment = "" if fault.moment == "now" else f" ({fault.moment})"
        self._note(f"{fault.kind}{seconds}{moment} {what}".rstrip())

    def _resume_server(self) -> None:
        # Another fault may have halted it again.
        others = [w for w in self.active() if w.fault.kind.endswith("PostgreSQL")]
        if len(others) <= 1:
            self._server.resume(wait=False)

    def _skip(self, fault: Fault, why: str) -> None:
        self.skipped[fault.kind] += 1
        self._note(f"no {fault.kind}: {why}")

    def _continue(self, descriptor: int) -> Callable[[], None]:
        def heal() -> None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)

        return heal

    def _signal(self, victim: int | None, signum: signal.Signals) -> int | None:
        if victim is None:
            return None
        try:
            descriptor = os.pidfd_open(victim)
        except ProcessLookupError:
            return None
        try:
            signal.pidfd_send_signal(descriptor, signum)
        except ProcessLookupError:
            os.close(descriptor)
            return None
        return descriptor

    def _is_there(self, fault: Fault) -> bool:
        verb, _, whom = fault.kind.partition(" ")
        return verb not in ("kill", "stop") or self._find(whom, fault.pick) is not None

    def _find(self, role: str, pick: float) -> int | None:
        """Choose among the processes of a role."""
        assert self._site.process is not None
        supervisor = self._site.process
        if role == "supervisor":
            return supervisor.pid if supervisor.poll() is None else None
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(supervisor.pid).children():
                with contextlib.suppress(psutil.Error):
                    words = process.cmdline()
                    if role == "exporter" and "ppd.supervisor.exporter_process" in words:
                        found.append(process.pid)
                    elif "ppd.workers.nursery" in words:
                        found += [process.pid] if role == "nursery" else []
                        found += [c.pid for c in process.children()] if role == "child" else []
        return sorted(found)[int(pick * len(found))] if found else None
