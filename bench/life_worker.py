"""The per-worker way from a raw on disk to the first task, from public middleware calls."""

from __future__ import annotations

__all__ = ["LifeWorkers"]

import gc
import importlib
import logging
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import astropy.io.fits
import astropy.units as u
from astro_metadata_translator import ObservationInfo
from astropy.time import Time, TimeDelta
from lsst.daf.butler import Butler, CollectionType, DatasetRef, FileDataset, Timespan
from lsst.pipe.base import Pipeline, TaskFactory
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.sphgeom import ConvexPolygon

from ppd.config import Settings
from ppd.demo import translator as _translator  # noqa: F401  (makes it known)
from ppd.demo.camera import INSTRUMENT, focal_plane
from ppd.demo.democam import DemoCam

from .life_site import PIPELINE
from .per_worker import MODULES
from .servers import end_with_parent

_RAW_RUN = f"{INSTRUMENT}/raw/all"
_RUN = "life/run"
_POLL = 0.01
_SECONDS = 60.0
_FORMATTER = "ppd.demo.rawformatter.DemoCamRawFormatter"


class _First(TaskFactory):
    """Tells when the first task begins."""

    def __init__(self) -> None:
        self.time: float | None = None

    def makeTask(self, *args: Any, **kwargs: Any) -> Any:
        self.time = self.time or time.time()
        return super().makeTask(*args, **kwargs)


class LifeWorkers:
    """A process for each detector, that lives from visit to visit.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Not used but for the instrument's name.
    folder : `pathlib.Path`
        Where to make the local repos.
    central : `pathlib.Path`
        The central repo.
    detectors : sequence of `int`
        The detectors.
    """

    def __init__(self, settings: Settings, folder: Path, central: Path, detectors: Sequence[int]):
        self._folder = folder
        self._central = central
        self._detectors = detectors
        self._lines: dict[int, Connection] = {}
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Self:
        for module in MODULES:
            importlib.import_module(module)
        context = multiprocessing.get_context("fork")
        gc.collect()
        gc.freeze()
        try:
            for detector in self._detectors:
                here, there = context.Pipe()
                process = context.Process(target=self._work, args=(detector, there), daemon=True)
                process.start()
                there.close()
                self._lines[detector] = here
                self._processes.append(process)
                self._receive(detector)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(10.0)

    def _receive(self, detector: int) -> Any:
        if not self._lines[detector].poll(_SECONDS):
            raise RuntimeError(f"the worker of detector {detector} says nothing")
        return self._lines[detector].recv()

    def announce(self, visit: Any, paths: dict[int, Path]) -> None:
        """Tell workers what to wait for."""
        for detector, path in paths.items():
            self._lines[detector].send((visit.group, str(path)))
        for detector in paths:
            self._receive(detector)

    def first_tasks(self, visit: Any, detectors: Sequence[int]) -> dict[int, float]:
        """Wait for the first task of each detector; Unix seconds."""
        found = {}
        for detector in detectors:
            answer = self._receive(detector)
            if not isinstance(answer, float):
                raise RuntimeError(f"detector {detector}: {answer}")
            found[detector] = answer
        return found

    def finish(self, visit: Any) -> None:
        """Nothing is left to wait for: a worker answers when its pipeline has ended."""

    def _work(self, detector: int, line: Connection) -> None:
        end_with_parent()
        logging.disable(logging.WARNING)
        worker = _Worker(self._central, self._folder / str(detector), detector)
        line.send(None)
        while True:
            try:
                group, path = line.recv()
            except EOFError:
                return
            try:
                line.send(None)
                line.send(worker.process(group, Path(path)))
            except Exception as e:
                line.send(f"{type(e).__name__}: {e}")


