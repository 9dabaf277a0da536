"""Visits of one exposure and of several, in each of Rubin's visit systems."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import astropy.io.fits
import pytest
from lsst.daf.butler import Butler
from repo_support import DEMO_EXPOSURE, DEMOCAM, make_demo_repo, write_demo_raw

from ppd.demo.democam import describe
from ppd.workers.ingest import ingest_raw, load_translators, read_raw
from ppd.workers.visits import define_visits

GROUP = "2026-11-25T04:47:59.000"
RUN = f"{DEMOCAM}/raw/all"
SYSTEMS = {"one-to-one": 0, "by-group-metadata": 1, "by-seq-start-end": 2}
GROUP_ID = 20261125044759000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_translators()
    return write_demo_raw(tmp_path_factory.mktemp("raws"))


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    make_demo_repo(root)
    return root


@pytest.fixture
def butler(tmp_path: Path, blank: Path) -> Iterator[Butler]:
    shutil.copytree(blank, tmp_path / "repo")
    with Butler.from_config(str(tmp_path / "repo"), writeable=True) as butler:
        yield butler


def _snap(good: Path, folder: Path, number: int, first: int, last: int) -> Path:
    """Write a raw that is a numbered one of a sequence; its exposure ID ends with the number."""
    path = folder / f"snap{number}.fits"
    shutil.copy(good, path)
    with astropy.io.fits.open(path, mode="update") as hdus:
        header = hdus[0].header
        header["SEQNUM"], header["SEQSTART"], header["SEQEND"] = number, first, last
        header["EXPID"] = DEMO_EXPOSURE - 3 + number
        header["OBSID"] = f"DC_{DEMO_EXPOSURE - 3 + number}"
    return path


def _define(butler: Butler, paths: list[Path], systems: list[str], own: str) -> tuple[int, ...]:
    """Ingest raws into a repo with some visit systems, of which one is the instrument's own."""
    (instrument,) = butler.query_dimension_records("instrument", instrument=DEMOCAM)
    changed = {**instrument.toDict(), "visit_system": SYSTEMS[own]}
    butler.registry.insertDimensionData("instrument", changed, replace=True)
    for name in systems:
        record = {"instrument": DEMOCAM, "id": SYSTEMS[name], "name": name}
        butler.registry.insertDimensionData("visit_system", record, skip_existing=True)
    raws = [read_raw(path, DEMOCAM, GROUP, 4) for path in paths]
    known = {int(e.id) for e in butler.query_dimension_records("exposure", explain=False)}
    for raw in raws:
        if raw.exposure not in known:
            ingest_raw(butler, raw, RUN, describe())
    return define_visits(butler, raws, describe())


def _memberships(butler: Butler) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for m in butler.query_dimension_records("visit_system_membership", instrument=DEMOCAM, explain=False):
        found.setdefault(int(m.visit), []).append(int(m.visit_system))
    return {visit: sorted(systems) for visit, systems in found.items()}


def _definitions(butler: Butler) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for m in butler.query_dimension_records("visit_definition", instrument=DEMOCAM, explain=False):
        found.setdefault(int(m.visit), []).append(int(m.exposure))
    return {visit: sorted(exposures) for visit, exposures in found.items()}


