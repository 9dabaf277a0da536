"""What a real ppd tells Prometheus, and that rules, dashboard and docs speak of the same."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from astropy.time import Time
from metrics_support import ROOT, Scrape, alerts, dashboard_expressions, firing, rules, selectors
from observatory import Observatory, Ppd, identity, running, wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ppd.messages import ControlRequest
from ppd.supervisor.courses import LEGS
from ppd.supervisor.faults import COMPONENTS
from ppd.supervisor.history import show_detector
from ppd.supervisor.traces import traceparent
from ppd.visit import TAI_MINUS_UTC
from ppd.web.advice import REMEDIES
from ppd.web.journal import past
from ppd.web.picture import Past, make_picture

pytestmark = pytest.mark.night

# Prometheus' own, and what a rule of ours makes.
_NOT_OURS = {"up"}
_VISITS = {"in-time": 1, "sent-again": 2, "spoiled": 3, "too-late": 4, "no-raw": 5}
# How long ago the shutter closed, seconds; no pipeline takes less than two.
_AGO = {"in-time": 1.0, "sent-again": 600.0, "too-late": 58.0}
_JUDGED = {
    "in-time": "on_time",
    "sent-again": "not_judged",
    "spoiled": "never",
    "too-late": "late",
    "no-raw": "not_judged",
}


class _Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    spans: ClassVar[list[Span]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    _Collector.spans.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    server.shutdown()
    thread.join(10.0)
    server.server_close()


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory, collector: str) -> Iterator[Ppd]:
    folder = tmp_path_factory.mktemp("measured")
    with running(observatory, folder, image_timeout=60.0, trace_endpoint=collector) as ppd:
        yield ppd


@pytest.fixture(scope="module")
def before(ppd: Ppd) -> Scrape:
    return _scrape(ppd)


@pytest.fixture(scope="module")
def scrape(ppd: Ppd, before: Scrape) -> Scrape:
    """After a visit in time, a late and an old one, one without a raw, a spoiled raw and nonsense."""
    for group, detector in _VISITS.items():
        assert ppd.submit(groupId=group, detector=detector).ok
        if group == "spoiled":
            ppd.drop(b"no raw", detector, group)
            continue
        if group == "no-raw":
            assert ppd.command("ctl", "cancel", group, "--yes").returncode == 0
            continue
        cards = _exposed(_AGO[group])
        ppd.drop(ppd.observatory.raw(detector, **identity(group), **cards), detector, group)
    assert ppd.client.submit("nonsense").code == "malformed"
    ppd.await_state("in-time", exported=1)
    ppd.await_state("too-late", exported=1)
    ppd.await_state("sent-again", exported=1)
    ppd.await_state("spoiled", failed=1, timeout=120.0)
    return _scrape(ppd)


def _exposed(ago: float) -> dict[str, str]:
    """Header cards of an exposure whose shutter closed so many seconds ago."""
    end = time.time() + TAI_MINUS_UTC - ago
    times = Time([end - 30.0, end], format="unix_tai", scale="tai").isot
    return {"DATE_BEG": times[0], "DATE_END": times[1]}


def _scrape(ppd: Ppd) -> Scrape:
    done = ppd.command("ctl", "metrics")
    assert done.returncode == 0, done.stderr
    return Scrape(done.stdout)


def test_counts_are_those_of_status(ppd: Ppd, scrape: Scrape) -> None:
    assert scrape.value("ppd_visits_total", outcome="accepted") == 5
    assert scrape.value("ppd_visits_total", outcome="malformed") == 1
    assert scrape.value("ppd_detector_visits_ended_total", outcome="succeeded") == 3
    assert scrape.value("ppd_detector_visits_ended_total", outcome="failed") == 2
    assert scrape.value("ppd_raws_total", outcome="refused") == 1
    assert scrape.value("ppd_detector_failures_total", detector="3") == 1
    assert scrape.value("ppd_datasets_exported_total") == ppd.counts()["datasets_exported"]
    counted = sum(
        v for ls, v in scrape.samples["ppd_detector_visits"] if ls["state"] in ("exported", "failed")
    )
    assert counted == 5


def test_alerts_are_judged_by_the_shutter(scrape: Scrape) -> None:
    """The old visit's exposure was ten minutes before: it is neither in time nor late."""
    outcomes = {ls["outcome"]: v for ls, v in scrape.samples["ppd_alerts_total"]}
    assert outcomes == {"on_time": 1, "late": 1, "never": 1}
    assert scrape.value("ppd_shutter_to_alert_seconds_count") == 2
    assert 60.0 < scrape.value("ppd_shutter_to_alert_seconds_sum") < 180.0
    assert scrape.value("ppd_raw_to_alert_seconds_count") == 3


def test_in_time_is_the_same_everywhere(ppd: Ppd, scrape: Scrape) -> None:
    """For `visits`, `status`, `show`, the status page with and without the journal, and the metrics."""

    visits, status = ppd.client.visits()["visits"], ppd.status()
    overview = ppd.client.request(ControlRequest(command="detectors")).result
    before = past(ppd.settings.state_dir)
    pictures = [
        make_picture(status, overview, Past(), time.time()),
        make_picture(status, {**overview, "visits": [], "detectors": {}}, before, time.time()),
    ]
    told = [visits, status["visits"], *(picture["visits"] for picture in pictures)]
    for group, detector in _VISITS.items():
        judged = _JUDGED[group]
        for some in told:
            (alerts,) = [v["alerts"] for v in some if v["group"] == group]
            assert {name: n for name, n in alerts.items() if n} == {judged: 1}
        for picture in pictures:
            assert picture["detectors"][str(detector)]["alerts"] == judged
        assert show_detector(ppd.settings.state_dir, group, detector).line.alerts == judged
    for outcome in ("on_time", "late", "never"):
        counted = sum(v["alerts"][outcome] for v in visits)
        assert scrape.value("ppd_alerts_total", outcome=outcome) == counted == 1


