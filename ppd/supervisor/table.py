"""The visits that this supervisor works on, and what state they are in."""

from __future__ import annotations

__all__ = ["DetectorVisit", "State", "VisitEntry", "VisitTable"]

import dataclasses
import enum
import time
from collections.abc import Iterator
from typing import Any

from ..messages import CacheView, ChildDone, DetectorKey, Predecessor
from ..sources.raws import Candidate
from ..visit import BareVisit
from .deployments import Deployment
from .inputs import VisitInputs
from .journaled import Acceptance
from .timeliness import Timeliness


class State(enum.StrEnum):
    """Where a detector-visit is in its life."""

    ACCEPTED = "accepted"
    """In the journal; its inputs are being found."""
    WAITING = "waiting"
    """Its inputs are in the cache; it waits for a slot."""
    FORKED = "forked"
    """Its child opens its repo."""
    READY = "ready"
    """Its child waits for raws or a processor, or pre-processes."""
    RUNNING = "running"
    """Its main pipeline runs."""
    HANDED_OVER = "handed_over"
    """Its outputs are in the spool."""
    EXPORTED = "exported"
    """Its outputs are in the central repo."""
    FAILED = "failed"
    """It failed for good."""


LIVE = frozenset({State.FORKED, State.READY, State.RUNNING})
OVER = frozenset({State.EXPORTED, State.FAILED})
PAST_CHILDREN = OVER | {State.HANDED_OVER}


@dataclasses.dataclass
class DetectorVisit:
    """One detector-visit."""

    instrument: str
    group: str
    detector: int
    preprocessing: tuple[str, ...]
    main: tuple[str, ...]
    accepted: float
    expires: float
    announced: float = 0.0
    """When its visit was announced, Unix seconds."""
    child_memory: int | None = None
    """Bytes that its children's tasks may use."""
    state: State = State.ACCEPTED
    attempt: int = 1
    resolving: bool = False
    """Whether its inputs have been asked for."""
    view: CacheView | None = None
    pid: int | None = None
    identity: bytes | None = None
    phase: str = ""
    phase_at: float = 0.0
    """Since when it is in this phase, monotonic seconds."""
    since: float = dataclasses.field(default_factory=time.time)
    """Since when it is in this state and phase, Unix seconds: for people."""
    cut_at: float | None = None
    """When it was told to end its pre-processing, monotonic seconds."""
    predecessor: Predecessor | None = None
    """What a killed attempt left that the current one has to look into."""
    looks: int = 0
    """How often a child was forked only to look into it."""
    forked_at: float = 0.0
    heard_at: float = 0.0
    raws_until: float | None = None
    told_no_more: bool = False
    terminated_at: float | None = None
    termination: str = ""
    may_retry: bool = True
    """Whether another try may follow when its child is ended by the supervisor."""
    closed: float | None = None
    """When its last raw was seen complete, Unix seconds."""
    expected_late: bool = False
    """Whether it was seen, when it waited for a processor, that its alerts will hardly be in time."""
    alerts: Timeliness | None = None
    """Whether its alerts were in time; `None`: that is open. What was judged once stays, for all attempts."""
    putting_back: bool = False
    """Whether its child was told to make room."""
    put_backs: int = 0
    """How many attempts ended so, or with ppd or its nursery; they are no retries."""
    nursery_deaths: int = 0
    """How many attempts ended because their nursery did."""
    sent: dict[str, Candidate] = dataclasses.field(default_factory=dict)
    done: ChildDone | None = None
    exited_at: float | None = None
    exit_code: int | None = None
    looked_for: bool = False
    """Whether its hand-over was looked for in vain after its child had ended."""
    not_before: float = 0.0
    reason: str = ""
    exported: bool = False
    """Whether central has the outputs of the current attempt."""
    set_aside: str = ""
    """Why its hand-over is among the dead letters."""
    remark: str = ""
    """Why a success has fewer outputs than it might have."""
    lost_cause: str = ""
    """Why a hand-over's export does not make it a success: a final failure's reason."""

    @property
    def key(self) -> DetectorKey:
        """Identity of the current attempt."""
        return DetectorKey(
            instrument=self.instrument, group=self.group, detector=self.detector, attempt=self.attempt
        )

    @property
    def holder(self) -> str:
        """Name under which the cache knows its lease."""
        return f"{self.group}/{self.detector}"

    def enter(self, phase: str) -> None:
        """Note what its child is at."""
        if phase == self.phase:
            return
        now = time.monotonic()
        if self.phase.startswith("queued_"):
            # It has not been slow: others were before it.
            self.forked_at += now - self.phase_at
        self.phase, self.phase_at, self.since = phase, now, time.time()

    def next_attempt(self, delay: float) -> None:
        """Go back to waiting, for one more try."""
        self.attempt += 1
        self.state, self.since = State.WAITING, time.time()
        self.pid = self.identity = self.raws_until = self.terminated_at = None
        self.done = self.exited_at = self.exit_code = None
        self.told_no_more = self.exported = self.looked_for = False
        self.set_aside = ""
        self.may_retry = True
        self.putting_back = False
        self.phase = self.termination = ""
        self.cut_at = self.predecessor = None
        self.sent = {}
        self.not_before = time.monotonic() + delay


