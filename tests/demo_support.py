"""One field of the demo observatory, observed twice by two detectors and processed."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from astropy.time import Time, TimeDelta
from lsst.daf.butler import Butler, DatasetType, Timespan
from lsst.pipe.base import Pipeline
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.utils import RegionTimeInfo
from sharing import make_once

from ppd.demo.camera import INSTRUMENT
from ppd.demo.central import build_apdb, build_central, known_movers
from ppd.demo.democam import describe
from ppd.demo.matching import DetectorResult, match_night
from ppd.demo.night import plan_conditions
from ppd.demo.raws import Conditions, simulate_raw, write_raw
from ppd.demo.sky import FIELDS, Sky, make_sky
from ppd.demo.skymap import SKYMAP
from ppd.demo.tasks.alerts import PackageAlertsTask
from ppd.demo.truth import TRUTH_COLUMNS, true_changes
from ppd.visit import TAI_MINUS_UTC
from ppd.workers.ingest import ingest_raw, load_translators, read_raw
from ppd.workers.visits import define_visits

PIPELINES = Path(__file__).parent.parent / "ppd" / "demo" / "pipelines"

# The field across right ascension 0: whatever does not wrap shows.
FIELD = FIELDS[2]
SEED = 20
DETECTORS = (4, 8)
# Half a night apart, so that what moves has moved; the time is fixed, so that
# every run of the tests has the same pixels.
BEGIN = 1_795_500_000.0
VISITS = (2, 8)
CADENCE = 1200.0
RAW_RUN = f"{INSTRUMENT}/raw/all"


@dataclasses.dataclass(frozen=True)
class Observed:
    """One raw and what is true of it."""

    conditions: Conditions
    detector: int
    raw: Path
    scene: np.ndarray
    """Electrons of sky and sources before any noise."""
    truth: Table

    @property
    def group_id(self) -> dict[str, Any]:
        """Data ID of what pre-processing makes."""
        return {"instrument": INSTRUMENT, "group": self.conditions.group, "detector": self.detector}

    @property
    def visit_id(self) -> dict[str, Any]:
        """Data ID of what the main pipeline makes."""
        return {"instrument": INSTRUMENT, "visit": self.conditions.exposure, "detector": self.detector}


@dataclasses.dataclass(frozen=True)
class Field:
    """The field, its repo and what was observed of it."""

    root: Path
    sky: Sky
    night_mjd: float
    butler: Butler
    apdb_config: Path
    observed: tuple[Observed, ...]
    """First visit, then the second; detectors in order."""

    def get(self, name: str, of: Observed) -> Any:
        """Read an output, whether it is of a visit, an exposure or a group."""
        data_id = {**of.visit_id, "group": of.conditions.group, "exposure": of.conditions.exposure}
        wanted = self.butler.get_dataset_type(name).dimensions.required
        return self.butler.get(name, {k: data_id[k] for k in wanted}, collections=["test/main", "test/pre"])

    def seen_by(self, detector: int) -> tuple[Observed, Observed]:
        """First and second visit of a detector."""
        first, second = (o for o in self.observed if o.detector == detector)
        return first, second


@functools.cache
def shared_field(base: Path) -> Field:
    """The field, simulated and processed once for all tests; nobody changes what is in it.

    ``base`` is pytest's ``tmp_path_factory.getbasetemp()``.
    """
    return make_once(base, "field", _process_field)


def _process_field(root: Path) -> Field:
    field = make_field(root)
    for observed in field.observed:
        process(field, observed)
    return field


def make_field(root: Path) -> Field:
    """Simulate the field: central repo, APDB and raws."""
    night_mjd = float(Time(BEGIN + TAI_MINUS_UTC, format="unix_tai", scale="tai").mjd)
    sky = make_sky(FIELD, SEED, night_mjd)
    build_central(root / "central", [sky], {(FIELD.name, "r")}, SEED, night_mjd)
    observed = []
    for number in VISITS:
        conditions = plan_conditions(number, SEED, BEGIN, CADENCE)
        # The plan alternates bands; there are templates of one here.
        conditions = dataclasses.replace(conditions, physical_filter="demo-r")
        for detector in DETECTORS:
            pixels, header, scene = simulate_raw(sky, conditions, detector)
            path = root / "raws" / f"{conditions.exposure}_{detector}.fits"
            write_raw(path, pixels, header)
            rows = true_changes(sky, conditions, detector, scene, night_mjd, known_movers(sky, SEED))
            truth = Table(rows=rows, names=TRUTH_COLUMNS)
            observed.append(Observed(conditions, detector, path, scene, truth))
    butler = Butler.from_config(str(root / "central"), writeable=True)
    return Field(root, sky, night_mjd, butler, build_apdb(root), tuple(observed))


def process(field: Field, observed: Observed) -> None:
    """Run both pipelines on one raw, as a child of ppd does, in this process."""
    load_translators()
    description = describe()
    c, butler = observed.conditions, field.butler
    group = butler.dimensions["group"].RecordClass(instrument=INSTRUMENT, name=c.group)
    butler.registry.insertDimensionData("group", group, skip_existing=True)
    put_region_time_info(butler, observed, "test/pre")
    detector = f"instrument='{INSTRUMENT}' AND skymap='{SKYMAP}' AND detector={observed.detector}"
    run_pipeline(field, "Preprocess.yaml", "test/pre", f"{detector} AND group='{c.group}'")
    raw = read_raw(observed.raw, INSTRUMENT, c.group, observed.detector)
    ingest_raw(butler, raw, RAW_RUN, description)
    define_visits(butler, [raw], description)
    # Pre-processing is of the group, the rest of the exposure in it.
    where = f"{detector} AND group='{c.group}' AND exposure={c.exposure}"
    run_pipeline(field, "ApPipe.yaml", "test/main", where, "test/pre")


def region_time_info(observed: Observed) -> RegionTimeInfo:
    """What ppd tells pre-processing of a detector: padded region and time."""
    c = observed.conditions
    region = describe().focal_plane.regions(c.ra, c.dec, c.rotation, 30.0)[observed.detector]
    begin = Time(c.begin_mjd, format="mjd", scale="tai")
    return RegionTimeInfo(
        region=region, timespan=Timespan(begin, begin + TimeDelta(c.exposure_time, format="sec"))
    )


def put_region_time_info(butler: Butler, observed: Observed, run: str) -> None:
    """Put it, with run and dataset type."""
    dimensions = ("instrument", "group", "detector")
    butler.registry.registerDatasetType(
        DatasetType("regionTimeInfo", dimensions, "RegionTimeInfo", universe=butler.dimensions)
    )
    butler.collections.register(run)
    butler.put(region_time_info(observed), "regionTimeInfo", observed.group_id, run=run)


def run_pipeline(field: Field, name: str, run: str, where: str, *inputs: str) -> None:
    """Run one of the demo's pipelines."""
    pipeline = Pipeline.fromFile(str(PIPELINES / name))
    for label in ("loadDiaCatalogs", "associateApdb"):
        if label in pipeline.task_labels:
            pipeline.addConfigOverride(label, "apdbConfigUrl", str(field.apdb_config))
    if "packageAlerts" in pipeline.task_labels:
        pipeline.addConfigOverride("packageAlerts", "alertDirectory", str(field.root / "alerts"))
    scoped = Butler.from_config(
        butler=field.butler, collections=[run, *inputs, RAW_RUN, f"{INSTRUMENT}/defaults"], run=run
    )
    executor = SeparablePipelineExecutor(scoped, skip_existing_in=[run])
    graph = executor.build_quantum_graph(pipeline, where=where)
    assert len(graph) == len(pipeline.task_labels)
    executor.pre_execute_qgraph(graph, register_dataset_types=True, save_versions=False)
    executor.run_pipeline(graph, fail_fast=True)


def detector_results(field: Field) -> list[DetectorResult]:
    """Match what was detected with what is true."""
    return [
        match_night(
            o.conditions.group,
            o.conditions.exposure,
            o.detector,
            "r",
            field.get("dia_source_detector", o),
            o.truth,
        )
        for o in field.observed
    ]


def alert_task(folder: Path, **config: Any) -> PackageAlertsTask:
    """Make a task that writes alerts to a folder."""
    made = PackageAlertsTask.ConfigClass()
    made.alertDirectory = str(folder)
    for name, value in config.items():
        setattr(made, name, value)
    made.validate()
    return PackageAlertsTask(config=made)


def alert_inputs(field: Field, name: str) -> dict[str, Any]:
    """Return what that task runs on, of the first image."""
    observed = field.observed[0]
    return {
        "sources": field.get("dia_source_detector", observed),
        "objects": field.get("dia_object_detector", observed),
        "history": None,
        "science": field.get("preliminary_visit_image", observed).image,
        "template": field.get("template_detector", observed).image,
        "difference": field.get("difference_image", observed).image,
        "name": name,
    }
