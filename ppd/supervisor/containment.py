"""What a child and its tasks leave behind is found, ended and removed; all of it by one object."""

from __future__ import annotations

__all__ = ["Containment", "mark_prefix"]

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import Settings
from ..logs import bound
from ..messages import MARK_BYTES, own_folder
from .cgroups import Cgroups
from .counters import Counters
from .endings import local_repo
from .memory import MemoryWatch, exceeded
from .segments import remove_segments
from .strays import Stray, Strays, end_left_behind
from .table import DetectorVisit

_LOG = logging.getLogger(__name__)

# For processes that the kernel does not let go.
_PATIENCE = 5.0
_SWEEP_SECONDS = 1.0
_REMEMBERED = 1000


@dataclasses.dataclass(frozen=True)
class _Owner:
    """Whose a process is."""

    mark: str
    group: str
    detector: int
    name: str


class Containment:
    """Control groups, strays, shared memory and memory limits of all children.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    counters : `ppd.supervisor.counters.Counters`
        Where strays are counted.
    nurseries : callable
        Process IDs of the nurseries and of children that have lost theirs.
    """

    def __init__(self, settings: Settings, counters: Counters, nurseries: Callable[[], set[int]]):
        self._settings = settings
        self._counters = counters
        self._nurseries = nurseries
        self._prefix = mark_prefix(settings)
        self._suspect = ""
        self._children: set[int] = set()
        self._owners: collections.OrderedDict[str | int, _Owner] = collections.OrderedDict()
        self._swept = 0.0
        self.cgroups = Cgroups(settings.child_memory)
        self._groups: dict[str, Path] = {}
        self._strays = Strays(self._kept, self._attribute, self._was_killed)
        self._memory = MemoryWatch(not self.cgroups.memory)

    def end_left_behind(self, grace: float) -> None:
        """Let children of an earlier supervisor end, and remove what they have left outside their repos.

        Parameters
        ----------
        grace : `float`
            Seconds that they have to end by themselves.
        """
        end_left_behind(self._prefix, grace)
        for folder in self._settings.local_repos.glob("ppd-*.own"):
            remove_segments(folder)

    def mark(self, d: DetectorVisit) -> str:
        """What the processes of a detector-visit's attempt are known by."""
        room = MARK_BYTES - len(self._prefix)
        return self._prefix + d.key.file_name[-room:]

    def prepare(self, d: DetectorVisit) -> Path | None:
        """Get ready for a child; return the control group that it should join, if any."""
        self._owners[self.mark(d)] = self._owner(d)
        while len(self._owners) > _REMEMBERED:
            self._owners.popitem(last=False)
        self.cgroups.limit = d.child_memory
        group = self.cgroups.make(d.key.file_name)
        if group is not None:
            self._groups[self.mark(d)] = group
        return group

    def turn(self, live: Sequence[DetectorVisit], now: float) -> None:
        """Do what is due: end children that use too much, and strays that nobody waits for.

        Parameters
        ----------
        live : sequence of `ppd.supervisor.table.DetectorVisit`
            Those that have a child.
        now : `float`
            Monotonic seconds.
        """
        self._children = {d.pid for d in live if d.pid is not None and d.exited_at is None}
        for d in live:
            if d.pid is not None:
                self._owners[d.pid] = self._owner(d)
        ended = [d for d in live if d.exited_at is not None]
        self._suspect = self.mark(ended[0]) if len(ended) == 1 else ""
        self._memory.check(list(live), now)
        if now > self._swept + _SWEEP_SECONDS:
            self._swept = now
            self._strays.sweep()

    def cleared(self, d: DetectorVisit, now: float) -> bool:
        """End and remove what a child has left that has ended itself.

        Parameters
        ----------
        d : `ppd.supervisor.table.DetectorVisit`
            Its detector-visit.
        now : `float`
            Monotonic seconds.

        Returns
        -------
        cleared : `bool`
            Whether nothing is left; if not, ask again at the next turn.
        """
        mark = self.mark(d)
        if d.pid is not None:
            self._children.discard(d.pid)
        self._strays.sweep()
        left = self._strays.left_by(mark)
        group = self._groups.get(mark)
        if group is not None and not left:
            # Whatever it is, it is not below us; it can't leave its group.
            left = self.cgroups.processes(group)
            if left:
                self.cgroups.kill(group)
        patient = d.exited_at is not None and now < d.exited_at + _PATIENCE
        if left and patient:
            return False
        if left:
            _LOG.error("Processes that %s has left do not end: %s", d.key, left)
        if group is not None:
            self._note_memory(d, group)
            if not self.cgroups.remove(group) and patient:
                return False
            del self._groups[mark]
        removed = remove_segments(own_folder(local_repo(self._settings, d)))
        if removed:
            with bound(group=d.group, detector=d.detector):
                _LOG.warning("Detector-visit %s left %d segments of shared memory; removed.", d.key, removed)
        return True

    def close(self, timeout: float) -> None:
        """End all that is left of children when they and the nurseries have ended; bounded."""
        self._children = set()
        self._strays.clear(timeout)
        for folder in self._settings.local_repos.glob("ppd-*.own"):
            remove_segments(folder)
        self.cgroups.close()

    def _kept(self) -> set[int]:
        return self._nurseries() | self._children

    def _owner(self, d: DetectorVisit) -> _Owner:
        return _Owner(self.mark(d), d.group, d.detector, str(d.key))

    def _attribute(self, mark: str, session: int) -> str:
        """Say who has left a process; one that hides it was left by the child that has just ended."""
        owner = self._owners.get(mark) or self._owners.get(session)
        if owner is None:
            # As the first process of a container we get anybody's.
            return "" if os.getpid() == 1 else self._suspect
        return owner.mark

    def _was_killed(self, stray: Stray) -> None:
        owner = self._owners.get(stray.mark)
        name = owner.name if owner else "an unknown detector-visit"
        self._counters.error("strays_killed", name, f"process {stray.pid} was left: {stray.command}")
        with bound(group=owner and owner.group, detector=owner and owner.detector):
            _LOG.warning("Process %d, left by %s, was killed: %s", stray.pid, name, stray.command)

    def _note_memory(self, d: DetectorVisit, group: Path) -> None:
        used = self.cgroups.exceeded(group)
        if used is not None and d.child_memory is not None and not (d.done and d.done.success):
            exceeded(d, used, d.child_memory)


def mark_prefix(settings: Settings) -> str:
    """What the marks of one ppd's children begin with: several may run on a machine.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Each has a state directory of its own.

    Returns
    -------
    prefix : `str`
        See `ppd.messages.CHILD_VARIABLE`.
    """
    return hashlib.sha256(str(settings.state_dir.resolve()).encode()).hexdigest()[:12] + ":"
