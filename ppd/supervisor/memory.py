"""Looking at how much memory children use, where the kernel does not keep them to their limit."""

from __future__ import annotations

__all__ = ["MemoryWatch", "exceeded"]

import signal

from .deadlines import terminate
from .processes import family, private_bytes, resident_bytes
from .table import DetectorVisit

# A task's own allocations fail at the limit; what is over it is what has got
# around that, and a little is not worth a detector-visit.
_FAR = 1.25
_INTERVAL = 1.0


class MemoryWatch:
    """Ends children that use far more memory than they may.

    Parameters
    ----------
    enabled : `bool`
        Whether to look: not where the kernel does.
    """

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._next = 0.0

    def check(self, live: list[DetectorVisit], now: float) -> None:
        """Look at all children, once a second.

        Parameters
        ----------
        live : `list` [ `ppd.supervisor.table.DetectorVisit` ]
            Those that have a child.
        now : `float`
            Monotonic seconds.
        """
        if not self._enabled or now < self._next:
            return
        self._next = now + _INTERVAL
        for d in live:
            limit = d.child_memory
            if limit is None or d.pid is None or d.exited_at is not None or d.terminated_at is not None:
                continue
            used = self._used(d.pid, limit)
            if used > _FAR * limit:
                exceeded(d, used, limit)
                terminate(d, d.termination, signal.SIGKILL)

    def _used(self, pid: int, limit: int) -> int:
        members = family(pid)
        # To see what they share with others takes the kernel some time.
        resident = sum(map(resident_bytes, members))
        return resident if resident <= limit else sum(map(private_bytes, members))


def exceeded(d: DetectorVisit, used: int, limit: int) -> None:
    """Note on a detector-visit why it is ended: another try would use as much again."""
    d.may_retry = False
    d.termination = d.termination or (
        f"it used {used / 1e6:.0f} MB of memory, more than its limit of {limit / 1e6:.0f} MB"
    )
