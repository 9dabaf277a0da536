"""Asking again and again, by a few threads, without end and without haste."""

from __future__ import annotations

__all__ = ["Look", "Poller", "Trouble"]

import dataclasses
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

_LOG = logging.getLogger(__name__)

_FIRST_DELAY = 0.25
# A trouble is over when there was none for so long after the first success:
# a server that is too busy lets some requests through.
_CALM_SECONDS = 2.0
_STOP_SECONDS = 2.0


class Trouble(NamedTuple):
    """What is wrong with the server that is asked."""

    text: str
    everywhere: bool
    """Whether other questions would fare no better."""


class Look(Protocol):
    """Something to look at again and again."""

    def look(self) -> None:
        """Look once; may raise anything."""

    def interval(self) -> float | None:
        """Seconds until the next look; `None`: none, until somebody hurries it."""


@dataclasses.dataclass
class _Slot:
    due: float
    busy: bool = False
    hurried: bool = False
    failures: int = 0
    trouble: str | None = None


class Poller:
    """Threads that look at what is due, and what is wrong with the server.

    While something is wrong that concerns all, one question at a time is
    asked, with growing pauses.

    Parameters
    ----------
    name : `str`
        What is asked, for people.
    workers : `int`
        How many threads.
    longest : `float`
        The longest pause while something is wrong, seconds.
    explain : callable
        Tells what an exception means; `None`: it is a defect of ours.
    troubled : callable, optional
        Called when something begins to be wrong that concerns all.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        longest: float,
        explain: Callable[[Exception], Trouble | None],
        troubled: Callable[[], None] = lambda: None,
    ):
        self._name = name
        self._longest = longest
        self._explain = explain
        self._troubled = troubled
        self._slots: dict[Look, _Slot] = {}
        lock = threading.Lock()
        # One idle thread watches the clock, the others wait until it has found
        # something to do: all of them would wake for each look.
        self._clock = threading.Condition(lock)
        self._idle = threading.Condition(lock)
        self._watched = False
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"raw-poll-{i}", daemon=True) for i in range(workers)
        ]
        # What is wrong with all, and since when it is not any more.
        self._trouble: str | None = None
        self._told: set[str] = set()
        self._since = 0.0
        self._failures = 0
        self._resume_at = -math.inf
        self._well_since: float | None = None
        self._probing = False
        # What is wrong with some only.
        self._of_some: str | None = None

    @property
    def trouble(self) -> str | None:
        """What is wrong now."""
        return self._trouble or self._of_some

    @property
    def in_vain(self) -> bool:
        """Whether nothing can be asked now."""
        return self._trouble is not None and self._well_since is None

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; bounded."""
        with self._clock:
            self._stopping = True
            self._clock.notify_all()
            self._idle.notify_all()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def add(self, look: Look, delay: float = 0.0) -> None:
        """Look at something from now on."""
        with self._clock:
            if look not in self._slots:
                self._slots[look] = _Slot(time.monotonic() + delay)
                self._clock.notify()

    def remove(self, look: Look) -> None:
        """Look at it no more."""
        with self._clock:
            self._slots.pop(look, None)
            self._tell_of_some()

    def hurry(self, looks: Iterable[Look] | None = None) -> None:
        """Look at some, or all, of it now."""
        with self._clock:
            for look in list(self._slots) if looks is None else looks:
                slot = self._slots.get(look)
                if slot is not None and not slot.failures:
                    slot.due = min(slot.due, time.monotonic())
                    slot.hurried = slot.busy
            self._clock.notify()

    def _run(self) -> None:
        while (found := self._await()) is not None:
            look, slot = found
            error: Exception | None = None
            try:
                look.look()
            except Exception as e:
                error = e
            try:
                begins = self._note(look, slot, error)
                if begins:
                    self._troubled()
            except Exception:
                _LOG.exception("%s: a defect; the thread goes on.", self._name)
                with self._clock:
                    slot.busy = self._probing = False
                    slot.due = time.monotonic() + self._longest

    def _await(self) -> tuple[Look, _Slot] | None:
        """Wait for something to be due; `None`: it is over."""
        with self._clock:
            while not self._stopping:
                found = self._next()
                if found is not None:
                    found[1].busy = True
                    self._probing = self.in_vain
                    self._idle.notify()
                    return found
                if self._watched:
                    self._idle.wait()
                    continue
                self._watched = True
                self._clock.wait(self._pause())
                self._watched = False
                self._tell_of_calm()
        return None

    def _next(self) -> tuple[Look, _Slot] | None:
        now = time.monotonic()
        if self.in_vain and (self._probing or now < self._resume_at):
            return None
        idle = ((slot.due, i, look, slot) for i, (look, slot) in enumerate(self._slots.items()))
        first = min((x for x in idle if not x[3].busy and x[0] <= now), default=None, key=lambda x: x[:2])
        return None if first is None else (first[2], first[3])

    def _pause(self) -> float:
        now = time.monotonic()
        due = min((s.due for s in self._slots.values() if not s.busy), default=math.inf)
        if self.in_vain:
            due = math.inf if self._probing else max(due, self._resume_at)
        return min(1.0, max(0.005, due - now))

    def _note(self, look: Look, slot: _Slot, error: Exception | None) -> bool:
        """Plan the next look, and say what begins or ends to be wrong; whether it concerns all."""
        begins = False
        trouble = None
        if error is not None:
            trouble = self._explain(error)
            if trouble is None:
                trouble = Trouble(f"{type(error).__name__}: {error}", everywhere=False)
                if slot.trouble is None:
                    _LOG.error("%s: a defect; it goes on.", self._name, exc_info=error)
        interval = look.interval()
        with self._clock:
            now = time.monotonic()
            slot.busy = False
            if self._probing:
                self._probing = False
            if trouble is not None and trouble.everywhere:
                begins = self._trouble is None
                self._all_fail(trouble.text, now)
                slot.due = now
            elif trouble is not None:
                slot.failures += 1
                slot.trouble = trouble.text
                slot.due = now + self._delay(slot.failures)
            else:
                slot.failures, slot.trouble = 0, None
                slot.due = math.inf if interval is None else now + interval * random.uniform(0.9, 1.1)
                if self._trouble is not None and self._well_since is None:
                    self._well_since = now
            if slot.hurried:
                slot.hurried = False
                slot.due = min(slot.due, now)
            if trouble is not None or self._of_some is not None:
                self._tell_of_some()
            self._tell_of_calm()
            self._clock.notify()
        return begins

    def _delay(self, failures: int) -> float:
        return min(self._longest, _FIRST_DELAY * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)

    def _all_fail(self, text: str, now: float) -> None:
        if self._trouble is None:
            self._since = now
            self._failures = 0
            self._told.clear()
        if _kind(text) not in self._told:
            self._told.add(_kind(text))
            _LOG.error("%s: %s. It is tried again.", self._name, text)
        if now >= self._resume_at:  # not what was on its way already
            self._failures += 1
            self._resume_at = now + self._delay(self._failures)
        self._trouble = text
        self._well_since = None

    def _tell_of_calm(self) -> None:
        well, now = self._well_since, time.monotonic()
        if self._trouble is None:
            return
        if well is not None and now >= well + _CALM_SECONDS:
            _LOG.warning("%s: well again after %.1f s.", self._name, well - self._since)
        elif not self._slots:
            _LOG.warning("%s: nothing is asked any more, so it is not known how it is.", self._name)
        else:
            return
        self._trouble = self._well_since = None

    def _tell_of_some(self) -> None:
        texts = [s.trouble for s in self._slots.values() if s.trouble is not None]
        if texts and self._of_some is None:
            _LOG.error("%s: %s. It is tried again.", self._name, texts[0])
        elif not texts and self._of_some is not None:
            _LOG.warning("%s: no more %s.", self._name, _kind(self._of_some))
        self._of_some = texts[0] if texts else None


def _kind(text: str) -> str:
    return text.partition(":")[0]
