"""Planning and simulating a night."""

from __future__ import annotations

__all__ = ["NightPlan", "PlannedVisit", "load_plan", "plan_conditions", "simulate_night"]

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from astropy.table import Table
from astropy.time import Time

from ..deployment import day_obs
from ..visit import TAI_MINUS_UTC
from .camera import INSTRUMENT, focal_plane
from .central import build_apdb, build_central, known_movers
from .raws import Conditions, simulate_raw, write_raw
from .sky import FIELDS, Sky, make_sky
from .truth import TRUTH_COLUMNS, true_changes

_EXPOSURE_SECONDS = 30.0


class PlannedVisit(pydantic.BaseModel):
    """One visit of the plan."""

    model_config = pydantic.ConfigDict(frozen=True)

    group: str
    exposure: int
    field: str
    physical_filter: str
    ra: float
    dec: float
    rotation: float
    shutter_close: float
    """When the exposure ends and its raws begin to come, seconds from the start of the night (compressed)."""
    announce: float
    """When the visit is announced, seconds from the start of the night."""
    raws: dict[int, str]
    """Path below the raw root by detector."""


class NightPlan(pydantic.BaseModel):
    """The night: what is announced and what lands, and when."""

    model_config = pydantic.ConfigDict(frozen=True)

    seed: int
    cadence: float
    """Seconds from visit to visit."""
    visits: tuple[PlannedVisit, ...]
    staged: str
    """Folder of the simulated raws."""
    central: str
    apdb_config: str
    truth: str


def load_plan(path: Path) -> NightPlan:
    """Read a plan that `simulate_night` wrote."""
    return NightPlan.model_validate(json.loads(path.read_text()))


