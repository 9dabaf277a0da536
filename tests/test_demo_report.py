"""The report of a night: one page that needs nothing else and tells of every visit."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from demo_support import SEED, Field, detector_results, shared_field
from PIL import Image as PillowImage

from ppd.demo.history import NightHistory, Timeline
from ppd.demo.matching import DetectorResult
from ppd.demo.night import NightPlan, PlannedVisit
from ppd.demo.report import write_report
from ppd.demo.report_charts import SPANS, completeness_chart, marks, timeline_chart
from ppd.demo.report_images import GAP, TILE, as_data_uri, mosaic, tile_corner
from ppd.demo.summary import summarize_night

T0 = 1_795_500_000.0


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def plan(field: Field) -> NightPlan:
    visits = []
    for c in dict.fromkeys(o.conditions for o in field.observed):
        own = [o for o in field.observed if o.conditions is c]
        visits.append(
            PlannedVisit(
                group=c.group,
                exposure=c.exposure,
                field=c.field,
                physical_filter=c.physical_filter,
                ra=c.ra,
                dec=c.dec,
                rotation=c.rotation,
                shutter_close=0.0,
                announce=0.0,
                raws={o.detector: o.raw.name for o in own},
            )
        )
    return NightPlan(
        seed=SEED,
        cadence=1.0,
        visits=tuple(visits),
        staged=str(field.root / "raws"),
        central=str(field.root / "central"),
        apdb_config="",
        truth="",
    )


@pytest.fixture(scope="module")
def results(field: Field) -> list[DetectorResult]:
    return detector_results(field)


@pytest.fixture(scope="module")
def history(field: Field) -> NightHistory:
    times = {name: T0 + i for i, name in enumerate(dict.fromkeys(n for a, b, *_ in SPANS for n in (a, b)))}
    timelines = [
        Timeline(o.conditions.group, o.detector, "exported", "ApPipe", "", dict(times), 1, 33)
        for o in field.observed
    ]
    timelines[-1].state = "failed"
    timelines[-1].reason = "<b>no & stars</b>"
    return NightHistory(list(dict.fromkeys(t.group for t in timelines)), timelines, {})


def _summary(history: NightHistory, results: list[DetectorResult]) -> dict:
    return summarize_night(
        wall_s=100.0, planned=2, history=history, results=results, alerts=32, left_behind={"sockets": 0}
    )


@pytest.fixture(scope="module")
def page(plan: NightPlan, history: NightHistory, results: list[DetectorResult], tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, plan, "test/main", history, results, _summary(history, results))
    return path.read_text()


class _Checker(HTMLParser):
    """Notes what a page refers to, and that every element is closed."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def checked(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    return checker


def test_page_is_whole(checked: _Checker) -> None:
    assert checked.open == []
    assert checked.counts["html"] == checked.counts["body"] == checked.counts["h1"] == 1
    assert checked.counts["svg"] >= 4


def test_page_needs_nothing_else(page: str, checked: _Checker) -> None:
    assert checked.references
    assert all(reference.startswith("data:image/") for reference in checked.references)
    assert not re.search(r"https?://", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "script" not in checked.counts


def test_every_visit_is_there(page: str, plan: NightPlan, results: list[DetectorResult]) -> None:
    for number, visit in enumerate(plan.visits, start=1):
        found = sum(len(r.detections) for r in results if r.exposure == visit.exposure)
        title = (
            f"Visit {number}: {visit.field}, {visit.physical_filter}, group {visit.group}: {found} detections"
        )
        assert page.count(title) == 1
    assert page.count('class="mosaic"') == 3 * len(plan.visits)


def test_pictures_can_be_read(checked: _Checker) -> None:
    sizes = set()
    for reference in checked.references:
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.+)", reference).groups()
        picture = PillowImage.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        assert picture.format == kind.upper()
        sizes.add(picture.size)
    side = 3 * TILE + 2 * GAP
    assert sizes == {(side, side), (93, 93)}


