"""A visit as a tree of spans."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from site_support import announce

from ppd.config import Settings
from ppd.errors import ConfigurationError
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.measures import Measures
from ppd.supervisor.table import DetectorVisit, State, VisitEntry
from ppd.supervisor.traces import NoTraces, start_traces, traceparent
from ppd.visit import BareVisit

_JOINING = """
from opentelemetry.sdk.trace import TracerProvider
from ppd.workers.tracing import join_trace
import os, sys
join_trace(sys.argv[1])
span = TracerProvider().get_tracer("a task").start_span("its own")
print(f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}", os.environ["TRACEPARENT"])
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    nodes = [{"pipelines": ["Isr.yaml"]}]
    return Settings.model_validate(
        {"instrument": "Cam", "central_repo": "x", "main_pipelines": nodes, "state_dir": tmp_path}
    )


def _detector_visit(detector: int) -> DetectorVisit:
    now = time.time()
    return DetectorVisit("Cam", "g1", detector, (), (), accepted=now, expires=now + 300, announced=now)


def _live(measures: Measures, d: DetectorVisit, begin: float) -> None:
    """Let an attempt come to the end of its pipeline."""
    events = ["ready", "raw_seen", "ingested", "main_start", "first_task", "pipeline_end", "handed_over"]
    for state in (State.WAITING, State.FORKED):
        d.state = state
        measures.changed(d)
    for number, name in enumerate(events):
        measures.happened(d, name, begin + number, {"closed": begin} if name == "raw_seen" else {})


def _end(measures: Measures, d: DetectorVisit, state: State, reason: str = "") -> None:
    d.state, d.reason = state, reason
    measures.changed(d)


def test_a_visit(settings: Settings) -> None:
    """One detector at once, one at the second attempt, one not at all."""
    exporter = InMemorySpanExporter()
    measures = Measures(settings, start_traces(settings, SimpleSpanProcessor(exporter)))
    detectors = [_detector_visit(n) for n in (1, 2, 3)]
    begin = time.time()
    first, second, third = detectors
    _live(measures, first, begin)
    _end(measures, first, State.EXPORTED)
    _live(measures, second, begin)
    second.attempt = 2
    _live(measures, second, begin + 20.0)
    _end(measures, second, State.EXPORTED)
    _end(measures, third, State.FAILED, "no raw came")
    visit = BareVisit.model_validate(announce("g1", instrument="Cam"))
    entry = VisitEntry(
        visit, begin, 20261124, Deployment("d1", settings), {}, {d.detector: d for d in detectors}
    )
    measures.traces.visit(entry, time.time())
    spans = exporter.get_finished_spans()
    assert len({s.context.trace_id for s in spans}) == 1
    assert len({s.context.span_id for s in spans}) == len(spans)
    [root] = [s for s in spans if s.parent is None]
    assert root.name == "visit"
    assert dict(root.attributes or {})["ppd.failed"] == 1
    of_detector = {(s.attributes or {})["ppd.detector"]: s for s in spans if s.name == "detector-visit"}
    assert {s.parent.span_id for s in of_detector.values() if s.parent} == {root.context.span_id}
    assert [of_detector[n].status.status_code for n in (1, 2, 3)] == [
        StatusCode.UNSET,
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    assert (of_detector[3].attributes or {})["ppd.reason"] == "no raw came"
    legs = [s for s in spans if s.name not in ("visit", "detector-visit")]
    for leg in legs:
        assert leg.parent is not None
        assert leg.parent.span_id == of_detector[(leg.attributes or {})["ppd.detector"]].context.span_id
    assert [_seconds(s) for s in legs if s.name == "pipeline"] == [1.0, 1.0, 1.0]
    assert [(s.attributes or {})["ppd.attempt"] for s in legs if s.name == "pipeline"] == [1, 1, 2]


def _seconds(span: ReadableSpan) -> float:
    return round(((span.end_time or 0) - (span.start_time or 0)) / 1e9, 3)


def test_a_child_is_part_of_it() -> None:
    """Spans of its tasks, and programs that they start."""
    context = traceparent("Cam", "g1", 3)
    done = subprocess.run(
        [sys.executable, "-c", _JOINING, context], capture_output=True, text=True, timeout=60.0, check=True
    )
    _, trace, parent, _ = context.split("-")
    assert done.stdout.split() == [trace, parent, context]


def test_off_unless_wanted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(start_traces(settings), NoTraces)
    wanted = settings.model_copy(update={"trace_endpoint": "http://127.0.0.1:1/v1/traces"})
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigurationError, match=r"not installed: pip install 'ppd\[traces\]'"):
        start_traces(wanted)
