"""The plan of a night, what was simulated for it, and the demo's own configuration."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits
import pytest
from astropy.table import Table
from astropy.time import Time
from lsst.daf.butler import Butler
from observatory import Observatory

from ppd.demo import runner
from ppd.demo.configuration import write_config
from ppd.demo.night import NightPlan, load_plan, plan_conditions
from ppd.demo.sky import FIELDS
from ppd.demo.truth import TRUTH_COLUMNS
from ppd.deployment import day_obs
from ppd.pipelines import load_pipeline
from ppd.sources.keys import parse_raw_path

BEGIN = 1_795_500_000.0


@pytest.fixture(scope="module")
def plan(observatory: Observatory) -> NightPlan:
    return observatory.plan


def test_plan_is_on_disk(observatory: Observatory) -> None:
    assert load_plan(observatory.root / "night.json") == observatory.plan


def test_every_raw_is_staged_and_says_what_its_path_says(plan: NightPlan) -> None:
    for visit in plan.visits:
        assert set(visit.raws) == set(range(9))
        for detector, raw in visit.raws.items():
            header = astropy.io.fits.getheader(Path(plan.staged) / raw)
            assert (header["GROUPID"], header["DETNUM"]) == (visit.group, detector)
            assert header["EXPID"] == visit.exposure
            key = parse_raw_path(Path(raw))
            assert key is not None
            assert (key.instrument, key.group, key.detector) == ("DemoCam", visit.group, detector)


def test_truth_is_of_every_detector(plan: NightPlan) -> None:
    truth = Table.read(plan.truth)
    assert tuple(truth.colnames) == TRUTH_COLUMNS
    assert set(truth["detector"]) == set(range(9))
    assert set(truth["exposure"]) == {v.exposure for v in plan.visits}
    bright = truth[truth["good"] & (truth["snr"] > 10)]
    assert len(bright) >= 15


def test_notice_is_as_long_as_the_telescope_gives(plan: NightPlan) -> None:
    """20 s of 34 s from visit to visit, in the compressed time of the demo."""
    first = plan.visits[0]
    lead = first.shutter_close - 2.0 - first.announce
    assert lead == pytest.approx(20.0 * plan.cadence / 34.0)


def test_same_arguments_same_conditions() -> None:
    assert plan_conditions(4, 1, BEGIN, 14.0) == plan_conditions(4, 1, BEGIN, 14.0)
    assert plan_conditions(4, 1, BEGIN, 14.0).true_ra != plan_conditions(4, 2, BEGIN, 14.0).true_ra


def test_fields_are_revisited_in_both_bands() -> None:
    night = [plan_conditions(n, 1, BEGIN, 14.0) for n in range(6)]
    assert {(c.field, c.band) for c in night} == {(f.name, b) for f in FIELDS for b in "gr"}
    assert len({c.group for c in night}) == len({c.exposure for c in night}) == 6
    assert night == sorted(night, key=lambda c: c.begin_mjd)
    for c in night:
        field = next(f for f in FIELDS if f.name == c.field)
        off = (c.ra - field.ra + 180.0) % 360.0 - 180.0
        assert abs(off) * 3600 < 20
        assert (c.rotation + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=5.0)


def test_group_and_day_are_those_of_the_time() -> None:
    c = plan_conditions(0, 1, BEGIN, 14.0)
    assert Time(c.group, format="isot", scale="tai").mjd == pytest.approx(c.begin_mjd, abs=1e-7)
    assert c.exposure // 100_000 == c.day_obs == day_obs(BEGIN)


def test_the_demo_configures_ppd(plan: NightPlan, tmp_path: Path) -> None:
    settings = write_config(tmp_path, plan, tmp_path / "sockets")
    assert settings.instrument == "DemoCam"
    for node in (*settings.preprocessing_pipelines, *settings.main_pipelines):
        for path in node.pipelines:
            graph = load_pipeline(path, settings).to_graph()
            if "associateApdb" in graph.tasks:
                assert graph.tasks["associateApdb"].config.apdbConfigUrl == plan.apdb_config
                assert graph.tasks["packageAlerts"].config.alertDirectory == str(tmp_path / "alerts")


def test_an_earlier_demo_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "output"
    runner._clear(output)
    (output / "central_repo").mkdir()
    runner._clear(output)
    assert [p.name for p in output.iterdir()] == [".ppd-demo"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("…")
    with pytest.raises(SystemExit, match="choose another"):
        runner._clear(other)
    assert (other / "chapter1.tex").exists()


def test_templates_are_where_the_night_looks(observatory: Observatory) -> None:
    visit = observatory.plan.visits[0]
    with Butler.from_config(observatory.plan.central, writeable=False) as butler:
        refs = butler.query_datasets("template_coadd", collections="DemoCam/defaults")
        tract = next(i for i, f in enumerate(FIELDS) if f.name == visit.field)
        assert {r.dataId["tract"] for r in refs} == {tract}
        assert {r.dataId["band"] for r in refs} == {visit.physical_filter[-1]}
