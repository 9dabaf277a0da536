"""Playing the soak: announcements, raws that land, and children that are killed."""

from __future__ import annotations

__all__ = ["DetectorFate", "Play"]

import contextlib
import dataclasses
import heapq
import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from ppd.control import NoSupervisorError

from .demo_visit import DemoVisit
from .soak_kills import Executioner, draw_doom
from .soak_raws import BAD_KINDS, Delivery, RawPlan, land, make_visit, plan_raw, read_biases
from .soak_site import Site
from .soak_usage import Usage

_TURN_SECONDS = 0.004
_JOURNAL_SECONDS = 0.02
_STALL_SECONDS = 150.0
_BAD = 1 / 5
_DOOMED = 1 / 10
_DOOMED_TWICE = 1 / 8
_DUPLICATES = 1 / 4


@dataclasses.dataclass
class DetectorFate:
    """One detector-visit: what is done to it, and what is seen of it."""

    visit: DemoVisit
    detector: int
    plan: RawPlan
    ended: str = ""
    """``exported`` or ``failed``, once the journal has the event."""
    events: list[str] = dataclasses.field(default_factory=list)
    begun: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """Group and detector."""
        return self.visit.group, self.detector


class Play:
    """The play, in one thread.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        Where ppd runs.
    visits, detectors, seed : `int`
        How many, and the seed of all chance.
    say : callable
        Called with a line about how far it is, now and then.
    """

    def __init__(self, site: Site, visits: int, detectors: int, seed: int, say: Callable[[str], None]):
        self._site = site
        self._visits, self._detectors = visits, detectors
        self._seed = seed
        self._rng = np.random.default_rng(seed)  # for what depends on ppd's own pace
        self._say = say
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._seen = 0
        self._journal_due = 0.0
        self._last_news = time.monotonic()
        self._biases = read_biases(site.central)
        self._owed = 0.0
        self._nursery = site.nursery()
        self.executioner = Executioner(site.settings.spool_dir, self._nursery.pid, self._rng)
        self.usage = Usage()
        self.fates: dict[tuple[str, int], DetectorFate] = {}
        self.faults: list[str] = []
        """What ppd answered or did that it should not have."""
        self.replies: Counter[str] = Counter()
        self.status: dict[str, Any] = {}
        self.busy_seconds = 0.0

    def run(self) -> None:
        """Play until all has ended, or nothing happens any more."""
        begin = time.monotonic()
        path = self._site.settings.state_dir / "journal.sqlite3"
        # Its own connection: the journal is ppd's, and only read.
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0, isolation_level=None)
        ) as journal:
            announced, over = 0, set[str]()
            assert self._site.process is not None
            supervisor = psutil.Process(self._site.process.pid)
            while True:
                now = time.monotonic()
                while self._actions and self._actions[0][0] <= now:
                    heapq.heappop(self._actions)[2]()
                self.executioner.turn()
                if now >= self._journal_due:
                    self._journal_due = now + _JOURNAL_SECONDS
                    for group in self._read(journal) - over:
                        if all(f.ended for f in self._of(group)):
                            over.add(group)
                            self.usage.sample(supervisor=supervisor, nursery=self._nursery)
                            if len(over) % 10 == 0:
                                self._tell(len(over), announced, now - begin)
                    open_ = sum(not f.ended for f in self.fates.values())
                    room = self._site.settings.slots - open_ >= self._detectors
                    if announced < self._visits and room:
                        self._announce(announced)
                        announced += 1
                if announced == self._visits and not self._actions and len(over) == self._visits:
                    break
                if self._site.process.poll() is not None:
                    self.faults.append(f"ppd ended with {self._site.process.returncode} amid the night")
                    break
                if now > self._last_news + _STALL_SECONDS:
                    self.faults.append(f"nothing has happened for {_STALL_SECONDS:.0f} s")
                    break
                time.sleep(_TURN_SECONDS / 8 if self.executioner.hasty else _TURN_SECONDS)
            self.busy_seconds = time.monotonic() - begin
            with contextlib.suppress(NoSupervisorError):
                self.status = self._site.client.status()

    def _of(self, group: str) -> list[DetectorFate]:
        return [self.fates[group, d] for d in range(self._detectors)]

    def _tell(self, over: int, announced: int, seconds: float) -> None:
        ended = Counter(f.ended for f in self.fates.values())
        hit = sum(d.outcome == "hit" for k in self.fates for d in self.executioner.of(k))
        self._say(
            f"{over} of {announced} announced visits are over after {seconds:.0f} s: "
            f"{ended['exported']} exported, {ended['failed']} failed, {hit} kills."
        )

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._actions, (time.monotonic() + seconds, next(self._order), action))

    # Announcing

    def _announce(self, number: int) -> None:
        rng = np.random.default_rng([self._seed, number])
        visit = make_visit(number, rng)
        lead = float(rng.uniform(0.2, 1.5))
        early = rng.random() < 0.1  # its raws are there before its announcement
        for detector in range(self._detectors):
            fate = self._plan(visit, detector, rng)
            self.fates[fate.key] = fate
            delay = 0.0
            for delivery in fate.plan.deliveries:
                if delivery.when == "normal":
                    delay = float(rng.uniform(0.0, 0.8 if early else lead))
                elif delivery.when == "second":
                    delay += float(rng.uniform(0.3, 1.2))
                else:
                    continue
                self._later(delay, lambda f=fate, d=delivery: self._deliver(f, d))
        whole = self._detectors == 9 and rng.random() < 0.75
        self._later(0.8 if early else 0.0, lambda: self._submit(visit, whole, again=False))
        if rng.random() < _DUPLICATES:
            again = float(rng.choice([rng.uniform(0.0, 1.0), rng.uniform(1.0, 20.0)]))
            half = bool(rng.random() < 0.5)
            self._later(0.85 + again, lambda: self._submit(visit, half, again=True))

    def _plan(self, visit: DemoVisit, detector: int, rng: np.random.Generator) -> DetectorFate:
        kind = str(rng.choice(list(BAD_KINDS))) if rng.random() < _BAD else None
        fate = DetectorFate(visit, detector, plan_raw(visit, detector, rng, self._biases[detector], kind))
        # Some come too late: the next ones get what they missed.
        self._owed += _DOOMED
        if rng.random() < min(0.5, max(0.0, self._owed - self._hits_or_planned())):
            dooms = [draw_doom(rng)]
            if rng.random() < _DOOMED_TWICE:
                dooms.append(draw_doom(rng, attempt=2))
            self.executioner.doom(fate.key, dooms)
        return fate

    def _hits_or_planned(self) -> int:
        return sum(
            any(d.outcome != "missed" for d in dooms)
            for dooms in (self.executioner.of(key) for key in self.fates)
        )

    def _submit(self, visit: DemoVisit, whole: bool, again: bool) -> None:
        changes: list[dict[str, Any]] = [{}]
        if not (whole and self._detectors == 9):
            changes = [{"detector": d} for d in range(self._detectors)]
        if again and not whole:
            changes = changes[:1]
        for change in changes:
            try:
                reply = self._site.client.submit({**visit.message(), **change})
            except NoSupervisorError as e:
                self.faults.append(f"visit {visit.group}: {e}")
                continue
            code = "accepted" if reply.ok else reply.code or "?"
            self.replies[code] += 1
            if code != ("duplicate" if again else "accepted"):
                self.faults.append(
                    f"visit {visit.group}, {'again' if again else 'first'}: {code} {reply.error}"
                )
        self._last_news = time.monotonic()

    # Raws

    def _deliver(self, fate: DetectorFate, delivery: Delivery) -> None:
        if self.executioner.holds_raw(fate.key) and not fate.ended:
            self._later(0.05, lambda: self._deliver(fate, delivery))
            return
        finish = land(self._site.raws, fate.visit, fate.detector, delivery)
        if finish is not None:
            self._later(0.1, finish)

    # What is seen

    def _read(self, journal: sqlite3.Connection) -> set[str]:
        """Take the journal's news; return the groups of which there are some."""
        rows = journal.execute(
            "SELECT id, group_name, detector, name, detail FROM event WHERE id > ? ORDER BY id", (self._seen,)
        ).fetchall()
        groups = set()
        for number, group, detector, name, detail in rows:
            self._seen = number
            self._last_news = time.monotonic()
            fate = self.fates.get((group, detector))
            if fate is not None:
                groups.add(group)
                self._take(fate, name, json.loads(detail))
        return groups

    def _take(self, fate: DetectorFate, name: str, detail: dict[str, Any]) -> None:
        fate.events.append(name)
        self.executioner.saw(fate.key, name, detail)
        if name == "ready" and fate.events.count("ready") == 1:
            timeout = self._site.settings.image_timeout
            for delivery in fate.plan.deliveries:
                if delivery.when == "late":
                    delay = timeout * float(self._rng.uniform(0.3, 0.6))
                    self._later(delay, lambda d=delivery: self._deliver(fate, d))
        if name in ("exported", "failed") and not fate.ended:
            fate.ended = name
            self.executioner.over(fate.key)
            for delivery in fate.plan.deliveries:
                if delivery.when == "over":
                    delay = float(self._rng.uniform(0.0, 1.0))
                    self._later(delay, lambda d=delivery: self._deliver(fate, d))