def simulate_night(
    directory: Path,
    *,
    visits: int = 6,
    seed: int = 1,
    cadence: float = 18.0,
    workers: int = 2,
    registry: str | None = None,
) -> NightPlan:
    """Simulate everything that exists before and during a night.

    Parameters
    ----------
    directory : `pathlib.Path`
        Where it goes: ``central_repo``, ``apdb``, ``truth.parquet``,
        ``staged`` raws and ``night.json``.
    visits : `int`, optional
        How many visits; fields are revisited, bands alternate.
    seed : `int`, optional
        Seed; the same seed gives the same sky.
    cadence : `float`, optional
        Seconds from visit to visit.
    workers : `int`, optional
        Processes, this one among them: it puts into the central repo what
        the others draw.
    registry : `str`, optional
        URL of the database of the central repo's registry; SQLite by default.

    Returns
    -------
    plan : `NightPlan`
        The plan, as written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # About when the night is played: after the simulation, ppd-init and ppd's start, half a minute
    # from now. The player writes the exposures' times as they are then.
    begin = time.time() + 20.0 + 2.0 * visits
    night_mjd = float(Time(begin + TAI_MINUS_UTC, format="unix_tai", scale="tai").mjd)
    conditions = [plan_conditions(number, seed, begin, cadence) for number in range(visits)]
    names = {c.field for c in conditions}
    skies = {f.name: make_sky(f, seed, night_mjd) for f in FIELDS if f.name in names}
    staged = directory / "staged"
    jobs = [(c, d.id) for c in conditions for d in focal_plane().detectors]
    # Fresh processes: a fork would copy threads of numerical libraries.
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(max(1, workers - 1), mp_context=context) as pool:
        raws: list[Future[list[dict[str, Any]]]] = []

        def draw(function: Callable[[Any], Any], templates: Sequence[Any]) -> Iterator[Any]:
            # Templates are waited for first, so they are drawn first.
            pixels = [pool.submit(function, job) for job in templates]
            for c, d in jobs:
                raws.append(pool.submit(_draw, (skies[c.field], c, d, staged, night_mjd, seed)))
            return (pixels.pop(0).result() for _ in templates)

        try:
            build_central(
                directory / "central_repo",
                list(skies.values()),
                {(c.field, c.band) for c in conditions},
                seed,
                night_mjd,
                draw,
                registry,
            )
            (directory / "apdb").mkdir()
            apdb = build_apdb(directory / "apdb")
            for raw in raws:
                rows += raw.result()
        except BaseException:
            # Also after Ctrl-C: raws that nobody will look at are not drawn.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    truth = directory / "truth.parquet"
    Table(rows=rows, names=TRUTH_COLUMNS).write(truth, format="parquet", overwrite=True)
    lead = 20.0 * cadence / 34.0
    planned = []
    for number, c in enumerate(conditions):
        close = lead + 1.0 + number * cadence + 2.0
        # One visit in four is announced late: some of its raws are there first.
        announce = close + 0.5 if number % 4 == 2 else close - 2.0 - lead
        planned.append(
            PlannedVisit(
                group=c.group,
                exposure=c.exposure,
                field=c.field,
                physical_filter=c.physical_filter,
                ra=c.ra,
                dec=c.dec,
                rotation=c.rotation,
                shutter_close=close,
                announce=announce,
                raws={d.id: str(_raw_path(c, d.id)) for d in focal_plane().detectors},
            )
        )
    plan = NightPlan(
        seed=seed,
        cadence=cadence,
        visits=tuple(planned),
        staged=str(staged.resolve()),
        central=str((directory / "central_repo").resolve()),
        apdb_config=str(apdb.resolve()),
        truth=str(truth.resolve()),
    )
    (directory / "night.json").write_text(plan.model_dump_json(indent=1))
    return plan


def plan_conditions(number: int, seed: int, begin: float, cadence: float) -> Conditions:
    """Choose field, filter, pointing, seeing and the like of a visit.

    Parameters
    ----------
    number : `int`
        Which visit of the night, from 0.
    seed : `int`
        Seed of the simulation.
    begin : `float`
        When the first exposure begins, Unix seconds.
    cadence : `float`
        Seconds from visit to visit.

    Returns
    -------
    conditions : `ppd.demo.raws.Conditions`
        The same for the same arguments.
    """
    rng = np.random.default_rng([seed, 500 + number])
    # Each field is visited twice running through both bands over the night.
    field = FIELDS[number % len(FIELDS)]
    physical_filter = ("demo-r", "demo-g")[(number // len(FIELDS)) % 2]
    start = begin + number * cadence
    begin_mjd = float(Time(start + TAI_MINUS_UTC, format="unix_tai", scale="tai").mjd)
    group = Time(begin_mjd, format="mjd", scale="tai", precision=3).isot
    day = day_obs(start)
    error = rng.normal(0.0, 1.2 / 3600.0, 2)
    dither = rng.uniform(-8.0, 8.0, 2) / 3600.0
    dec = field.dec + dither[1]
    ra = (field.ra + dither[0] / np.cos(np.radians(dec))) % 360.0
    return Conditions(
        exposure=day * 100_000 + number + 1,
        obs_id=f"DC_O_{day}_{number + 1:06d}",
        group=group,
        snap=0,
        field=field.name,
        physical_filter=physical_filter,
        ra=float(ra),
        dec=float(dec),
        true_ra=float(ra + error[0] / np.cos(np.radians(dec))),
        true_dec=float(dec + error[1]),
        rotation=float(rng.uniform(-5.0, 5.0) % 360.0),
        begin_mjd=begin_mjd,
        exposure_time=_EXPOSURE_SECONDS,
        fwhm=float(rng.uniform(2.7, 3.8)),
        elongation=float(rng.uniform(-0.03, 0.03)),
        sky_factor=float(rng.uniform(0.9, 1.25)),
        transparency=float(rng.uniform(0.85, 1.0)),
        day_obs=day,
        seq_num=number + 1,
        seed=seed,
    )


def _raw_path(c: Conditions, detector: int) -> Path:
    folder = Path(INSTRUMENT) / str(detector) / c.group / str(c.snap) / str(c.exposure) / c.physical_filter
    return folder / f"{c.obs_id}_{focal_plane().outline(detector).name}.fits"


def _draw(job: tuple[Sky, Conditions, int, Path, float, int]) -> list[dict[str, Any]]:
    sky, c, detector, staged, night_mjd, seed = job
    pixels, header, scene = simulate_raw(sky, c, detector)
    write_raw(staged / _raw_path(c, detector), pixels, header)
    return true_changes(sky, c, detector, scene, night_mjd, known_movers(sky, seed))
