"""The nurseries of all deployments that have visits at work: one for new visits, and older ones."""

from __future__ import annotations

__all__ = ["Nurseries"]

import logging
import time
from collections.abc import Iterable
from typing import Any

from ..config import Settings
from ..messages import ForkRequest, NurseryPrepared, NurseryReady, PrepareNursery
from .nursery_keeper import Inherited, NurseryKeeper

_LOG = logging.getLogger(__name__)

_LEAVE_SECONDS = 10.0


class Nurseries:
    """A nursery for each generation of a deployment.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Those of the first generation, number 0.
    """

    def __init__(self, settings: Settings):
        self._keepers: dict[int, NurseryKeeper] = {}
        self._candidate: NurseryKeeper | None = None
        self._leaving: list[tuple[NurseryKeeper, float]] = []
        self._released: list[str] = []
        self._keepers[0] = NurseryKeeper(settings, self._others)

    @property
    def _current(self) -> NurseryKeeper:
        return self._keepers[max(self._keepers)]

    def _all(self) -> list[NurseryKeeper]:
        return [*self._serving(), *([self._candidate] if self._candidate is not None else [])]

    def _serving(self) -> list[NurseryKeeper]:
        """All but the candidate, which is asked for its first word alone."""
        return [*self._keepers.values(), *(keeper for keeper, _ in self._leaving)]

    def _others(self, keeper: NurseryKeeper) -> set[int]:
        return {pid for k in self._all() if k is not keeper for pid in k.pids}

    # Of the one for new visits

    @property
    def was_killed(self) -> bool:
        """Whether the last one was ended by a signal: another may do better."""
        return self._current.was_killed

    @property
    def ready(self) -> bool:
        """Whether new visits have one."""
        return self._current.ready

    @property
    def trouble(self) -> str | None:
        """Why they have none."""
        return self._current.trouble

    @property
    def inherited(self) -> Inherited:
        """What its children inherit."""
        return self._current.inherited

    # Of all

    @property
    def pids(self) -> set[int]:
        """Process IDs of all nurseries, and of children that have lost theirs."""
        return {pid for keeper in self._all() for pid in keeper.pids}

    def filenos(self) -> list[int]:
        """Descriptors that become readable when a nursery says something."""
        return [number for keeper in self._serving() if (number := keeper.fileno()) != -1]

    def fork(self, request: ForkRequest, generation: int) -> bool:
        """Ask the nursery of a generation for a child; `False`: there is none now."""
        keeper = self._keepers.get(generation)
        return keeper is not None and keeper.fork(request)

    def prepare(self, request: PrepareNursery) -> None:
        """Have them all read inputs for their children."""
        for keeper in self._all():
            keeper.prepare(request)

    def receive(self) -> list[Any]:
        """Return what they have said of children."""
        messages = []
        for keeper in self._serving():
            for message in keeper.receive():
                if isinstance(message, NurseryPrepared):
                    self._release(keeper.prepared(message))
                else:
                    messages.append(message)
        return messages

    def take_released(self) -> list[str]:
        """Return leases that no nursery needs any more."""
        released, self._released = self._released, []
        return released

    def check(self) -> list[tuple[int, set[int]]]:
        """Look after them.

        Returns
        -------
        lost : `list` [ `tuple` [ `int`, `set` [ `int` ] ] ]
            Generation of each that has just ended, and the children that it
            has left.
        """
        lost = []
        for generation, keeper in self._keepers.items():
            orphans = keeper.check()
            if orphans is not None:
                lost.append((generation, orphans))
        now = time.monotonic()
        for keeper, until in list(self._leaving):
            if keeper.gone(kill=now > until):
                self._leaving.remove((keeper, until))
        return lost

    def flush(self) -> None:
        """Write what the pipes take now."""
        for keeper in self._all():
            keeper.flush()

    def set_max_age(self, seconds: float) -> None:
        """Set the age at which a fresh nursery takes over."""
        for keeper in self._keepers.values():
            keeper.max_age = seconds

    def stop(self, timeout: float) -> None:
        """End them all and all children; bounded."""
        deadline = time.monotonic() + timeout
        for keeper in self._all():
            keeper.stop(max(0.2, min(timeout, deadline - time.monotonic())))
        self._candidate, self._leaving = None, []

    # Reload

    def begin_candidate(self, settings: Settings) -> None:
        """Start a nursery that may become that of the next generation."""
        self.drop_candidate()
        self._candidate = NurseryKeeper(settings, self._others)

    def candidate_word(self) -> NurseryReady | str | None:
        """Return what the candidate has built, or why there is nothing; `None`: not yet."""
        return self._candidate.first_word() if self._candidate is not None else "there is none"

    def drop_candidate(self) -> None:
        """End the candidate."""
        if self._candidate is not None:
            self._leave(self._candidate, 0.0)
            self._candidate = None

    def promote(self, generation: int) -> None:
        """Let the candidate work for new visits."""
        assert self._candidate is not None
        self._keepers[generation] = self._candidate
        self._candidate = None

    def retire(self, wanted: Iterable[int]) -> None:
        """Let those end that no visit needs: neither one of these generations nor a new one."""
        for generation in [g for g in self._keepers if g not in {*wanted, max(self._keepers)}]:
            _LOG.info("The last visit of deployment generation %d is over; its nursery ends.", generation)
            self._leave(self._keepers.pop(generation), _LEAVE_SECONDS)

    def _leave(self, keeper: NurseryKeeper, seconds: float) -> None:
        self._leaving.append((keeper, time.monotonic() + seconds))
        keeper.leave()
        held, keeper.leases = keeper.leases, []
        self._release(held)

    def _release(self, holders: list[str]) -> None:
        needed = {holder for keeper in self._all() for holder in keeper.leases}
        self._released += [holder for holder in holders if holder not in needed]
