"""Playing a night: announcements and raws, at their times."""

from __future__ import annotations

__all__ = ["NightPlayer", "next_visit"]

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..visit import TAI_MINUS_UTC
from .camera import INSTRUMENT
from .night import NightPlan, PlannedVisit
from .raws import set_times

_LOG = logging.getLogger(__name__)

_LATE_SECONDS = 3.0
_EARLY_SECONDS = 1.0
_CHUNKS = 6
_SLOW_SECONDS = 0.9


def next_visit(visit: PlannedVisit, lead: float, duration: float) -> dict[str, Any]:
    """Make the nextVisit message of a planned visit, stamped now.

    Parameters
    ----------
    visit : `ppd.demo.night.PlannedVisit`
        The visit.
    lead : `float`
        Seconds until the exposure begins.
    duration : `float`
        Seconds that it takes.

    Returns
    -------
    message : `dict`
        As Rubin's scheduler publishes it.
    """
    now = time.time() + TAI_MINUS_UTC
    return {
        "salIndex": 1,
        "scriptSalIndex": visit.exposure % 100_000,
        "instrument": INSTRUMENT,
        "groupId": visit.group,
        "coordinateSystem": 2,
        "position": [visit.ra, visit.dec],
        "startTime": now + lead,
        "rotationSystem": 2,
        "cameraAngle": visit.rotation,
        "filters": visit.physical_filter,
        "dome": 2,
        "duration": duration,
        "nimages": 1,
        "survey": "DEMO",
        "totalCheckpoints": 1,
        "private_sndStamp": now,
    }


class NightPlayer:
    """Publishes the visits of a plan and drops its raws, in a thread.

    Parameters
    ----------
    plan : `ppd.demo.night.NightPlan`
        The night.
    raw_root : `pathlib.Path`
        Where raws land.
    publish : callable
        Called with each nextVisit message.
    """

    def __init__(self, plan: NightPlan, raw_root: Path, publish: Callable[[dict[str, Any]], object]):
        self.plan = plan
        self.announced = 0
        self.dropped = 0
        self._root = raw_root
        self._publish = publish
        self._stop = threading.Event()
        self._count = threading.Lock()
        self._writers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._play, name="player", daemon=True)

    def start(self) -> None:
        """Begin the night."""
        self._thread.start()

    def stop(self) -> None:
        """End it; what is being written is left as it is."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(3.0)
        for thread in self._writers:  # none is added any more
            thread.join(3.0)

    @property
    def playing(self) -> bool:
        """Whether the night goes on."""
        return self._thread.is_alive() or any(t.is_alive() for t in self._writers)

    def schedule(self) -> list[tuple[float, int, str, PlannedVisit, int]]:
        """List what happens, in order of time.

        Returns
        -------
        events : `list` of `tuple`
            Seconds from the start, order, ``announce``, ``rename`` or
            ``slow``, the visit, the detector (-1: none).
        """
        events = []
        for number, visit in enumerate(self.plan.visits):
            events.append((visit.announce, 0, "announce", visit, -1))
            for detector in visit.raws:
                when = visit.shutter_close + 0.05 * detector
                if visit.announce > visit.shutter_close and detector % 3 == 0:
                    when = max(visit.shutter_close, visit.announce - _EARLY_SECONDS)
                elif (detector + number) % 8 == 5:
                    when += _LATE_SECONDS
                how = "slow" if (detector + number) % 3 == 1 else "rename"
                events.append((when, 1 + detector, how, visit, detector))
        return sorted(events, key=lambda e: e[:2])

    def _play(self) -> None:
        begin = time.monotonic()
        closed: dict[str, float] = {}
        for when, _, what, visit, detector in self.schedule():
            if self._stop.wait(max(0.0, begin + when - time.monotonic())):
                return
            if what == "announce":
                lead = max(0.0, visit.shutter_close - 2.0 - when)
                try:
                    self._publish(next_visit(visit, lead, duration=self.plan.cadence))
                    self.announced += 1
                except Exception:
                    _LOG.exception("Visit %s could not be announced.", visit.group)
                continue
            # All raws of an exposure say the same of it, however long they take.
            end = closed.setdefault(visit.group, time.time())
            relative = Path(visit.raws[detector])
            raw = set_times((Path(self.plan.staged) / relative).read_bytes(), end)
            if what == "rename":
                self._rename(relative, raw)
            else:
                writer = threading.Thread(target=self._write_slowly, args=(relative, raw), daemon=True)
                writer.start()
                self._writers.append(writer)

    def _rename(self, relative: Path, raw: bytes) -> None:
        target = self._root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_bytes(raw)
        temporary.rename(target)
        with self._count:
            self.dropped += 1

    def _write_slowly(self, relative: Path, raw: bytes) -> None:
        target = self._root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        step = len(raw) // _CHUNKS + 1
        with target.open("wb") as stream:
            for start in range(0, len(raw), step):
                stream.write(raw[start : start + step])
                stream.flush()
                if self._stop.wait(_SLOW_SECONDS / _CHUNKS):
                    return
        with self._count:
            self.dropped += 1
