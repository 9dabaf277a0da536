"""One worker of the per-worker way: a process that owns all it needs, for one detector at a time.

The steps and their queries are those of `lsst-dm/prompt_processing`, written
from public middleware calls.  Where two of its versions differ, the cheaper
one is taken; what it removes after a visit and fetches again for the next is
left in place.
"""

from __future__ import annotations

__all__ = ["Figures", "Plan", "Worker"]

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import astropy.time
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetAssociation,
    DatasetRef,
    DatasetType,
    Timespan,
)
from lsst.pipe.base.utils import RegionTimeInfo
from lsst.sphgeom import ConvexPolygon

from ppd.instruments.lsstcam import focal_plane
from ppd.visit import BareVisit

from .datasets import INSTRUMENT, SKYMAP
from .servers import StatementCounter

_UMBRELLA = f"{INSTRUMENT}/defaults"
_CALIB = f"{INSTRUMENT}/calib"
_TEMPLATES = f"{INSTRUMENT}/templates"
_RAW_RUN = f"{INSTRUMENT}/raw/all"
_PADDING = 30.0  # arcsec


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all workers know before any visit."""

    central: str
    database_url: str
    """The central database, as SQLAlchemy connects to it."""
    input_types: tuple[str, ...]
    """Dataset types that the pipelines read and do not write."""
    init_types: Mapping[str, tuple[str, ...]]
    """Init-outputs of each pipeline, by its run."""
    preload_run: str
    """Run of what a worker writes before the pipelines."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a worker tells of one visit."""

    found: float
    """When all inputs were known, monotonic clock."""
    ready: float
    """When the local repo had them all."""
    statements: int
    """Sent to the central repo."""
    fetched: int
    """Bytes of dataset files."""