class _Worker:
    """One worker: a local repo with all inputs, and a pipeline that is read already."""

    def __init__(self, central: Path, folder: Path, detector: int):
        self._detector = detector
        self._pipeline = Pipeline.fromFile(str(PIPELINE))
        Butler.makeRepo(str(folder))
        self._butler = Butler.from_config(str(folder), writeable=True)
        DemoCam().register(self._butler.registry)
        for run in (_RAW_RUN, _RUN):
            self._butler.collections.register(run)
        with Butler.from_config(str(central), writeable=False) as read:
            self._butler.registry.registerDatasetType(read.get_dataset_type("raw"))
            self._transfer(read)
        self._scoped = Butler.from_config(
            butler=self._butler, collections=[_RUN, _RAW_RUN, f"{INSTRUMENT}/calib/life"], run=_RUN
        )
        self._pipeline.to_graph(self._scoped.registry).register_dataset_types(
            self._scoped, include_configs=True, include_packages=True
        )

    def _transfer(self, read: Butler) -> None:
        calib = f"{INSTRUMENT}/calib/life"
        with read.query() as query:
            refs = {
                ref
                for name in ("bias", "flat")
                for ref in query.where(instrument=INSTRUMENT, detector=self._detector)
                .datasets(name, f"{calib}/run", find_first=False)
                .with_dimension_records()
            }
        self._butler.transfer_from(read, refs, transfer="copy", register_dataset_types=True)
        self._butler.collections.register(calib, CollectionType.CALIBRATION)
        self._butler.registry.certify(calib, refs, Timespan(None, None))

    def process(self, group: str, path: Path) -> float:
        """Wait for a raw and process it; when its first task began, Unix seconds."""
        insert = self._butler.registry.insertDimensionData
        insert("group", {"instrument": INSTRUMENT, "name": group}, skip_existing=True)
        deadline = time.monotonic() + _SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("no raw came")
            time.sleep(_POLL)
        info = self._ingest(path)
        self._define_visit(info)
        executor = SeparablePipelineExecutor(
            self._scoped, clobber_output=False, task_factory=(first := _First())
        )
        graph = executor.build_quantum_graph(
            self._pipeline,
            where=f"instrument='{INSTRUMENT}' AND detector={self._detector}"
            f" AND exposure={info.exposure_id} AND visit={info.exposure_id}",
        )
        executor.run_pipeline(graph)
        assert first.time is not None
        return first.time

    def _ingest(self, path: Path) -> ObservationInfo:
        with astropy.io.fits.open(path) as hdus:
            info = ObservationInfo(hdus[0].header, filename=str(path), pedantic=True)
        insert = self._butler.registry.insertDimensionData
        day = str(info.observing_day)
        start = Time(f"{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00", scale="tai")
        insert(
            "day_obs",
            {
                "instrument": INSTRUMENT,
                "id": info.observing_day,
                "timespan": Timespan(start, start + TimeDelta(1.0, format="jd", scale="tai")),
            },
            skip_existing=True,
        )
        insert(
            "exposure",
            {
                **self._common(info),
                "id": info.exposure_id,
                "group": info.exposure_group,
                "obs_id": info.observation_id,
                "dark_time": info.dark_time.to_value(u.s),
                "observation_type": info.observation_type,
                "seq_start": info.group_counter_start,
                "seq_end": info.group_counter_end,
                "tracking_ra": info.tracking_radec.icrs.ra.deg,
                "tracking_dec": info.tracking_radec.icrs.dec.deg,
                "sky_angle": info.boresight_rotation_angle.deg,
                "has_simulated": False,
                "can_see_sky": True,
            },
        )
        data_id = self._butler.registry.expandDataId(
            instrument=INSTRUMENT, exposure=info.exposure_id, detector=self._detector
        )
        ref = DatasetRef(self._butler.get_dataset_type("raw"), data_id, run=_RAW_RUN)
        self._butler.ingest(
            FileDataset(path=str(path), refs=[ref], formatter=_FORMATTER),
            transfer="copy",
            record_validation_info=False,
        )
        return info

    def _common(self, info: ObservationInfo) -> dict[str, Any]:
        return {
            "instrument": INSTRUMENT,
            "day_obs": info.observing_day,
            "physical_filter": info.physical_filter,
            "exposure_time": info.exposure_time.to_value(u.s),
            "observation_reason": info.observation_reason,
            "seq_num": info.observation_counter,
            "target_name": info.object,
            "science_program": info.science_program,
            "zenith_angle": 90.0 - info.altaz_begin.alt.deg,
            "azimuth": info.altaz_begin.az.deg,
            "timespan": Timespan(info.datetime_begin, info.datetime_end),
        }

    def _define_visit(self, info: ObservationInfo) -> None:
        insert, visit = self._butler.registry.insertDimensionData, info.exposure_id
        pointing = info.tracking_radec.icrs
        regions = focal_plane().regions(
            pointing.ra.deg, pointing.dec.deg, info.boresight_rotation_angle.deg % 360.0
        )
        corners = [v for region in regions.values() for v in region.getVertices()]
        own = {"instrument": INSTRUMENT, "visit": visit}
        insert(
            "visit",
            {
                **self._common(info),
                "id": visit,
                "name": info.observation_id,
                "region": ConvexPolygon.convexHull(corners),
            },
        )
        insert("visit_definition", {**own, "exposure": visit})
        insert("visit_system_membership", {**own, "visit_system": 0})
        insert(
            "visit_detector_region", {**own, "detector": self._detector, "region": regions[self._detector]}
        )
