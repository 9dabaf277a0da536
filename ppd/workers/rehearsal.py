"""Doing once, before the fork and in a repo that is thrown away, what every child does in its own.

What is compiled, imported and kept at the first time is then there for all that
are forked later: some 0.1 s between a raw and its first task, and as much after.
No task is made and no input is read, so nothing of a site's own code runs here
but what the making of quantum graphs calls.
"""

from __future__ import annotations

__all__ = ["Rehearsal"]

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.time
import astropy.units as u
from astro_metadata_translator import makeObservationInfo
from astropy.coordinates import AltAz, Angle, SkyCoord
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DimensionRecord, FileDataset
from lsst.pipe.base import Pipeline, TaskFactory, TaskMetadata
from lsst.utils.packages import Packages

from ..config import Settings
from ..errors import one_line
from ..fits_extent import check_extent
from ..instruments.description import InstrumentDescription
from ..visit import BareVisit
from .announced import missed_field, missed_filter, missed_rotation
from .execute import graph_executor, prepare, provenance_ref
from .graphs import Scope, build_graph
from .handover import collect_records, find_outputs
from .ingest import RawExposure, ingest_raw
from .preload import rehearse as rehearse_preload
from .visits import define_visits

RUN = "ppd/rehearsal"
_GROUP = "rehearsal"
_NAME = "rehearsal-1"
_FORMATTER = "lsst.daf.butler.formatters.json.JsonFormatter"
_EXPOSURE = 1


class _IdleTask:
    """Does nothing, in place of any task."""

    def runQuantum(self, *_: object) -> None:
        """Do nothing."""

    def getFullMetadata(self) -> TaskMetadata:
        """Tell nothing."""
        return TaskMetadata()


class _IdleFactory(TaskFactory):
    """Makes idle tasks, whatever is asked for."""

    def makeTask(self, *_: object, **__: object) -> Any:
        return _IdleTask()


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What there is to rehearse."""

    settings: Settings
    pipelines: Mapping[str, Pipeline]
    """Pipelines by path."""
    description: InstrumentDescription

    def run(self, butler: Butler, folder: Path) -> Iterator[str | None]:
        """Rehearse, piece by piece.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            A writeable Butler on a clone of the cache repo.  Between the
            pieces it has no connection open.
        folder : `pathlib.Path`
            Root of that repo; its registry is at the end what it was.

        Yields
        ------
        missing : `str` or `None`
            After each piece, what can't be rehearsed now, if it can't:
            children take longer for it.
        """
        registry = folder / "gen3.sqlite3"
        before = folder / "gen3.sqlite3.before"
        shutil.copyfile(registry, before)
        try:
            butler.collections.register(RUN)
            found = _Made()
            for name, piece in (
                ("what is put before raws", lambda: rehearse_preload(butler)),
                ("the versions of packages", lambda: Packages.fromSystem(include_all=True)),
                ("a raw", lambda: self._take_raw(butler, folder, found)),
                *(
                    (path, lambda path=path: self._run(butler, folder, path, found))
                    for path in self.pipelines
                ),
                ("a hand-over", lambda: self._hand_over(butler)),
            ):
                missing = None
                try:
                    with _quietly():
                        piece()
                except Exception as e:
                    # Such as a site without some dataset type, or a pipeline without its inputs.
                    missing = f"{name}: {type(e).__name__}: {one_line(e, 300)}"
                butler.registry.resetConnectionPool()
                yield missing
        finally:
            before.replace(registry)
            butler.registry.refresh()
            butler.registry.resetConnectionPool()

    def _take_raw(self, butler: Butler, folder: Path, found: _Made) -> None:
        """Ingest a made-up raw and define its visit."""
        (detector,) = butler.query_dimension_records("detector", explain=False, limit=1)
        filters = butler.query_dimension_records("physical_filter", explain=False, limit=1)
        physical_filter = filters[0].name if filters else "none"
        path = folder / "rehearsal.fits"
        astropy.io.fits.PrimaryHDU().writeto(path, overwrite=True)
        check_extent(path)
        raw = RawExposure(path, _observation(detector, physical_filter))
        visit = _announcement(detector.instrument, physical_filter)
        missed_rotation(raw, visit, self.settings.rotation_tolerance)
        plane = self.description.focal_plane
        missed_field(raw, visit, plane, detector.id, self.settings.preload_padding)
        missed_filter(raw, visit)
        butler.query_dimension_records(
            "physical_filter",
            instrument=detector.instrument,
            physical_filter=physical_filter,
            explain=False,
        )
        run = f"{detector.instrument}/raw/all"
        butler.collections.register(run)
        ingest_raw(butler, raw, run, self.description)
        found.raw_run = run
        found.visits = define_visits(butler, [raw], self.description)
        found.detector, found.physical_filter = detector, physical_filter

    def _run(self, butler: Butler, folder: Path, path: str, found: _Made) -> None:
        """Build a pipeline's quantum graph and go through it with tasks that do nothing."""
        detector = found.detector
        if detector is None:
            raise LookupError("there is no raw")
        _stand_in(butler, folder, self.pipelines[path], found)
        tops = butler.collections.query_info(
            "*", collection_types={CollectionType.CHAINED, CollectionType.CALIBRATION}
        )
        if not tops:
            raise LookupError("there are no input collections yet")
        inputs = [found.raw_run, *(info.name for info in tops), RUN]
        (candidate,) = prepare(butler, self.pipelines, [path], {path: RUN}, inputs)
        scope = Scope(detector.instrument, _GROUP, detector.id, self.settings.skymap)
        tasks = self.pipelines[path].to_graph(butler.registry).tasks.values()
        if any("exposure" in task.dimensions or "visit" in task.dimensions for task in tasks):
            scope = dataclasses.replace(scope, exposures=(_EXPOSURE,), visits=found.visits)
        maker = candidate.maker
        quanta = build_graph(maker, scope)
        if not len(quanta):
            raise LookupError("no quantum can be made")
        data_id = {"instrument": detector.instrument, "group": _GROUP, "detector": detector.id}
        maker.executor.run_pipeline(
            quanta,
            graph_executor=graph_executor(maker.butler, _IdleFactory()),
            provenance_dataset_ref=provenance_ref(maker.butler, data_id),
        )

    def _hand_over(self, butler: Butler) -> None:
        refs = find_outputs(butler, [RUN], [".*"])
        for ref in refs:
            butler.getURI(ref)
        collect_records(butler, refs)