def test_figures_are_on_the_page(page: str, history: NightHistory, results: list[DetectorResult]) -> None:
    summary = _summary(history, results)
    assert f"{100 * summary['completeness_10sigma']:.1f} %" in page
    assert f"{summary['succeeded']} / {summary['detector_visits']}" in page
    assert "None" not in page
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page)


def test_a_night_without_outputs(plan: NightPlan, tmp_path: Path) -> None:
    """After Ctrl-C before the first visit there is a report all the same."""
    empty = NightHistory([], [], {})
    write_report(tmp_path / "report.html", plan, None, empty, [], _summary(empty, []))
    checker = _Checker()
    checker.feed((tmp_path / "report.html").read_text())
    assert checker.open == []
    assert "No visit was accepted." in (tmp_path / "report.html").read_text()


def test_timeline_has_a_bar_for_every_span(history: NightHistory) -> None:
    chart = timeline_chart(history)
    # It waits for a processor twice: for pre-processing and for the main pipeline.
    for colour, spans in Counter(colour for *_, colour in SPANS).items():
        assert chart.count(f'fill="{colour}"') == spans * len(history.timelines), colour
    assert len({name for _, _, name, _ in SPANS}) == len({colour for *_, colour in SPANS})
    assert chart.count('class="fail"') == 1
    assert "<b>" not in chart


def test_raw_that_came_before_its_child(history: NightHistory) -> None:
    """The time until its child takes it is not told as ingest, nor as waiting for the raw."""
    early = dataclasses.replace(history.timelines[0], times=dict(history.timelines[0].times))
    early.times["raw_closed"] = early.times["accepted"] - 5.0
    chart = timeline_chart(NightHistory(history.visits, [early], {}))
    told = re.search(r"<title>(.*?)</title>", chart)
    assert told is not None
    assert "wait for the raw" not in told[1]
    since = max(early.times["ready"], early.times["preprocess_end"])
    assert f"ingest {early.times['ingested'] - since:.2f} s" in told[1]


def test_marks(results: list[DetectorResult]) -> None:
    svg = marks(results[:2])
    true = sum(int(r.detections["true"].sum()) for r in results[:2])
    spurious = sum(len(r.detections) for r in results[:2]) - true
    assert svg.count('class="true"') == true
    assert svg.count('class="false"') == spurious


def test_completeness_counts_good_sources_only(results: list[DetectorResult]) -> None:
    chart = completeness_chart(results)
    told = sum(int(n) for n in re.findall(r"r: \d+% of (\d+)", chart))
    good = np.concatenate([np.asarray(r.truth["mag"])[np.asarray(r.truth["good"])] for r in results])
    assert told == ((good >= 17.0) & (good < 25.0)).sum() > 20


def test_detectors_lie_as_in_the_focal_plane() -> None:
    tiles = {d: np.full((512, 512), 0.0) for d in (0,)}
    tiles[0][:50, :50] = 1000.0  # lower left corner of the lower left detector
    tiles[0] += np.random.default_rng(1).normal(0.0, 1.0, (512, 512))
    uri = mosaic({**tiles, 8: None}, difference=False)
    picture = np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float)
    assert tile_corner(0) == (0, 0)
    assert tile_corner(2) == (2 * (TILE + GAP), 0)
    assert tile_corner(6) == (0, 2 * (TILE + GAP))
    # Row 0 of a picture is at its top.
    assert picture[-10:, :10].mean() > 200
    assert picture[-TILE + 10 : -100, 100:TILE].mean() < 100
    assert picture[:TILE, -TILE:].mean() == pytest.approx(40, abs=2)  # no image there


def test_stamps_keep_every_pixel() -> None:
    gray = np.arange(0, 31 * 31, dtype=np.uint16).reshape(31, 31).astype(np.uint8)
    uri = as_data_uri(gray, smooth=False)
    picture = np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert np.array_equal(picture[::-1], gray)