class Worker:
    """The state that a worker keeps from visit to visit.

    Parameters
    ----------
    plan : `Plan`
        What all workers know.
    detector : `int`
        The detector of every visit: a worker that always gets the same one
        makes the best of what it holds.
    folder : `pathlib.Path`
        Folder to make for the local repo.
    """

    def __init__(self, plan: Plan, detector: int, folder: Path):
        self._plan = plan
        self._detector = detector
        self._folder = folder
        self._counter = StatementCounter(plan.database_url)
        self._read = Butler.from_config(plan.central, collections=[_UMBRELLA], writeable=False)
        self._write = Butler.from_config(plan.central, collections=[_UMBRELLA], writeable=True)
        self._local = self._make_local_repo()

    def _make_local_repo(self) -> Butler:
        config = Butler.makeRepo(str(self._folder), dimensionConfig=self._read.dimensions.dimensionConfig)
        with Butler.from_config(config, writeable=True) as butler:
            # Without the compiled stack there is no instrument class that
            # knows these.
            for element in ("instrument", "physical_filter", "detector"):
                records = self._read.query_dimension_records(element, instrument=INSTRUMENT)
                butler.registry.insertDimensionData(element, *records)
            for chain in (_UMBRELLA, _CALIB, "refcats"):
                butler.collections.register(chain, CollectionType.CHAINED)
            for run in (f"{_CALIB}/unbounded", _RAW_RUN):
                butler.collections.register(run)
        return Butler.from_config(str(self._folder), collections=[_UMBRELLA], writeable=True)

    def prepare(self, visit: BareVisit) -> Figures:
        """Get the local repo ready for a visit, but for the raw.

        Parameters
        ----------
        visit : `ppd.visit.BareVisit`
            The visit.

        Returns
        -------
        figures : `Figures`
            What it took.
        """
        self._counter.take()
        camera_bytes = self._read_camera()
        for run in (*self._plan.init_types, self._plan.preload_run):
            self._local.collections.register(run)
        self._local.registry.syncDimensionData("group", {"instrument": INSTRUMENT, "name": visit.groupId})
        region = self._find_region(visit)
        self._write_region_time(visit, region)
        refs, calibs = self._find_inputs(visit, region)
        found = time.monotonic()
        present = set(self._local.get_many_datasets(ref.id for ref in refs))
        missing = refs - present
        self._local.transfer_from(
            self._read,
            missing,
            transfer="copy",
            skip_missing=True,
            register_dataset_types=True,
            transfer_dimensions=True,
        )
        for chain in (_TEMPLATES, _UMBRELLA):
            self._mirror(chain)
        self._certify(calibs - present)
        self._local.collections.prepend_chain(_UMBRELLA, [_TEMPLATES, _RAW_RUN])
        ready = time.monotonic()
        # Only now: the count of bytes is no part of the work.
        return Figures(found, ready, self._counter.take(), camera_bytes + self._size(missing))

    def close(self) -> None:
        """Close all Butlers."""
        for butler in (self._local, self._write, self._read):
            butler.close()

    def _read_camera(self) -> int:
        now = Timespan.fromInstant(astropy.time.Time.now())
        ref = self._read.find_dataset("camera", instrument=INSTRUMENT, collections=_CALIB, timespan=now)
        assert ref is not None
        self._read.get(ref)
        return self._read.getURI(ref).size()

    def _find_region(self, visit: BareVisit) -> ConvexPolygon:
        assert visit.ra is not None and visit.dec is not None and visit.rotation is not None
        # Alone: what the other detectors see is not its business.
        plane = focal_plane()
        alone = plane.model_copy(update={"detectors": (plane.outline(self._detector),)})
        return alone.regions(visit.ra, visit.dec, visit.rotation, _PADDING)[self._detector]

    def _write_region_time(self, visit: BareVisit, region: ConvexPolygon) -> None:
        start = astropy.time.Time(visit.private_sndStamp, format="unix_tai", scale="tai")
        length = astropy.time.TimeDelta(3.0 * visit.duration, format="sec", scale="tai")
        self._local.registry.registerDatasetType(
            DatasetType(
                "regionTimeInfo",
                ("instrument", "group", "detector"),
                "RegionTimeInfo",
                universe=self._local.dimensions,
            )
        )
        self._local.put(
            RegionTimeInfo(region=region, timespan=Timespan(start, start + length)),
            "regionTimeInfo",
            run=self._plan.preload_run,
            instrument=INSTRUMENT,
            detector=self._detector,
            group=visit.groupId,
        )

    def _find_inputs(
        self, visit: BareVisit, region: ConvexPolygon
    ) -> tuple[set[DatasetRef], set[DatasetRef]]:
        """Ask central for everything that pipelines may read; calibs again on their own."""
        every: set[DatasetRef] = set()
        for run, names in self._plan.init_types.items():
            for name in names:
                every.update(self._query(name, run))
        calibs: set[DatasetRef] = set()
        data_id: dict[str, str | int] = {"instrument": INSTRUMENT, "physical_filter": visit.filters}
        overlap = {"bind": {"search_region": region}}
        for name in self._plan.input_types:
            dataset_type = self._read.get_dataset_type(name)
            dimensions = dataset_type.dimensions
            if dataset_type.isCalibration():
                calibs |= self._find_calibs(dataset_type, visit)
            elif "htm7" in dimensions:
                every.update(
                    self._query(name, "refcats", where="htm7.region OVERLAPS search_region", **overlap)
                )
            elif "tract" in dimensions:
                every.update(
                    self._query(
                        name,
                        _TEMPLATES,
                        data_id={**data_id, "skymap": SKYMAP},
                        where="patch.region OVERLAPS search_region",
                        **overlap,
                    )
                )
            else:
                generic = {**data_id, "skymap": SKYMAP, "detector": self._detector}
                every.update(self._query(name, _UMBRELLA, data_id=generic))
        return every | calibs, calibs

    def _query(self, name: str, collection: str, **constraints: object) -> list[DatasetRef]:
        return self._read.query_datasets(
            name, collections=collection, find_first=True, with_dimension_records=True, **constraints
        )

    def _find_calibs(self, dataset_type: DatasetType, visit: BareVisit) -> set[DatasetRef]:
        date = astropy.time.Time(visit.private_sndStamp, format="unix_tai", scale="tai")
        with self._read.query() as query:
            query = query.where(instrument=INSTRUMENT, detector=self._detector, physical_filter=visit.filters)
            x = query.expression_factory
            return set(
                query.datasets(dataset_type, _CALIB, find_first=True)
                .where(x[dataset_type.name].timespan.overlaps(date))
                .with_dimension_records()
            )

    def _mirror(self, chain: str) -> None:
        source, target = self._read.registry, self._local.registry
        chains = {}
        for name in source.queryCollections(chain, flattenChains=True, includeChains=True):
            kind = source.getCollectionType(name)
            if kind is CollectionType.CHAINED:
                chains[name] = source.getCollectionChain(name)
            target.registerCollection(name, kind, source.getCollectionDocumentation(name))
        for name, children in chains.items():
            target.setCollectionChain(name, children)

    def _certify(self, calibs: Iterable[DatasetRef]) -> None:
        collections = self._read.collections
        with self._read.query() as query, self._read.registry.caching_context():
            for ref in calibs:
                dataset_type = ref.datasetType
                result = (
                    query.where(ref.dataId)
                    .join_dataset_search(dataset_type, _CALIB)
                    .general(
                        dataset_type.dimensions,
                        dataset_fields={dataset_type.name: {"dataset_id", "run", "collection", "timespan"}},
                        find_first=False,
                    )
                )
                for association in DatasetAssociation.from_query_result(result, dataset_type):
                    kind = collections.get_info(association.collection).type
                    if kind is CollectionType.CALIBRATION and association.ref == ref:
                        self._local.registry.certify(association.collection, [ref], association.timespan)

    def _size(self, refs: Iterable[DatasetRef]) -> int:
        uris = self._local.get_many_uris(refs)
        return sum(uri.primaryURI.size() for uri in uris.values() if uri.primaryURI is not None)
