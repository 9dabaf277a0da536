"""Durations and outcomes, collected while things happen."""

from __future__ import annotations

__all__ = ["Measures"]

import time
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from ..config import Settings
from .courses import LEGS, SPANS, Course, Leg
from .table import OVER, DetectorVisit, State
from .timeliness import Timeliness
from .traces import NoTraces, Traces

# Seconds; 60 is the deadline of alerts, and has to be among them.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 3600)
_BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200)
# What nobody can judge tells nothing of the service.
_OUTCOMES = (Timeliness.ON_TIME, Timeliness.LATE, Timeliness.NEVER)


class Measures:
    """What is counted and timed for Prometheus, in a registry of its own.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        ``alert_deadline`` is read when it is needed.
    traces : `ppd.supervisor.traces.Traces`, optional
        Is told what is over.
    """

    def __init__(self, settings: Settings, traces: Traces | None = None):
        self._settings = settings
        self.traces = traces or NoTraces()
        self._since = time.time()
        self._courses: dict[tuple[str, int], Course] = {}
        # ppd_start_time_seconds says as much, for all of them.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._legs = Histogram(
            "ppd_leg_seconds",
            "Seconds of each leg of a detector-visit.",
            ["leg"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._spans = {
            span.name: Histogram(
                f"ppd_{span.name}_seconds",
                f"Seconds {span.what}.",
                buckets=_BUCKETS,
                registry=self.registry,
            )
            for span in SPANS
        }
        self._alerts = Counter(
            "ppd_alerts",
            "Detector-visits whose raw was there, by whether their alerts were out within alert_deadline"
            " of the shutter's close.",
            ["outcome"],
            registry=self.registry,
        )
        self._failures = Counter(
            "ppd_detector_failures",
            "Detector-visits that have failed for good, by detector.",
            ["detector"],
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "ppd_export_batch_seconds",
            "Seconds of one transaction of the export.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._batch_entries = Histogram(
            "ppd_export_batch_hand_overs",
            "Hand-overs in one transaction of the export.",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        # From the start, so that the first of each is seen as an increase.
        for leg in LEGS:
            self._legs.labels(leg.name)
        for alerts in _OUTCOMES:
            self._alerts.labels(alerts)

    def know_detectors(self, detectors: Iterable[int]) -> None:
        """Count the failures of these detectors, from none."""
        for detector in detectors:
            self._failures.labels(str(detector))

    def changed(self, d: DetectorVisit) -> Timeliness | None:
        """Take note of a detector-visit's new state.

        Returns
        -------
        alerts : `ppd.supervisor.timeliness.Timeliness` or `None`
            Whether its alerts were in time, if that is known from now on.
        """
        course = self._course(d)
        self._pass(d, course, f"is_{d.state.value}", time.time(), {})
        alerts = course.judge(d, self._settings.alert_deadline)
        if alerts in _OUTCOMES:
            self._alerts.labels(alerts).inc()
        if d.state in OVER:
            if d.state is State.FAILED:
                self._failures.labels(str(d.detector)).inc()
            self._courses.pop((d.group, d.detector), None)
            self.traces.detector_visit(d, time.time())
        return alerts

    def happened(self, d: DetectorVisit, name: str, when: float, detail: Mapping[str, Any]) -> None:
        """Take note of an event of a detector-visit, at a time in Unix seconds."""
        if d.state not in OVER:
            self._pass(d, self._course(d), name, when, detail)

    def exported(self, hand_overs: int, seconds: float) -> None:
        """Take note of one transaction of the export."""
        self._batch_seconds.observe(seconds)
        self._batch_entries.observe(hand_overs)

    def _course(self, d: DetectorVisit) -> Course:
        return self._courses.setdefault(
            (d.group, d.detector), Course(d.accepted if d.accepted >= self._since else None)
        )

    def _pass(
        self, d: DetectorVisit, course: Course, name: str, when: float, detail: Mapping[str, Any]
    ) -> None:
        if not course.note(name, when, detail, d.announced):
            return
        for leg in LEGS:
            if leg.end == name:
                seconds = self._observe(self._legs.labels(leg.name), course, leg)
                if seconds is not None:
                    self.traces.leg(d, leg.name, when - seconds, when)
        for span in SPANS:
            if span.end == name:
                self._observe(self._spans[span.name], course, span)

    @staticmethod
    def _observe(histogram: Histogram, course: Course, leg: Leg) -> float | None:
        seconds = course.taken(leg)
        if seconds is not None:
            histogram.observe(seconds)
        return seconds
