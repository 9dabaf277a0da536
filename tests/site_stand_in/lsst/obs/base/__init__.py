"""A stand-in for a site's ``lsst.obs.base``, which is not to be had without the compiled stack.

Signatures and what they promise are those of ``lsst/obs_base``
(``python/lsst/obs/base/ingest.py`` at commit 8d182da, ``defineVisits.py`` at
327a015); the work is done by ppd's own functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lsst.pipe.base
from astro_metadata_translator import ObservationInfo, makeObservationInfo
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord
from astropy.io import fits
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DatasetType, DimensionRecord, FileDataset
from lsst.pex.config import ChoiceField, Config, Field
from lsst.pipe.base import Struct, Task
from lsst.resources import ResourcePath

from ppd.demo.democam import describe
from ppd.workers import visits
from ppd.workers.ingest import RawExposure, exposure_records

__all__ = ["DefineVisitsConfig", "DefineVisitsTask", "Instrument", "RawIngestConfig", "RawIngestTask"]


class Instrument(lsst.pipe.base.Instrument):
    """Base of instruments with cameras; the real one adds curated calibs and ``getCamera``."""


class RawIngestConfig(Config):
    """Configuration of `RawIngestTask`."""

    transfer = ChoiceField(
        doc="How to transfer files.",
        dtype=str,
        allowed={
            k: k for k in ("move", "copy", "auto", "direct", "link", "hardlink", "symlink", "relsymlink")
        },
        optional=True,
        default="auto",
    )
    failFast: Field[bool] = Field(dtype=bool, default=False, doc="Stop at the first problem.")


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Accept anything."""


class RawIngestTask(Task):
    """Ingests raw files into a Butler repo."""

    ConfigClass: ClassVar[type[Config]] = RawIngestConfig
    _DefaultName: ClassVar[str] = "ingest"

    def __init__(
        self,
        config: RawIngestConfig,
        *,
        butler: Butler,
        on_success: Callable[[list[FileDataset]], Any] = _do_nothing,
        on_metadata_failure: Callable[[ResourcePath, Exception], Any] = _do_nothing,
        on_ingest_failure: Callable[[Any, Exception], Any] = _do_nothing,
        **kwargs: Any,
    ):
        config.validate()
        super().__init__(config, **kwargs)
        self.butler = butler

    def run(
        self,
        files: Iterable[Any],
        *,
        pool: Any = None,
        processes: int = 1,
        run: str | None = None,
        file_filter: str | re.Pattern = r"\.fit[s]?\b",
        group_files: bool = True,
        skip_existing_exposures: bool = False,
        update_exposure_records: bool = False,
        track_file_attrs: bool = True,
    ) -> list[DatasetRef]:
        assert self.config.failFast, "this stand-in has no report of failures"
        refs: list[DatasetRef] = []
        for file in files:
            refs += self._one(ResourcePath(file), run, skip_existing_exposures, track_file_attrs)
        return refs

    def _one(self, file: ResourcePath, run: str | None, skip: bool, track: bool) -> list[DatasetRef]:
        raw = RawExposure(Path(file.ospath), ObservationInfo(fits.getheader(file.ospath)))
        name = raw.info.instrument
        instrument = lsst.pipe.base.Instrument.fromName(name, self.butler.registry)
        for element, record in exposure_records(self.butler, raw).items():
            self.butler.registry.syncDimensionData(element, record)
        definition = getattr(
            instrument, "raw_definition", ("raw", ("instrument", "detector", "exposure"), "Exposure")
        )
        dataset_type = DatasetType(*definition, universe=self.butler.dimensions)
        self.butler.registry.registerDatasetType(dataset_type)
        run = run or instrument.makeDefaultRawIngestRunName()
        self.butler.registry.registerCollection(run, type=CollectionType.RUN)
        data_id = self.butler.registry.expandDataId(
            instrument=name, exposure=raw.exposure, detector=raw.detector
        )
        if skip and self.butler.find_dataset(dataset_type, data_id, collections=[run]) is not None:
            return []
        ref = DatasetRef(dataset_type, data_id, run=run)
        dataset = FileDataset(path=file.abspath(), refs=[ref], formatter=instrument.getRawFormatter(data_id))
        self.butler.ingest(dataset, transfer=self.config.transfer, record_validation_info=track)
        self.log.info("Stand-in: exposure %s ingested by %s.", raw.exposure, self.config.transfer)
        return list(dataset.refs)


class DefineVisitsConfig(Config):
    """Configuration of `DefineVisitsTask`; the real one's ``groupExposures`` is a registry."""

    groupExposures = ChoiceField(
        doc="Algorithm for grouping exposures into visits.",
        dtype=str,
        allowed={k: k for k in ("one-to-one", "one-to-one-and-by-counter", "by-group-metadata")},
        default="one-to-one-and-by-counter",
    )


_SYSTEMS = {
    "one-to-one": {"one-to-one": 0},
    "by-group-metadata": {"by-group-metadata": 1},
    "one-to-one-and-by-counter": {"one-to-one": 0, "by-seq-start-end": 2},
}


class DefineVisitsTask(Task):
    """Defines visits, for all detectors of the camera."""

    ConfigClass: ClassVar[type[Config]] = DefineVisitsConfig
    _DefaultName: ClassVar[str] = "defineVisits"

    def __init__(self, config: DefineVisitsConfig, *, butler: Butler, **kwargs: Any):
        config.validate()
        super().__init__(config, **kwargs)
        self.butler = butler

    def run(
        self,
        dataIds_or_records: Iterable[Any],
        *,
        collections: Sequence[str] | str | None = None,
        update_records: bool = False,
        incremental: bool = False,
    ) -> Struct:
        exposures: list[DimensionRecord] = []
        for data_id in dataIds_or_records:
            record = self.butler.registry.expandDataId(data_id).records["exposure"]
            if record.can_see_sky is not False:
                exposures.append(record)
        if not exposures:
            return Struct(n_visits=0, n_skipped=0, n_new=0, n_partially_updated=0, n_fully_updated=0)
        wanted = _SYSTEMS[self.config.groupExposures]
        name = exposures[0].instrument
        for system, number in wanted.items():
            self.butler.registry.syncDimensionData(
                "visit_system", {"instrument": name, "id": number, "name": system}
            )
        ordered = sorted(exposures, key=lambda e: (e.seq_num, e.id))
        planned = [v for v in visits._plan(ordered, set(wanted)) if v.systems & wanted.keys()]
        for visit in planned:
            for outline in describe().focal_plane.detectors:
                raw = _raw_of(visit.exposures[0], outline.id)
                records = visits._records(self.butler, visit, raw, describe(), wanted)
                for element, made in records.items():
                    self.butler.registry.insertDimensionData(element, *made, skip_existing=True)
        self.log.info("Stand-in: %d visits defined, camera from %s.", len(planned), collections)
        return Struct(
            n_visits=len(planned), n_skipped=0, n_new=len(planned), n_partially_updated=0, n_fully_updated=0
        )


def _raw_of(exposure: DimensionRecord, detector: int) -> RawExposure:
    info = makeObservationInfo(
        instrument=exposure.instrument,
        exposure_id=exposure.id,
        detector_num=detector,
        tracking_radec=SkyCoord(exposure.tracking_ra, exposure.tracking_dec, unit="deg"),
        boresight_rotation_angle=Angle(exposure.sky_angle * u.deg),
    )
    return RawExposure(Path("none"), info)