def test_alone(good: Path, tmp_path: Path, butler: Butler) -> None:
    """One exposure is one visit, in all systems that go by exposures."""
    path = _snap(good, tmp_path, 3, 3, 3)
    visits = _define(butler, [path], ["one-to-one", "by-seq-start-end"], "by-seq-start-end")
    assert visits == (DEMO_EXPOSURE,)
    assert _memberships(butler) == {DEMO_EXPOSURE: [0, 2]}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("own", "processed"),
    [
        ("one-to-one", (int(f"9{DEMO_EXPOSURE}"), DEMO_EXPOSURE + 1)),
        ("by-seq-start-end", (DEMO_EXPOSURE,)),
        ("by-group-metadata", (GROUP_ID,)),
    ],
)
def test_two_snaps(
    good: Path, tmp_path: Path, butler: Butler, own: str, processed: tuple[int, ...], order: int
) -> None:
    """Two snaps, whichever came first: one visit each, one for both by sequence, one by group."""
    paths = [_snap(good, tmp_path, n, 3, 4) for n in (3, 4)][::order]
    assert _define(butler, paths, list(SYSTEMS), own) == processed
    first, second, nine = DEMO_EXPOSURE, DEMO_EXPOSURE + 1, int(f"9{DEMO_EXPOSURE}")
    assert _memberships(butler) == {nine: [0], second: [0], first: [2], GROUP_ID: [1]}
    both = [first, second]
    assert _definitions(butler) == {nine: [first], second: [second], first: both, GROUP_ID: both}
    visits = {v.id: v for v in butler.query_dimension_records("visit", instrument=DEMOCAM)}
    exposures = butler.query_dimension_records("exposure", instrument=DEMOCAM)
    assert visits[first].name == visits[nine].name.removesuffix("_first")
    assert visits[first].exposure_time == pytest.approx(sum(e.exposure_time for e in exposures))
    assert visits[first].timespan.begin == min(e.timespan.begin for e in exposures)
    assert visits[first].timespan.end == max(e.timespan.end for e in exposures)
    assert visits[GROUP_ID].name == GROUP
    regions = butler.query_dimension_records("visit_detector_region", instrument=DEMOCAM)
    assert {(r.visit, r.detector) for r in regions} == {(v, 4) for v in visits}


def test_second_missing(good: Path, tmp_path: Path, butler: Butler) -> None:
    """The first of two gives the visit of both its ID and is all that is in it."""
    paths = [_snap(good, tmp_path, 3, 3, 4)]
    visits = _define(butler, paths, ["one-to-one", "by-seq-start-end"], "by-seq-start-end")
    assert visits == (DEMO_EXPOSURE,)
    nine = int(f"9{DEMO_EXPOSURE}")
    assert _definitions(butler) == {nine: [DEMO_EXPOSURE], DEMO_EXPOSURE: [DEMO_EXPOSURE]}
    assert _memberships(butler) == {nine: [0], DEMO_EXPOSURE: [2]}


def test_first_missing(good: Path, tmp_path: Path, butler: Butler) -> None:
    """Without the first, the visit of both has no ID; the second is processed as its own."""
    paths = [_snap(good, tmp_path, 4, 3, 4)]
    visits = _define(butler, paths, ["one-to-one", "by-seq-start-end"], "by-seq-start-end")
    assert visits == (DEMO_EXPOSURE + 1,)
    assert _memberships(butler) == {DEMO_EXPOSURE + 1: [0]}


def test_no_systems(good: Path, tmp_path: Path, butler: Butler) -> None:
    """A repo that knows no visit system gets the one-to-one system; snaps are visits of it."""
    paths = [_snap(good, tmp_path, n, 3, 4) for n in (3, 4)]
    assert _define(butler, paths, [], "one-to-one") == (DEMO_EXPOSURE, DEMO_EXPOSURE + 1)
    assert _memberships(butler) == {DEMO_EXPOSURE: [0], DEMO_EXPOSURE + 1: [0]}


def test_twice_is_once(good: Path, tmp_path: Path, butler: Butler) -> None:
    """Snaps that are defined again, with one more, keep what was said of them."""
    paths = [_snap(good, tmp_path, n, 3, 4) for n in (3, 4)]
    systems = ["one-to-one", "by-seq-start-end"]
    first = _define(butler, paths[:1], systems, "by-seq-start-end")
    assert _define(butler, paths, systems, "by-seq-start-end") == first == (DEMO_EXPOSURE,)
    assert _definitions(butler)[DEMO_EXPOSURE] == [DEMO_EXPOSURE, DEMO_EXPOSURE + 1]