@dataclasses.dataclass
class VisitEntry:
    """One visit with its detector-visits."""

    visit: BareVisit
    accepted: float
    day_obs: int
    deployment: Deployment
    """What it is processed with, whatever is loaded meanwhile."""
    runs: dict[str, str]
    detectors: dict[int, DetectorVisit]
    fanned_out: bool = False
    """Whether it was announced for one detector: the others' messages are coming."""
    resolve_at: float | None = None
    """When to ask for its inputs again, monotonic seconds."""
    taken_on: float = 0.0
    """When this supervisor took it on, or the last of its detectors, monotonic seconds."""
    tries: int = 0
    inputs: list[VisitInputs] = dataclasses.field(default_factory=list)
    """What was found for its detectors, one part for each search."""
    over: bool = False
    """Whether its end has been logged."""

    def acceptance(self, **detail: Any) -> Acceptance:
        """Say what the journal is to have of it, with details for the event."""
        return Acceptance(
            self.visit.instrument,
            self.visit.groupId,
            tuple(self.detectors),
            self.visit.model_dump(mode="json"),
            self.day_obs,
            self.deployment.id,
            detail,
        )

    @property
    def unfinished(self) -> bool:
        """Whether a detector-visit of it may still need a child."""
        return any(d.state not in PAST_CHILDREN for d in self.detectors.values())


class VisitTable:
    """All visits that are not over, and the last of those that are."""

    def __init__(self, keep_over: int = 50, keep_inputs: int = 10):
        self._keep_over = keep_over
        self._keep_inputs = keep_inputs
        self.visits: dict[str, VisitEntry] = {}

    def add(self, entry: VisitEntry) -> VisitEntry:
        """Add a visit, or detectors to one that is known; return what is in the table."""
        known = self.visits.setdefault(entry.visit.groupId, entry)
        if known is not entry:
            if not known.unfinished:
                # Nobody holds to these any more, and the nursery may be gone.
                known.day_obs, known.deployment = entry.day_obs, entry.deployment
            known.detectors.update(entry.detectors)
            known.runs.update(entry.runs)
            known.over = False
        return known

    def keep_inputs(self, entry: VisitEntry, found: VisitInputs) -> None:
        """Keep what was found for a visit; of all but the last visits it is forgotten."""
        new = found.resolution.detectors.keys()
        entry.inputs = [part for part in entry.inputs if part.resolution.detectors.keys() - new] + [found]
        # A visit of a large camera has some thousand datasets.
        for old in list(self.visits.values())[: -self._keep_inputs]:
            old.inputs.clear()

    def get(self, group: str, detector: int) -> DetectorVisit | None:
        """Find a detector-visit."""
        entry = self.visits.get(group)
        return entry.detectors.get(detector) if entry else None

    def of_key(self, key: DetectorKey) -> DetectorVisit | None:
        """Find the detector-visit that a message is about, if the attempt is current."""
        found = self.get(key.group, key.detector)
        return found if found is not None and found.attempt == key.attempt else None

    def __iter__(self) -> Iterator[DetectorVisit]:
        for entry in self.visits.values():
            yield from entry.detectors.values()

    def live(self) -> list[DetectorVisit]:
        """Detector-visits that have a child."""
        return [d for d in self if d.state in LIVE]

    def unfinished(self) -> list[DetectorVisit]:
        """Detector-visits that are not over."""
        return [d for d in self if d.state not in OVER]

    def counts(self) -> dict[str, int]:
        """Number of detector-visits by state."""
        counts = {state.value: 0 for state in State}
        for d in self:
            counts[d.state.value] += 1
        return counts

    def finished(self) -> list[VisitEntry]:
        """Visits all of whose detector-visits are over, oldest first."""
        return [e for e in self.visits.values() if all(d.state in OVER for d in e.detectors.values())]

    def prune(self) -> list[VisitEntry]:
        """Drop the oldest visits that are over, but for the last few; return what was dropped."""
        over = self.finished()
        gone = over[: max(0, len(over) - self._keep_over)]
        for entry in gone:
            del self.visits[entry.visit.groupId]
        return gone
