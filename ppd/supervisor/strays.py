"""Processes that a child has left: they come to the supervisor, which ends and reaps them."""

from __future__ import annotations

__all__ = ["Stray", "Strays", "end_left_behind", "kill_family", "signal_group"]

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable

from .processes import Process, all_processes, command_of, family, mark_of, own_children

_LOG = logging.getLogger(__name__)

# It removes what is left of shared memory once all others have ended, and ends then.
_TRACKER = "multiprocessing.resource_tracker"
_TRACKER_GRACE = 2.0
_OLD_SECONDS = 5.0


@dataclasses.dataclass
class Stray:
    """A process that was left."""

    pid: int
    mark: str
    """Of the child that has left it; empty: nobody knows."""
    command: str
    since: float
    killed: bool = False


class Strays:
    """All processes that children have left and that are not gone.

    A supervisor is a child subreaper: what was left by a process below it
    becomes its child.  A child is one too, so that this happens once the
    child itself has ended and not before.

    Parameters
    ----------
    kept : callable
        Process IDs that are no strays: nurseries, and children that have
        lost theirs.
    attribute : callable
        Says the mark of the child that has left a process, from the mark that
        the process bears and from its session.
    killed : callable
        Told of each stray that was killed.
    """

    def __init__(
        self,
        kept: Callable[[], set[int]],
        attribute: Callable[[str, int], str],
        killed: Callable[[Stray], None],
    ):
        self._kept = kept
        self._attribute = attribute
        self._killed = killed
        self._session = os.getsid(0)
        self._strays: dict[int, Stray] = {}

    def sweep(self) -> None:
        """Look for strays, kill those that live and reap those that have ended."""
        kept = self._kept()
        found = [pid for pid in own_children() if pid not in kept]
        for pid in self._strays.keys() - set(found):
            del self._strays[pid]
        for pid in found:
            process = Process.of(pid)
            # What the supervisor itself starts is in its own session; what
            # comes from below a nursery never is.
            if process is None or process.session == self._session:
                continue
            if process.state == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                self._strays.pop(pid, None)
            else:
                self._end(process)

    def _end(self, process: Process) -> None:
        stray = self._strays.get(process.pid)
        if stray is None:
            mark = self._attribute(mark_of(process.pid), process.session)
            if not mark and os.getpid() == 1:
                # In a container it may be anybody's: it is left alone, and reaped when it ends.
                return
            stray = Stray(process.pid, mark, command_of(process.pid), time.monotonic())
            self._strays[process.pid] = stray
        if _TRACKER in stray.command and time.monotonic() < stray.since + _TRACKER_GRACE:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        if not stray.killed:
            stray.killed = True
            self._killed(stray)

    def left_by(self, mark: str) -> list[int]:
        """Process IDs of the strays of one child that are not gone."""
        return [s.pid for s in self._strays.values() if s.mark == mark]

    def clear(self, timeout: float) -> None:
        """End all; bounded."""
        deadline = time.monotonic() + timeout
        self.sweep()
        while self._strays and time.monotonic() < deadline:
            time.sleep(0.02)
            self.sweep()
        if self._strays:
            _LOG.error("Processes that children have left do not end: %s", list(self._strays.values()))


def end_left_behind(prefix: str, grace: float) -> int:
    """Let children of an earlier supervisor end, and end what is left of them; bounded.

    Their nursery has told them to end when its supervisor was gone; one that
    is handing over its outputs does so first.

    Parameters
    ----------
    prefix : `str`
        What the marks of this supervisor's children begin with; no other that
        uses it runs.
    grace : `float`
        Seconds that they have to end by themselves.

    Returns
    -------
    killed : `int`
        How many had to be killed.
    """
    end = time.monotonic() + grace
    while time.monotonic() < end and any(mark_of(pid).startswith(prefix) for pid in all_processes()):
        time.sleep(0.05)
    killed: set[int] = set()
    deadline = time.monotonic() + _OLD_SECONDS
    while time.monotonic() < deadline:
        found = [pid for pid in all_processes() if mark_of(pid).startswith(prefix)]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.02)
    if killed:
        _LOG.warning("%d processes of an earlier supervisor's children were ended.", len(killed))
    return len(killed)


def signal_group(pid: int, signum: signal.Signals) -> None:
    """Send a signal to a child and to all that it has started and that did not leave its group."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        # It has just been forked, or has just ended.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def kill_family(pid: int) -> None:
    """Kill a child with all its descendants, whatever group they are in.

    What is left of them then, and what they have started meanwhile, is ended
    as strays are; the process that removes their shared memory is left to it.
    """
    first, *others = family(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(first, signal.SIGKILL)
    for member in others:
        if _TRACKER not in command_of(member):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
