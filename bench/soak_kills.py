"""Who is killed in the soak, when, and by what."""

from __future__ import annotations

__all__ = ["Doom", "Executioner", "draw_doom"]

import contextlib
import dataclasses
import os
import signal
import statistics
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ppd.demo.camera import INSTRUMENT
from ppd.messages import DetectorKey

Stage = Literal["birth", "life", "waiting", "preprocess", "main", "hand-over"]

# From which event of the journal on the instant is drawn.
_ANCHORS: dict[Stage, str] = {
    "life": "forked",
    "waiting": "ready",
    "preprocess": "preprocess_start",
    "main": "main_start",
    "hand-over": "main_start",
}
# Of how many children that are born, one is killed at once.
_INFANTS = 60
# How long a stage takes until it has been seen how long, seconds.
_GUESS: dict[Stage, float] = {
    "life": 3.0,
    "waiting": 1.5,
    "preprocess": 0.4,
    "main": 0.6,
    "hand-over": 0.08,
}
_HAND_OVER_SECONDS = 30.0


@dataclasses.dataclass
class Doom:
    """A kill that is planned for one attempt of a detector-visit."""

    attempt: int
    stage: Stage
    fraction: float
    """When, as a part of what the stage usually takes."""
    signum: signal.Signals
    pidfd: int | None = None
    pid: int = 0
    due: float | None = None
    building: Path | None = None
    """The hand-over that is waited for."""
    give_up: float = 0.0
    outcome: str = "planned"
    """``planned``, ``hit`` or ``missed``."""
    after: str = ""
    """The last event of the child before it was hit."""

    def close(self) -> None:
        """Close the child's descriptor."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def draw_doom(rng: np.random.Generator, attempt: int = 1) -> Doom:
    """Draw the instant and the signal."""
    stages: list[Stage] = ["life", "waiting", "preprocess", "main", "hand-over"]
    stage = stages[int(rng.choice(5, p=[0.3, 0.15, 0.1, 0.25, 0.2]))]
    signals = [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]
    signum = signals[int(rng.choice(3, p=[0.65, 0.17, 0.18]))]
    return Doom(attempt, stage, float(rng.uniform(0.0, 1.1)), signum)


class Executioner:
    """Sends the signals in time.

    Parameters
    ----------
    spool : `pathlib.Path`
        Where hand-overs are built.
    nursery : `int`
        Process ID of the nursery.
    rng : `numpy.random.Generator`
        Chance, for what depends on ppd's own pace.

    Notes
    -----
    A child is known by a descriptor of its process: a number could be
    another process's by the time of the signal.
    """

    def __init__(self, spool: Path, nursery: int, rng: np.random.Generator):
        self._spool = spool
        self._rng = rng
        self._children = Path(f"/proc/{nursery}/task/{nursery}/children")
        self._born: set[int] = set()
        self._infants: dict[int, Doom] = {}
        self._dooms: dict[tuple[str, int], list[Doom]] = {}
        self._armed: dict[tuple[str, int], Doom] = {}
        self._seconds: dict[Stage, deque[float]] = defaultdict(lambda: deque(maxlen=200))
        self._times: dict[tuple[str, int, int], dict[str, float]] = defaultdict(dict)
        self._last: dict[tuple[str, int], str] = {}

    def doom(self, key: tuple[str, int], dooms: list[Doom]) -> None:
        """Plan the kills of a detector-visit."""
        self._dooms[key] = dooms

    def of(self, key: tuple[str, int]) -> list[Doom]:
        """Return what was planned for a detector-visit."""
        return self._dooms.get(key, [])

    @property
    def hasty(self) -> bool:
        """Whether a hand-over may begin that is to be caught while it lasts."""
        return any(d.building is not None for d in self._armed.values())

    def holds_raw(self, key: tuple[str, int]) -> bool:
        """Whether a raw has to wait for the kill of a child that waits for it."""
        return any(d.attempt == 1 and d.stage == "waiting" and d.outcome == "planned" for d in self.of(key))

    def saw(self, key: tuple[str, int], name: str, detail: dict[str, Any]) -> None:
        """Take an event of the journal: it may be the start of a stage."""
        attempt = int(detail.get("attempt", 0))
        self._last[key] = name
        now = time.monotonic()
        self._learn((*key, attempt), name, now)
        if name == "forked" and int(detail["pid"]) in self._infants:
            infant = self._infants.pop(int(detail["pid"]))
            infant.attempt = attempt
            self._dooms.setdefault(key, []).append(infant)
        doom = next((d for d in self.of(key) if d.attempt == attempt and d.outcome == "planned"), None)
        if doom is None:
            return
        if name == "forked":
            doom.pid = int(detail["pid"])
            with contextlib.suppress(ProcessLookupError):
                doom.pidfd = os.pidfd_open(doom.pid)
            self._armed[key] = doom
        if name == _ANCHORS[doom.stage] and doom.due is None:
            if doom.stage == "hand-over":
                entry = DetectorKey(instrument=INSTRUMENT, group=key[0], detector=key[1], attempt=attempt)
                doom.building = self._spool / "building" / entry.file_name
                doom.give_up = now + _HAND_OVER_SECONDS
            else:
                doom.due = now + doom.fraction * self.usual(doom.stage)

    def usual(self, stage: Stage) -> float:
        """Say how long a stage usually takes, seconds."""
        seen = self._seconds[stage]
        return statistics.median(seen) if len(seen) >= 5 else _GUESS[stage]

    def turn(self) -> None:
        """Send what is due."""
        self._look_at_newborn()
        now = time.monotonic()
        for key, doom in list(self._armed.items()):
            if doom.building is not None and doom.due is None:
                ready = doom.building.parent.parent / "ready" / doom.building.name
                if doom.building.exists() or ready.exists():
                    doom.due = now + doom.fraction * _GUESS["hand-over"]
            if doom.due is not None and now >= doom.due:
                self._send(key, doom)
            elif not _lives(doom.pid) or (doom.give_up and now > doom.give_up):
                doom.outcome = "missed"
            if doom.outcome != "planned":
                doom.close()
                del self._armed[key]

    def _look_at_newborn(self) -> None:
        """Kill some children in their first milliseconds, before it is known whose they are."""
        try:
            there = {int(pid) for pid in self._children.read_text().split()}
        except OSError:
            return  # the nursery is gone, and the night with it
        for pid in there - self._born:
            if self._rng.random() < 1 / _INFANTS:
                signum = signal.SIGTERM if self._rng.random() < 0.5 else signal.SIGKILL
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
                    self._infants[pid] = Doom(0, "birth", 0.0, signum, pid=pid, outcome="hit", after="birth")
        self._born = there

    def over(self, key: tuple[str, int]) -> None:
        """Give up what can't happen any more, since the detector-visit has ended."""
        for doom in self.of(key):
            if doom.outcome == "planned":
                doom.outcome = "missed"
            doom.close()
        self._armed.pop(key, None)

    def _send(self, key: tuple[str, int], doom: Doom) -> None:
        doom.outcome, doom.after = "missed", self._last.get(key, "")
        if doom.pidfd is None or not _lives(doom.pid):
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(doom.pidfd, doom.signum)
            doom.outcome = "hit"

    def _learn(self, attempt: tuple[str, int, int], name: str, now: float) -> None:
        times = self._times[attempt]
        times[name] = now
        ends: dict[str, tuple[Stage, str]] = {
            "preprocess_end": ("preprocess", "preprocess_start"),
            "pipeline_end": ("main", "main_start"),
            "handed_over": ("life", "forked"),
        }
        if name in ends and ends[name][1] in times:
            stage, begin = ends[name]
            self._seconds[stage].append(now - times[begin])
        if name in ("exported", "failed"):
            self._times.pop(attempt, None)


def _lives(pid: int) -> bool:
    """Whether a process is there, and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False
