"""The soak's storm: visits and raws as planned, faults amid them, and ppd started again whenever it dies."""

from __future__ import annotations

__all__ = ["Fate", "Recovery", "Storm"]

import contextlib
import dataclasses
import heapq
import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppd.control import ControlClient, NoSupervisorError
from ppd.visit import TAI_MINUS_UTC

from .demo_visit import DemoVisit
from .servers import PostgresServer
from .soak_disk import SoakDisk
from .soak_faults import Faults
from .soak_raws import BAD_KINDS, Delivery, RawPlan, land, make_visit, plan_raw, read_biases
from .soak_schedule import Announcement, Schedule
from .soak_site import Site
from .soak_watch import SpoolWatch, Submission, Submitter

_TURN_SECONDS = 0.003
_JOURNAL_SECONDS = 0.05
_ASK_SECONDS = 0.1
_RESTART_SECONDS = 0.5
_BAD = 0.12
_STALE_SECONDS = 7200.0
_MOST_OPEN = 24
# On a slow machine a start takes so long that the faults would hit nothing but
# starts: after so many seconds, the time of the plan stands still until ppd answers.
_START_SECONDS = 5.0
_LONGEST = 1.5
_LONGEST_QUIET = 4.0


@dataclasses.dataclass
class Fate:
    """One detector-visit: what is done to it, and what is seen of it."""

    visit: DemoVisit
    detector: int
    plan: RawPlan
    ended: str = ""
    """``exported`` or ``failed``, once the journal has the event."""
    begun: float = 0.0
    over: float | None = None
    """Monotonic seconds."""

    @property
    def key(self) -> tuple[str, int]:
        """Group and detector."""
        return self.visit.group, self.detector


@dataclasses.dataclass
class Recovery:
    """A start of ppd after its end."""

    begin: float
    """When it ended, seconds after the start."""
    seconds: float | None = None
    """Until it answered; `None`: it has not yet."""
    starts: int = 0
    amid: list[str] = dataclasses.field(default_factory=list)
    """Faults that lasted meanwhile."""