def test_every_leg_is_timed(scrape: Scrape) -> None:
    """But for those of pre-processing, which this site does not have."""
    counts = {ls["leg"]: v for ls, v in scrape.samples["ppd_leg_seconds_count"]}
    assert set(counts) == {leg.name for leg in LEGS}
    gone = {name for name, count in counts.items() if count}
    assert gone == set(counts) - {"preprocess", "preprocess_wait"}
    assert counts["pipeline"] == counts["export"] == 3
    total = sum(v for _, v in scrape.samples["ppd_leg_seconds_sum"])
    assert 1.0 < total < 3 * 120.0


def test_all_is_there_from_the_start(before: Scrape, scrape: Scrape) -> None:
    """An increase from nothing would not be seen."""
    assert {n for n, s in before.samples.items() if s} == {n for n, s in scrape.samples.items() if s}
    for name, samples in scrape.samples.items():
        if name.endswith("_total"):
            assert {tuple(ls.items()) for ls, _ in samples} == {
                tuple(ls.items()) for ls, _ in before.samples[name]
            }


def test_names_by_convention(scrape: Scrape) -> None:
    for family in scrape.families.values():
        assert family.documentation, family.name
        if not family.name.startswith("ppd_"):
            assert family.name.startswith("process_")
            continue
        assert re.fullmatch(r"ppd(_[a-z]+)+", family.name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)$", family.name)
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
            for label, value in sample.labels.items():
                assert label not in ("group", "visit", "exposure"), sample
                assert value not in _VISITS, sample


def test_series_are_bounded(scrape: Scrape) -> None:
    """The nine detectors have one each; the rest does not depend on the camera."""
    series = sum(len(s) for s in scrape.samples.values())
    assert series - len(scrape.samples["ppd_detector_failures_total"]) < 600


def test_expressions_read_what_there_is(scrape: Scrape) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expressions = [rule["expr"] for rule in rules()] + dashboard_expressions()
    assert len(expressions) > 50
    for expression in expressions:
        for name, matchers in selectors(expression):
            if name in recorded | _NOT_OURS:
                continue
            assert name in scrape.samples, f"{name} in {expression}"
            for label, operator, value in matchers:
                if label == "job":
                    continue
                values = {ls.get(label) for ls, _ in scrape.samples[name]}
                wanted = value.split("|") if operator in ("Re", "NotRe") else [value]
                assert set(wanted) <= values, f"{label}={value} in {expression}; there are {values}"


def test_nothing_fires_when_all_is_well(before: Scrape) -> None:
    assert firing([before, before]) == set()


def test_what_has_gone_wrong_fires(before: Scrape, scrape: Scrape) -> None:
    """A malformed announcement, a spoiled raw, and that two of five detector-visits have failed."""
    expected = {"PpdVisitsRefused", "PpdRawsRefused", "PpdDetectorVisitsFail", "PpdAlertsLateSlow"}
    assert firing([before, scrape]) == expected


def test_every_part_has_an_alert() -> None:
    seen = set()
    for rule in alerts().values():
        for name, matchers in selectors(rule["expr"]):
            seen.update(value for label, _, value in matchers if name == "ppd_fault" and label == "component")
    # These have alerts on their own measures; where the page is not served, nothing is read: PpdDown.
    assert seen | {"spool", "dead_letters", "web"} == set(COMPONENTS)


def test_every_part_has_a_remedy_on_the_page() -> None:
    assert list(REMEDIES) == list(COMPONENTS)
    for component, remedy in REMEDIES.items():
        assert len(remedy.meaning.split()) > 4 and remedy.command, component
        assert remedy.meaning != COMPONENTS[component], "the fault has said so"


def test_every_alert_says_what_to_do() -> None:
    text = (ROOT / "docs" / "alerts.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
        severity = rule["labels"]["severity"]
        assert sections[name].lstrip().startswith(f"*{severity.capitalize()}.*"), name
        assert len(sections[name].split()) > 20, name


def test_metrics_are_documented(scrape: Scrape) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = dict(re.findall(r"^\| `(ppd_\w+)` \| (\w+) \|", text, re.MULTILINE))
    exposed = {}
    for family in scrape.families.values():
        if family.name.startswith("ppd_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            exposed[name] = family.type
            assert family.documentation in text, family.name
    assert documented == exposed
    legs = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", text, re.MULTILINE))
    assert {leg.name: leg.what for leg in LEGS} == legs


def test_visits_are_traced(ppd: Ppd, scrape: Scrape) -> None:
    """The supervisor's spans reach the collector; children know their place."""

    def roots() -> set[str]:
        return {a.value.string_value for s in _Collector.spans if s.name == "visit" for a in s.attributes}

    wait_for(lambda: {"in-time", "spoiled"} <= roots(), 30.0, "spans to be sent")
    trace = traceparent("DemoCam", "in-time", 1).split("-")[1]
    own = [s for s in _Collector.spans if s.trace_id.hex() == trace]
    assert {"visit", "detector-visit", "inputs", "pipeline", "export"} <= {s.name for s in own}
    [log] = ppd.settings.state_dir.glob("logs/*/*in-time*.log")
    assert f'"trace_id": "{trace}"' in log.read_text() or f"trace_id={trace}" in log.read_text()


def test_the_command_for_programs(ppd: Ppd) -> None:
    done = ppd.command("ctl", "metrics", "--json")
    assert "ppd_info" in json.loads(done.stdout)["text"]