@dataclasses.dataclass
class _Made:
    """What one piece leaves for the next."""

    detector: DimensionRecord | None = None
    physical_filter: str = ""
    raw_run: str = ""
    visits: tuple[int, ...] = ()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the middleware says of made-up data out of ppd's log."""
    logger = logging.getLogger("lsst")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _stand_in(butler: Butler, folder: Path, pipeline: Pipeline, found: _Made) -> None:
    """Put empty files in the place of what a pipeline reads and a raw has no part in."""
    assert found.detector is not None
    known = {
        "instrument": found.detector.instrument,
        "detector": found.detector.id,
        "physical_filter": found.physical_filter,
    }
    path = folder / "rehearsal.json"
    for node in pipeline.to_graph(butler.registry).dataset_types.values():
        needed = node.dimensions.required
        if not node.is_prerequisite or not needed <= known.keys():
            continue
        data_id = butler.registry.expandDataId({name: known[name] for name in needed})
        if butler.query_datasets(node.name, RUN, data_id=data_id, explain=False, limit=1):
            continue
        path.write_text("{}")
        ref = DatasetRef(node.dataset_type, data_id, run=RUN)
        butler.ingest(FileDataset(path=str(path), refs=[ref], formatter=_FORMATTER), transfer="copy")


def _observation(detector: DimensionRecord, physical_filter: str) -> Any:
    begin = astropy.time.Time.now().tai
    return makeObservationInfo(
        instrument=detector.instrument,
        telescope="rehearsal",
        exposure_id=_EXPOSURE,
        visit_id=_EXPOSURE,
        observation_id=_NAME,
        exposure_group=_GROUP,
        detector_num=detector.id,
        physical_filter=physical_filter,
        datetime_begin=begin,
        datetime_end=begin + 30.0 * u.s,
        exposure_time=30.0 * u.s,
        dark_time=30.0 * u.s,
        tracking_radec=SkyCoord(10.0 * u.deg, -20.0 * u.deg, frame="icrs"),
        altaz_begin=AltAz(alt=60.0 * u.deg, az=120.0 * u.deg),
        boresight_rotation_angle=Angle(0.0 * u.deg),
        observing_day=20000101,
        observation_counter=1,
        group_counter_start=1,
        group_counter_end=1,
        observation_type="science",
        observation_reason="rehearsal",
        object="rehearsal",
        science_program="rehearsal",
        has_simulated_content=True,
        can_see_sky=True,
    )


def _announcement(instrument: str, physical_filter: str) -> BareVisit:
    return BareVisit(
        salIndex=1,
        scriptSalIndex=1,
        instrument=instrument,
        groupId=_GROUP,
        coordinateSystem=2,
        position=(10.0, -20.0),
        startTime=1.8e9,
        rotationSystem=2,
        cameraAngle=0.0,
        filters=physical_filter,
        dome=2,
        duration=30.0,
        nimages=1,
        survey="rehearsal",
        totalCheckpoints=1,
        private_sndStamp=1.8e9,
    )
