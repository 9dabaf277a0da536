"""The course of a detector-visit in time: how long each leg took, and whether alerts were in time.

Wall-clock times, as children and raws report them; what a stepped clock makes
negative is left out.
"""

from __future__ import annotations

__all__ = ["LEGS", "SPANS", "Course", "Leg"]

import dataclasses
from collections.abc import Mapping
from typing import Any

from .table import OVER, DetectorVisit, State
from .timeliness import Timeliness

# An announcement that is sent again has raws that were taken long before it.
_REPLAY_SECONDS = 60.0
_CLOCK_SECONDS = 5.0
# What an attempt leaves to the next.
_LASTING = ("accepted", "shutter", "raw")


@dataclasses.dataclass(frozen=True)
class Leg:
    """A part of the course, from the last of some events to another."""

    name: str
    begin: tuple[str, ...]
    end: str
    what: str


LEGS = (
    Leg("inputs", ("accepted",), "is_waiting", "its inputs are found and fetched"),
    Leg("slot", ("is_waiting",), "is_forked", "it waits for a slot"),
    Leg("open", ("is_forked",), "ready", "its child is forked and opens its repo"),
    Leg("preprocess_wait", ("ready",), "preprocess_start", "it waits for a processor to pre-process"),
    Leg("preprocess", ("preprocess_start",), "preprocess_end", "it pre-processes"),
    Leg("notice", ("raw",), "raw_seen", "its raw is complete and not noticed yet"),
    Leg("ingest", ("raw_seen", "ready", "preprocess_end"), "ingested", "its raw is fetched and ingested"),
    Leg("main_wait", ("ingested",), "main_start", "it waits for a processor for the main pipeline"),
    Leg("graph", ("main_start",), "first_task", "its graph is built"),
    Leg("pipeline", ("first_task",), "pipeline_end", "the main pipeline runs"),
    Leg("hand_over", ("pipeline_end",), "handed_over", "its outputs go to the spool"),
    Leg("export", ("handed_over",), "is_exported", "its outputs wait in the spool and are exported"),
)
"""Parts of the course, in their order."""

SPANS = (
    Leg("raw_to_first_task", ("raw",), "first_task", "from a complete raw to the first task"),
    Leg("raw_to_alert", ("raw",), "pipeline_end", "from a complete raw to the end of the main pipeline"),
    Leg("raw_to_central", ("raw",), "is_exported", "from a complete raw to outputs in central"),
    Leg("shutter_to_alert", ("shutter",), "pipeline_end", "from the shutter's close to the alerts"),
)
"""What users feel: several parts together."""


class Course:
    """What has happened when to one detector-visit.

    Parameters
    ----------
    accepted : `float` or `None`
        When its visit was accepted, Unix seconds; `None`: by an earlier ppd.
    """

    def __init__(self, accepted: float | None):
        self._times: dict[str, float] = {} if accepted is None else {"accepted": accepted}

    def note(self, name: str, when: float, detail: Mapping[str, Any], announced: float) -> bool:
        """Take note of an event.

        Parameters
        ----------
        name : `str`
            Name of the event, or of a new state with ``is_`` before it.
        when : `float`
            Unix seconds.
        detail : `~collections.abc.Mapping`
            Its details, of which ``closed`` of a raw is used, and
            ``shutter_closed`` of an ingested one.
        announced : `float`
            When the visit was announced, Unix seconds.

        Returns
        -------
        new : `bool`
            Whether legs that end with it end now.
        """
        if name == "is_waiting" and "is_waiting" in self._times:
            # Another attempt has a course of its own.
            self._times = {key: self._times[key] for key in _LASTING if key in self._times}
        elif name == "raw_seen":
            if not self._later("raw", detail.get("closed")):
                return False  # said again, to another child
        elif name == "ingested":
            closed = detail.get("shutter_closed")
            if (
                isinstance(closed, (int, float))
                and announced - _REPLAY_SECONDS <= closed <= when + _CLOCK_SECONDS
            ):
                self._later("shutter", closed)
        elif name == "pipeline_end" and not detail.get("success", True):
            return False
        self._times[name] = when
        return True

    def taken(self, leg: Leg) -> float | None:
        """Seconds of a leg; `None`: it has not been gone."""
        begins = [self._times[name] for name in leg.begin if name in self._times]
        if not begins or leg.end not in self._times:
            return None
        seconds = self._times[leg.end] - max(begins)
        return seconds if seconds >= 0 else None

    def judge(self, d: DetectorVisit, deadline: float) -> Timeliness | None:
        """Say once, when it is known, whether alerts were in time.

        Parameters
        ----------
        d : `ppd.supervisor.table.DetectorVisit`
            The detector-visit, in its new state.
        deadline : `float`
            Seconds from the shutter's close to the alerts.

        Returns
        -------
        alerts : `ppd.supervisor.timeliness.Timeliness` or `None`
            `None`: it is not over yet, or it has been judged: of one that an
            operator has tried again the first end counts.
        """
        if d.alerts is not None or d.state not in OVER | {State.HANDED_OVER}:
            return None
        if d.state is State.FAILED or d.lost_cause:
            known = d.closed is not None and not self._replayed
            return Timeliness.NEVER if known else Timeliness.NOT_JUDGED
        seconds = self.taken(SPANS[-1])
        if seconds is None:
            return Timeliness.NOT_JUDGED
        return Timeliness.ON_TIME if seconds <= deadline else Timeliness.LATE

    @property
    def _replayed(self) -> bool:
        """Whether its exposure was long before the announcement, or its header can't be right."""
        return "ingested" in self._times and "shutter" not in self._times

    def _later(self, name: str, when: object) -> bool:
        """Keep the later of two times; return whether it is this one."""
        if not isinstance(when, (int, float)) or when <= self._times.get(name, 0.0):
            return False
        self._times[name] = float(when)
        return True
