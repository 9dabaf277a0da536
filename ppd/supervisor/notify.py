"""Telling systemd how the service is (``sd_notify(3)``), from the loop's own turns."""

from __future__ import annotations

__all__ = ["ServiceNotifier"]

import collections
import os
import socket
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from ..logs import mask_secrets
from .faults import ailments
from .readiness import why_not_able
from .status import health

if TYPE_CHECKING:
    from .daemon import Supervisor

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# systemd wants a sign of life within the interval: three are sent, so that one may be lost.
_PINGS = 3
_STATUS_SECONDS = 2.0
_EXTEND_SECONDS = 5.0
# After the last turn the exporter, the nursery and the reader are waited for, half a minute at most.
_EXTENSION = 60
_MAX_TEXT = 200
_MAX_QUEUE = 16


class ServiceNotifier:
    """What the service manager is told; without one, nothing is done.

    No thread feeds the watchdog: a loop that is stuck is silent, and systemd
    ends the process.  Nothing here waits; what the socket does not take is sent
    in a later turn.

    Parameters
    ----------
    environ : `~collections.abc.MutableMapping` [ `str`, `str` ]
        The environment.  What the manager has put there is taken out: it is for
        this process, and not for its children.
    """

    def __init__(self, environ: MutableMapping[str, str]):
        address, interval, pid = (environ.pop(name, "") for name in _VARIABLES)
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = pid in ("", str(os.getpid()))
        self.interval = int(interval) / 1e6 / _PINGS if mine and interval.isdecimal() else 0.0
        """Seconds between two signs of life; 0: nobody waits for them."""
        self._queue: collections.deque[str] = collections.deque(maxlen=_MAX_QUEUE)
        self._ready = False
        self._stopping = False
        self._reload = (0, False)
        self._status = ""
        self._alive = self._looked = self._extended = float("-inf")

    def turn(self, supervisor: Supervisor) -> None:
        """Say what is due; returns at once.

        Parameters
        ----------
        supervisor : `ppd.supervisor.daemon.Supervisor`
            Whose loop has made a turn.
        """
        if self._socket is None:
            return
        now = time.monotonic()
        if supervisor.stopping:
            self.stopping()
        elif not self._ready and why_not_able(supervisor) is None:
            self._ready, self._looked = True, float("-inf")
            self._queue.append("READY=1")
        else:
            self._tell_reload(supervisor.reloader.describe())
        if now >= self._looked + _STATUS_SECONDS:
            self._looked = now
            text = self._text(supervisor)
            if text != self._status:
                self._status = text
                self._queue.append(f"STATUS={text}")
        if (self._stopping or not self._ready) and now >= self._extended + _EXTEND_SECONDS:
            self._extended = now
            self._queue.append(f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1_000_000}")
        if self._flush() and self.interval and now >= self._alive + self.interval:
            self._alive = now if self._send("WATCHDOG=1") else self._alive

    def stopping(self) -> None:
        """Say that the end has begun; once, whoever asks."""
        if not self._stopping:
            self._stopping, self._looked = True, float("-inf")
            self._queue.append("STOPPING=1")
            self._flush()

    def close(self) -> None:
        """Say that the end has begun, if nobody has yet; then nothing more."""
        self.stopping()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell_reload(self, reload: dict[str, object]) -> None:
        """Say that a reload has begun and that it is over, whether it is in force or refused."""
        if not self._ready or not reload:
            return
        number, over = int(str(reload["number"])), reload["state"] in ("in_force", "refused")
        told, told_over = self._reload
        if number != told:
            stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._queue.append(f"RELOADING=1\nMONOTONIC_USEC={stamp}")
            told_over = False
        if over and not told_over:
            self._queue.append("READY=1")
        self._reload = number, over

    def _text(self, supervisor: Supervisor) -> str:
        """One line for ``systemctl status``."""
        table, spool = supervisor.lifecycle.table, supervisor.spool_watch
        faults = ailments(supervisor)
        visits = sum(entry.unfinished for entry in table.visits.values())
        how = health(supervisor, bool(faults)) if self._ready else "starting"
        parts = [
            f"{'stopping' if self._stopping else how}: {visits} visits at work, {len(table.live())} children",
            f"{spool.entries} hand-overs in the spool ({spool.bytes / 1e6:.1f} MB)",
        ]
        reason = None if self._ready else why_not_able(supervisor)
        if not self._stopping and (reason or faults):
            parts.append(reason or faults[0].text)
        # Anyone on the machine may ask systemd for it.
        return mask_secrets(" ".join("; ".join(parts).split()))[:_MAX_TEXT]

    def _flush(self) -> bool:
        """Send what waits; whether nothing does any more."""
        while self._queue:
            if not self._send(self._queue[0]):
                return False
            self._queue.popleft()
        return True

    def _send(self, text: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto(text.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError:
            # A manager that is not there will not be missed.
            return True
        return True
