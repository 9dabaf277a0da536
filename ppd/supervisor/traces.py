"""Traces: each visit as a tree of spans, from its announcement to its export.

Off unless ``trace_endpoint`` is set.  Spans are made when they are over, from
the times that the journal has too; nothing is open between two turns of the
loop.  Which IDs a visit's spans have follows from the visit: a child is told
them when it is forked, before its parents' spans are made.
"""

from __future__ import annotations

__all__ = ["NoTraces", "Traces", "start_traces", "traceparent"]

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from .. import __version__
from ..config import Settings
from ..errors import ConfigurationError
from .table import DetectorVisit, State, VisitEntry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import SpanContext

_LOG = logging.getLogger(__name__)

_FLUSH_MS = 2000


class Traces(Protocol):
    """Where what is over is told."""

    def leg(self, d: DetectorVisit, name: str, begin: float, end: float) -> None:
        """Tell of a leg of a detector-visit; Unix seconds."""

    def detector_visit(self, d: DetectorVisit, end: float) -> None:
        """Tell that a detector-visit is over."""

    def visit(self, entry: VisitEntry, end: float) -> None:
        """Tell that a visit is over."""

    def parent(self, d: DetectorVisit) -> str:
        """Return what makes a child's spans part of the trace, as ``traceparent``; empty: no traces."""

    def stop(self) -> None:
        """Send what is there, and end."""


class NoTraces:
    """Nobody wants traces."""

    def leg(self, d: DetectorVisit, name: str, begin: float, end: float) -> None:
        """Do nothing."""

    def detector_visit(self, d: DetectorVisit, end: float) -> None:
        """Do nothing."""

    def visit(self, entry: VisitEntry, end: float) -> None:
        """Do nothing."""

    def parent(self, d: DetectorVisit) -> str:
        """Return nothing."""
        return ""

    def stop(self) -> None:
        """Do nothing."""


def traceparent(instrument: str, group: str, detector: int) -> str:
    """Return the context of a detector-visit in the form of W3C's Trace Context, version 00."""
    return f"00-{_trace_id(instrument, group):032x}-{_span_id(instrument, group, detector):016x}-01"


def start_traces(settings: Settings, processor: SpanProcessor | None = None) -> Traces:
    """Begin to make traces, if they are wanted.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        ``trace_endpoint`` is used.
    processor : `opentelemetry.sdk.trace.SpanProcessor`, optional
        Takes the spans instead of the collector at the endpoint.

    Returns
    -------
    traces : `Traces`
        To be told what is over.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if they are wanted and OpenTelemetry is not installed.
    """
    if settings.trace_endpoint is None and processor is None:
        return NoTraces()
    try:
        if processor is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            # In a thread of its own, with a bounded queue: a collector that is away costs spans, not time.
            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.trace_endpoint))
        return _OpenTelemetry(settings, processor)
    except ModuleNotFoundError as e:
        raise ConfigurationError(
            f"trace_endpoint is set, and {e.name} is not installed: pip install 'ppd[traces]'."
        ) from e


class _OpenTelemetry:
    def __init__(self, settings: Settings, processor: SpanProcessor):
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

        class Chosen(IdGenerator):
            """Gives the IDs that were chosen, and otherwise any."""

            def __init__(self) -> None:
                self.trace_id: int | None = None
                self.span_id: int | None = None
                self._any = RandomIdGenerator()

            def generate_trace_id(self) -> int:
                return self.trace_id or self._any.generate_trace_id()

            def generate_span_id(self) -> int:
                return self.span_id or self._any.generate_span_id()

        self._ids = Chosen()
        resource = Resource.create(
            {"service.name": "ppd", "service.version": __version__, "ppd.instrument": settings.instrument}
        )
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ppd", __version__)

    def leg(self, d: DetectorVisit, name: str, begin: float, end: float) -> None:
        """Tell of a leg of a detector-visit; Unix seconds."""
        parent = _context(d.instrument, d.group, d.detector)
        self._span(name, begin, end, {"ppd.attempt": d.attempt, **_about(d)}, parent)

    def detector_visit(self, d: DetectorVisit, end: float) -> None:
        """Tell that a detector-visit is over."""
        attributes = {"ppd.attempt": d.attempt, "ppd.state": d.state.value, **_about(d)}
        if d.reason:
            attributes["ppd.reason"] = d.reason
        own = _span_id(d.instrument, d.group, d.detector)
        parent = _context(d.instrument, d.group)
        self._span(
            "detector-visit", d.accepted, end, attributes, parent, own=own, failed=d.state is State.FAILED
        )

    def visit(self, entry: VisitEntry, end: float) -> None:
        """Tell that a visit is over."""
        visit = entry.visit
        failed = sum(d.state is State.FAILED for d in entry.detectors.values())
        attributes: dict[str, str | int | float] = {
            "ppd.group": visit.groupId,
            "ppd.filter": visit.filters,
            "ppd.detectors": len(entry.detectors),
            "ppd.failed": failed,
            "ppd.deployment": entry.deployment.id,
        }
        self._ids.trace_id = _trace_id(visit.instrument, visit.groupId)
        own = _span_id(visit.instrument, visit.groupId)
        self._span("visit", entry.accepted, end, attributes, None, own=own, failed=bool(failed))
        self._ids.trace_id = None

    def parent(self, d: DetectorVisit) -> str:
        """Return what makes a child's spans part of the trace."""
        return traceparent(d.instrument, d.group, d.detector)

    def stop(self) -> None:
        """Send what is there, and end."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()

    def _span(
        self,
        name: str,
        begin: float,
        end: float,
        attributes: Mapping[str, str | int | float],
        parent: SpanContext | None,
        own: int | None = None,
        failed: bool = False,
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import NonRecordingSpan, Status, StatusCode, set_span_in_context

        context = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())
        self._ids.span_id = own
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=int(begin * 1e9))
        self._ids.span_id = None
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(int(max(begin, end) * 1e9))


def _about(d: DetectorVisit) -> dict[str, str | int | float]:
    return {"ppd.group": d.group, "ppd.detector": d.detector}


def _context(instrument: str, group: str, detector: int | None = None) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(
        _trace_id(instrument, group), _span_id(instrument, group, detector), True, TraceFlags(1)
    )


def _trace_id(instrument: str, group: str) -> int:
    return _number(16, instrument, group)


def _span_id(instrument: str, group: str, detector: int | None = None) -> int:
    return _number(8, "span", instrument, group, str(detector))


def _number(size: int, *names: str) -> int:
    # Not zero, which means "none".
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=size).digest()) or 1
