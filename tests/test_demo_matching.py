"""Matching detections with the truth, and the truth itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from demo_support import SEED, Field, shared_field

from ppd.demo.camera import CAMERA
from ppd.demo.central import known_movers
from ppd.demo.matching import MATCH_ARCSEC, match_night, read_results
from ppd.demo.night import NightPlan, PlannedVisit
from ppd.demo.truth import TRUTH_COLUMNS, true_changes

ARCSEC = 1.0 / 3600.0


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


def _truth(*rows: tuple[float, float, float]) -> Table:
    return Table(rows=rows, names=("ra", "dec", "snr"), dtype=(float, float, float))


def _found(*rows: tuple[float, float]) -> Table:
    return (
        Table(rows=rows, names=("ra", "dec"), dtype=(float, float))
        if rows
        else Table({"ra": np.array([]), "dec": np.array([])})
    )


def test_near_and_far() -> None:
    truth = _truth((10.0, 0.0, 50.0), (10.01, 0.0, 50.0))
    near, far = (MATCH_ARCSEC - 0.05) * ARCSEC, (MATCH_ARCSEC + 0.05) * ARCSEC
    result = match_night("g", 1, 0, "r", _found((10.0, near), (10.01, far)), truth)
    assert list(result.detections["true"]) == [True, False]
    assert list(result.truth["found"]) == [True, False]


@pytest.mark.parametrize("ra", [0.0, 100.0])
def test_across_zero_and_towards_the_pole(ra: float) -> None:
    # 2 arcsec of right ascension at declination 60 are 1, and 3 are 1.5.
    truth = _truth(((ra - ARCSEC) % 360.0, 60.0, 50.0))
    for step, found in ((1.0, True), (2.0, False)):
        result = match_night("g", 1, 0, "r", _found(((ra + step * ARCSEC) % 360.0, 60.0)), truth)
        assert list(result.truth["found"]) == [found]


def test_what_hardly_changed_excuses_no_detection() -> None:
    truth = _truth((10.0, 0.0, 0.5))
    result = match_night("g", 1, 0, "r", _found((10.0, 0.0)), truth)
    assert list(result.detections["true"]) == [False]


def test_nothing_on_either_side() -> None:
    result = match_night("g", 1, 0, "r", _found(), _truth((10.0, 0.0, 50.0)))
    assert list(result.truth["found"]) == [False]
    assert len(result.detections["true"]) == 0
    result = match_night("g", 1, 0, "r", _found((1.0, 1.0)), _truth((10.0, 0.0, 50.0))[:0])
    assert list(result.detections["true"]) == [False]


def test_truth_of_an_exposure(field: Field) -> None:
    observed = field.observed[0]
    truth, c = observed.truth, observed.conditions
    assert tuple(truth.colnames) == TRUTH_COLUMNS
    assert set(truth["kind"]) == {"variable", "supernova", "mover"}
    x, y = c.grid(observed.detector).to_pixels(truth["ra"], truth["dec"])
    assert np.array([x, y]) == pytest.approx(np.array([truth["x"], truth["y"]]), abs=1e-6)
    assert ((x >= 0) & (x < CAMERA.side) & (y >= 0) & (y < CAMERA.side)).all()
    # Whatever is new is positive; what varies is of either sign.
    assert (truth["flux"][truth["kind"] != "variable"] > 0).all()
    columns = np.array(CAMERA.bad_columns(observed.detector))
    near = np.abs(np.asarray(x)[:, None] - columns).min(axis=1) <= 3
    assert not truth["good"][near].any()


def test_signal_to_noise_grows_with_flux_and_falls_with_the_sky(field: Field) -> None:
    observed = field.observed[0]
    c = observed.conditions
    bright = dataclasses.replace(c, sky_factor=4 * c.sky_factor)
    one, two = (
        true_changes(
            field.sky,
            conditions,
            observed.detector,
            np.full((512, 512), conditions.sky_level()),
            field.night_mjd,
            known_movers(field.sky, SEED),
        )
        for conditions in (c, bright)
    )
    ratio = [b["snr"] / a["snr"] for a, b in zip(one, two, strict=True)]
    level = c.sky_level()
    assert ratio == pytest.approx([np.sqrt((level + 40) / (4 * level + 40))] * len(one), rel=1e-6)
    flux = np.array([abs(r["flux"]) for r in one])
    assert np.array([r["snr"] for r in one]) / flux == pytest.approx(one[0]["snr"] / flux[0], rel=1e-6)


def test_results_of_a_repo(field: Field, tmp_path: Path) -> None:
    """As the report reads them: from datasets in the output chain and the truth's file."""
    rows = [dict(zip(TRUTH_COLUMNS, row, strict=True)) for o in field.observed for row in o.truth]
    Table(rows=rows, names=TRUTH_COLUMNS).write(tmp_path / "truth.parquet", format="parquet")
    visits = {o.conditions.exposure: o.conditions for o in field.observed}
    plan = NightPlan(
        seed=SEED,
        cadence=1.0,
        visits=tuple(
            PlannedVisit(
                group=c.group,
                exposure=exposure,
                field=c.field,
                physical_filter=c.physical_filter,
                ra=c.ra,
                dec=c.dec,
                rotation=c.rotation,
                shutter_close=0.0,
                announce=0.0,
                raws={},
            )
            for exposure, c in visits.items()
        ),
        staged="",
        central=str(field.root / "central"),
        apdb_config="",
        truth=str(tmp_path / "truth.parquet"),
    )
    results = read_results(plan, "test/main")
    assert [(r.exposure, r.detector) for r in results] == sorted(
        (o.conditions.exposure, o.detector) for o in field.observed
    )
    for result, observed in zip(results, field.observed, strict=True):
        assert len(result.truth) == len(observed.truth)
        assert len(result.detections) == len(field.get("dia_source_detector", observed))
        assert result.truth["found"].any()
    assert read_results(plan, None) == read_results(plan, "no/such/chain") == []