class Storm:
    """The storm, in one thread and two that listen.

    Parameters
    ----------
    site : `bench.soak_site.Site`
        Where ppd runs.
    schedule : `bench.soak_schedule.Schedule`
        What is planned.
    server, disk, clock
        See `bench.soak_faults.Faults`.
    log : `pathlib.Path`
        File for what happened when.
    say : callable
        Called with a line about how far it is, now and then.
    """

    def __init__(
        self,
        site: Site,
        schedule: Schedule,
        server: PostgresServer,
        disk: SoakDisk,
        clock: Path,
        log: Path,
        say: Callable[[str], None],
    ):
        self._site, self._schedule, self._say = site, schedule, say
        self._log = log
        self._start = self._news = self._turned = time.monotonic()
        self._stood_still = 0.0
        self._calm = False
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._visits = list(reversed(schedule.visits))
        self._biases = read_biases(site.central)
        self._asker = ControlClient(site.settings.socket_dir)
        self._seen = 0
        self._journal_due = self._ask_due = self._launch_due = 0.0
        self._recovering: Recovery | None = None
        self.watch = SpoolWatch(site.settings.spool_dir)
        self.submitter = Submitter(site.settings.socket_dir)
        self.faults = Faults(site, server, disk, clock, self.watch, self.note)
        self.fates: dict[tuple[str, int], Fate] = {}
        self.kinds: Counter[str] = Counter()
        """Faults that lie in what ppd is sent."""
        self.recoveries: list[Recovery] = []
        self.wrong: list[str] = []
        """What ppd did that it should not have."""
        self.quiet_seconds = 0.0

    def note(self, line: str) -> None:
        """Write down what happens."""
        with self._log.open("a") as stream:
            stream.write(f"{self._now():9.3f} ({self._wall():9.3f}) {line}\n")

    def run(self, quiet_seconds: float) -> None:
        """Let all happen, then wait until all is over.

        Parameters
        ----------
        quiet_seconds : `float`
            How long to wait for that at most after the last sign of life; four times that in all.
        """
        self.watch.start()
        self.submitter.start()
        try:
            self._start = self._turned = time.monotonic()
            for fault in self._schedule.faults:
                self._later(fault.at, lambda f=fault: None if self._calm else self.faults.begin(f))
            minutes = itertools.count(1)
            tell = next(minutes)
            while self._now() < self._schedule.seconds or self._visits:
                self._turn()
                if self._wall() > _LONGEST * self._schedule.seconds:
                    break
                if self._now() > 60 * tell:
                    self._tell(tell)
                    tell = next(minutes)
            self._be_quiet(quiet_seconds)
        finally:
            self.faults.heal()
            self.submitter.stop()
            self._asker.close()
            self.wrong += [*self.submitter.faults, *self.watch.faults]

    def _be_quiet(self, seconds: float) -> None:
        self._say("The faults are over; waiting until all is.")
        self.note("the faults are over")
        self._calm = True
        self._visits.clear()
        self.faults.heal()
        begin = self._news = time.monotonic()
        while time.monotonic() < min(self._news + seconds, begin + _LONGEST_QUIET * seconds):
            self._turn()
            over = all(f.ended for f in self.fates.values())
            if over and not self._actions and not self.submitter.unanswered() and self._recovering is None:
                break
        self.quiet_seconds = time.monotonic() - begin
        self.wrong += [
            f"{s.group}: never answered, tried {s.tries} times" for s in self.submitter.unanswered()
        ]
        if self._recovering is not None:
            self.wrong.append(f"ppd did not start again, tried {self._recovering.starts} times")
        self.note("drain")
        with contextlib.suppress(NoSupervisorError):
            if not self._asker.drain(30.0):
                self.wrong.append("ppd says that it is not drained")

    def _turn(self) -> None:
        now = time.monotonic()
        recovering = self._recovering
        if recovering is not None and self._wall() > recovering.begin + _START_SECONDS:
            self._stood_still += now - self._turned
        self._turned = now
        while self._actions and self._actions[0][0] <= self._now():
            heapq.heappop(self._actions)[2]()
        self.faults.turn()
        self._look_after_ppd()
        while self._visits and self._visits[-1].at <= self._now() and self._open() < _MOST_OPEN:
            self._announce(self._visits.pop())
        if now >= self._journal_due:
            self._journal_due = now + _JOURNAL_SECONDS
            with contextlib.suppress(sqlite3.Error):  # the disk has its faults
                self._read_journal()
        time.sleep(_TURN_SECONDS)

    def _wall(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def _now(self) -> float:
        """Seconds of the plan."""
        return self._wall() - self._stood_still

    def _later(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._actions, (at, next(self._order), action))

    def _open(self) -> int:
        return sum(not f.ended for f in self.fates.values())

    def _tell(self, minutes: int) -> None:
        ended = Counter(f.ended or "open" for f in self.fates.values())
        faults = sum(self.faults.counts.values())
        self._say(
            f"{minutes} min: {ended['exported']} exported, {ended['failed']} failed, {ended['open']} open; "
            f"{faults} faults, {len(self.recoveries)} starts."
        )

    # ppd itself

    def _look_after_ppd(self) -> None:
        """Start ppd again at once when it has ended, as systemd would; see when it answers."""
        now = time.monotonic()
        process = self._site.process
        assert process is not None
        code = process.poll()
        if code is not None and now >= self._launch_due:
            if self._recovering is None or self.faults.killed_at is not None:
                self._begin_recovery(code, now)
            else:
                self.note(f"ppd ended with {code} before it answered")
            assert self._recovering is not None
            self._recovering.starts += 1
            self._site.launch()
            self._launch_due = now + _RESTART_SECONDS
        if self._recovering is not None:
            lasting = {w.fault.kind for w in self.faults.active()}
            self._recovering.amid = sorted({*self._recovering.amid, *lasting})
            if now >= self._ask_due:
                self._ask_due = now + _ASK_SECONDS
                with contextlib.suppress(NoSupervisorError):
                    self._asker.status(timeout=_ASK_SECONDS)
                    self._end_recovery()

    def _begin_recovery(self, code: int, now: float) -> None:
        killed = self.faults.killed_at
        if killed is None:
            self.wrong.append(f"ppd ended with {code} unasked, {now - self._start:.1f} s after the start")
            self.note(f"ppd ended with {code} unasked")
        begin = killed or now
        self._recovering = Recovery(begin - self._start)
        self.faults.killed_at = None

    def _end_recovery(self) -> None:
        done = self._recovering
        assert done is not None
        done.seconds = self._wall() - done.begin
        self.recoveries.append(done)
        self.note(f"ppd answers again after {done.seconds:.2f} s, starts: {done.starts} {done.amid or ''}")
        self._recovering = None

    # Visits and raws

    def _announce(self, planned: Announcement) -> None:
        rng = np.random.default_rng([self._schedule.seed, 3, planned.number])
        visit = make_visit(planned.number, rng)
        now = self._now()
        if planned.stale:
            message = visit.message()
            message["private_sndStamp"] = message["startTime"] = time.time() + TAI_MINUS_UTC - _STALE_SECONDS
            self._submit(visit, (0,), {**message, "groupId": f"{visit.group}-stale"}, "stale", now)
        self.kinds["stale message"] += planned.stale
        self.kinds["re-ordered message"] += planned.delay > 0
        self.kinds["repeated message"] += len(planned.again)
        for detector in planned.detectors:
            kind = str(rng.choice(list(BAD_KINDS))) if rng.random() < _BAD else None
            plan = plan_raw(visit, detector, rng, self._biases[detector], kind)
            self.kinds["bad raw"] += kind is not None
            fate = Fate(visit, detector, plan, begun=time.monotonic())
            self.fates[fate.key] = fate
            at = now + float(rng.uniform(0.0, 3.0))
            for delivery in plan.deliveries:
                if delivery.when == "second":
                    at += float(rng.uniform(0.3, 1.2))
                if delivery.when in ("normal", "second"):
                    self._later(at, lambda f=fate, d=delivery: self._deliver(f, d))
        message = visit.message()
        whole = len(planned.detectors) == 9
        for due in (planned.delay, *(planned.delay + t for t in planned.again)):
            purpose = "first" if due == planned.delay else "again"
            if whole:
                self._submit(visit, planned.detectors, message, purpose, now + due)
                continue
            for detector in planned.detectors:
                self._submit(visit, (detector,), {**message, "detector": detector}, purpose, now + due)

    def _submit(
        self, visit: DemoVisit, detectors: tuple[int, ...], message: dict[str, Any], purpose: Any, at: float
    ) -> None:
        due = time.monotonic() + at - self._now()
        self.submitter.put(Submission(visit.group, detectors, message, purpose, due))

    def _deliver(self, fate: Fate, delivery: Delivery) -> None:
        finish = land(self._site.raws, fate.visit, fate.detector, delivery)
        if finish is not None:
            self._later(self._now() + 0.1, finish)

    # What is seen

    def _read_journal(self) -> None:
        path = self._site.settings.state_dir / "journal.sqlite3"
        # Opened anew each time: nothing of ours may be in the way of its owner.
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2, isolation_level=None)
        ) as journal:
            rows = journal.execute(
                "SELECT id, group_name, detector, name, detail FROM event WHERE id > ? ORDER BY id",
                (self._seen,),
            ).fetchall()
            states = {}
            if rows:
                states = {
                    (group, detector): state
                    for group, detector, state in journal.execute(
                        "SELECT group_name, detector, state FROM detector_visit"
                        " WHERE state IN ('exported', 'failed')"
                    )
                }
        for number, group, detector, name, detail in rows:
            self._seen = number
            fate = self.fates.get((group, detector))
            if fate is not None:
                self._take(fate, name, json.loads(detail))
        for key, state in states.items():
            if key in self.fates and not self.fates[key].ended:
                self._end(self.fates[key], state)

    def _take(self, fate: Fate, name: str, detail: dict[str, Any]) -> None:
        if name == "ready" and detail.get("pid"):
            late = [d for d in fate.plan.deliveries if d.when == "late"]
            fate.plan = dataclasses.replace(
                fate.plan, deliveries=tuple(d for d in fate.plan.deliveries if d.when != "late")
            )
            for delivery in late:
                delay = self._site.settings.image_timeout * 0.45
                self._later(self._now() + delay, lambda d=delivery: self._deliver(fate, d))

    def _end(self, fate: Fate, state: str) -> None:
        fate.ended, fate.over = state, time.monotonic()
        self._news = fate.over
        for delivery in fate.plan.deliveries:
            if delivery.when == "over":
                self._later(self._now() + 0.5, lambda d=delivery: self._deliver(fate, d))
