"""What the detectors of one visit need, found for all of them together.

Each dataset type costs a fixed number of queries per visit; which of the
found datasets a detector gets is decided here, in memory.
"""

from __future__ import annotations

__all__ = [
    "Certification",
    "DetectorInputs",
    "Reason",
    "Resolution",
    "VisitConstraints",
    "resolve_inputs",
]

import dataclasses
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetAssociation,
    DatasetRef,
    DatasetType,
    MissingDatasetTypeError,
    Timespan,
)
from lsst.sphgeom import Circle, ConvexPolygon, HtmPixelization, Region

from ..messages import InputType

_LOG = logging.getLogger(__name__)

# Data with one of these dimensions does not exist before the visit does.
_MADE_LATER = frozenset({"group", "exposure", "visit", "day_obs"})


@dataclasses.dataclass(frozen=True)
class VisitConstraints:
    """What a search for inputs needs to know of a visit."""

    instrument: str
    physical_filter: str | None
    band: str | None
    skymap: str | None
    timespan: Timespan
    regions: Mapping[int, ConvexPolygon]
    """Padded region by detector; empty if the visit has no position."""
    detectors: tuple[int, ...]


class Reason(NamedTuple):
    """Why a dataset is among the inputs."""

    kind: Literal["certified", "in_run", "overlaps", "generic"]
    collection: str
    """Where it was found: calibration collection or run."""
    timespan: Timespan | None = None
    """Validity range, of what is certified."""


@dataclasses.dataclass(frozen=True)
class Certification:
    """A calib's validity range in a calibration collection."""

    collection: str
    ref: DatasetRef
    timespan: Timespan


@dataclasses.dataclass
class DetectorInputs:
    """The inputs of one detector."""

    ids: set[uuid.UUID] = dataclasses.field(default_factory=set)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    """Dataset types that have nothing for this detector, with the reason."""


@dataclasses.dataclass(frozen=True)
class Resolution:
    """The inputs of all detectors of a visit."""

    refs: Mapping[uuid.UUID, DatasetRef]
    reasons: Mapping[uuid.UUID, Reason]
    certifications: tuple[Certification, ...]
    tagged: tuple[tuple[str, DatasetRef], ...]
    """Tagged collection and dataset, of those found in one."""
    detectors: Mapping[int, DetectorInputs]
    lasting: frozenset[uuid.UUID]
    """Datasets that do not depend on where the telescope points."""


class _Builder:
    """Collects what the queries find."""

    def __init__(self, visit: VisitConstraints):
        self.visit = visit
        self.refs: dict[uuid.UUID, DatasetRef] = {}
        self.reasons: dict[uuid.UUID, Reason] = {}
        self.certifications: list[Certification] = []
        self.tagged: list[tuple[str, DatasetRef]] = []
        self.detectors = {d: DetectorInputs() for d in visit.detectors}
        self.lasting: set[uuid.UUID] = set()

    def give(self, ref: DatasetRef, detectors: Iterable[int], lasting: bool, reason: Reason) -> None:
        self.refs[ref.id] = ref
        self.reasons[ref.id] = reason
        for detector in detectors:
            self.detectors[detector].ids.add(ref.id)
        if lasting:
            self.lasting.add(ref.id)

    def lacking(self, name: str, given: Iterable[int], reason: str) -> None:
        for detector in set(self.detectors) - set(given):
            self.detectors[detector].missing[name] = reason


def resolve_inputs(
    butler: Butler, collections: Sequence[str], inputs: Iterable[InputType], visit: VisitConstraints
) -> Resolution:
    """Find the inputs of every detector of a visit.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo, for reading.
    collections : sequence of `str`
        Where to search, in order; chains are followed.
    inputs : iterable of `ppd.messages.InputType`
        Overall inputs of the pipelines that the visit may run.
    visit : `VisitConstraints`
        The visit.

    Returns
    -------
    resolution : `Resolution`
        What was found, per detector, and what was not.
    """
    builder = _Builder(visit)
    infos = butler.collections.query_info(list(collections), flatten_chains=True, include_summary=True)
    for declared in inputs:
        if _MADE_LATER & set(declared.dimensions):
            continue
        try:
            dataset_type = butler.get_dataset_type(declared.name)
        except MissingDatasetTypeError:
            builder.lacking(declared.name, (), "central has no such dataset type")
            continue
        where = [info for info in infos if dataset_type.name in (info.dataset_types or ())]
        if not where:
            builder.lacking(declared.name, (), f"no collection of {', '.join(collections)} has any")
        elif dataset_type.isCalibration():
            _find_calibs(butler, dataset_type, where, builder)
        elif dataset_type.dimensions.skypix:
            _find_skypix(butler, dataset_type, [i.name for i in where], builder)
        elif {"tract", "patch"} & set(dataset_type.dimensions.names):
            _find_patches(butler, dataset_type, [i.name for i in where], builder)
        else:
            _find_generic(butler, dataset_type, [i.name for i in where], builder)
        _note_tags(butler, dataset_type, where, builder)
    return Resolution(
        refs=builder.refs,
        reasons=builder.reasons,
        certifications=tuple(builder.certifications),
        tagged=tuple(builder.tagged),
        detectors=builder.detectors,
        lasting=frozenset(builder.lasting),
    )


def _note_tags(butler: Butler, dataset_type: DatasetType, where: list, builder: _Builder) -> None:
    """Note which of the found datasets are in tagged collections, so that a child finds them there."""
    for info in where:
        if info.type is CollectionType.TAGGED:
            members = butler.query_datasets(
                dataset_type, collections=info.name, find_first=False, limit=None, explain=False
            )
            builder.tagged += [(info.name, ref) for ref in members if ref.id in builder.refs]


def _data_id(dataset_type: DatasetType, visit: VisitConstraints) -> dict[str, str] | None:
    """Constrain what the visit fixes; `None` if it lacks a value for it."""
    values = {
        "instrument": visit.instrument,
        "physical_filter": visit.physical_filter,
        "band": visit.band,
        "skymap": visit.skymap,
    }
    data_id = {}
    for name, value in values.items():
        if name in dataset_type.dimensions.required:
            if value is None:
                if name == "skymap":
                    continue
                return None
            data_id[name] = value
    return data_id


def _why_not(visit: VisitConstraints, data_id: dict[str, str] | None) -> str:
    return "the visit has no filter" if data_id is None else "the visit has no position"


def _text(data_id: Mapping[str, str]) -> str:
    """Say what was searched for, as the middleware writes data IDs."""
    return f" for {{{', '.join(f'{k}: {v!r}' for k, v in data_id.items())}}}" if data_id else ""


def _find_calibs(butler: Butler, dataset_type: DatasetType, where: list, builder: _Builder) -> None:
    visit = builder.visit
    data_id = _data_id(dataset_type, visit)
    if data_id is None:
        builder.lacking(dataset_type.name, (), _why_not(visit, data_id))
        return
    per_detector = "detector" in dataset_type.dimensions
    chosen: set[int | None] = set()
    wanted: set[int | None] = set(visit.detectors) if per_detector else {None}
    for info in where:  # first collection with a valid one wins
        if wanted <= chosen:
            break
        if info.type is CollectionType.CALIBRATION:
            found = _query_certified(butler, dataset_type, info.name, data_id, visit.timespan)
        else:
            refs = butler.query_datasets(
                dataset_type, collections=info.name, data_id=data_id, find_first=False, explain=False
            )
            found = [DatasetAssociation(ref=r, collection=info.name, timespan=None) for r in refs]
        here: set[int | None] = set()
        for association in found:
            ref, timespan = association.ref, association.timespan
            detector = int(ref.dataId["detector"]) if per_detector else None
            if detector not in wanted - chosen:
                continue
            # More than one if a validity range ends within the visit: which
            # of them holds is for the exposure's own time to tell.
            here.add(detector)
            reason = Reason("in_run" if timespan is None else "certified", info.name, timespan)
            users = visit.detectors if detector is None else (detector,)
            builder.give(ref, users, lasting=True, reason=reason)
            if timespan is not None:
                builder.certifications.append(Certification(info.name, ref, timespan))
        chosen |= here
    given = visit.detectors if None in chosen else [d for d in chosen if d is not None]
    builder.lacking(dataset_type.name, given, f"none is valid at {visit.timespan}{_text(data_id)}")


def _query_certified(
    butler: Butler, dataset_type: DatasetType, collection: str, data_id: Mapping, timespan: Timespan
) -> list[DatasetAssociation]:
    with butler.query() as query:
        query = query.join_dataset_search(dataset_type, collection)
        x = query.expression_factory
        result = query.where(data_id, x[dataset_type.name].timespan.overlaps(timespan)).general(
            dataset_type.dimensions,
            dataset_fields={dataset_type.name: {"dataset_id", "run", "collection", "timespan"}},
            find_first=False,
        )
        return list(DatasetAssociation.from_query_result(result, dataset_type))


def _find_skypix(butler: Butler, dataset_type: DatasetType, where: list[str], builder: _Builder) -> None:
    visit = builder.visit
    data_id = _data_id(dataset_type, visit)
    if not visit.regions or data_id is None:
        builder.lacking(dataset_type.name, (), _why_not(visit, data_id))
        return
    dimension = butler.dimensions.skypix_dimensions[next(iter(dataset_type.dimensions.skypix))]
    by_detector = {d: _pixels(dimension.pixelization, r) for d, r in visit.regions.items()}
    pixels = sorted(set().union(*by_detector.values()))
    with butler.query() as query:
        x = query.expression_factory
        refs = list(
            query.where(data_id, getattr(x, dimension.name).in_iterable(pixels)).datasets(
                dataset_type, collections=where
            )
        )
    given = set()
    for ref in refs:
        pixel = int(ref.dataId[dimension.name])
        detectors = [d for d, own in by_detector.items() if pixel in own]
        given.update(detectors)
        builder.give(ref, detectors, lasting=False, reason=Reason("overlaps", ref.run))
    builder.lacking(dataset_type.name, given, f"none overlaps the detector{_text(data_id)}")


def _pixels(pixelization: HtmPixelization, region: Region) -> set[int]:
    return {pixel for begin, end in pixelization.envelope(region) for pixel in range(begin, end)}


def _find_patches(butler: Butler, dataset_type: DatasetType, where: list[str], builder: _Builder) -> None:
    visit = builder.visit
    data_id = _data_id(dataset_type, visit)
    if not visit.regions or data_id is None:
        builder.lacking(dataset_type.name, (), _why_not(visit, data_id))
        return
    element = "patch" if "patch" in dataset_type.dimensions else "tract"
    with butler.query() as query:
        query = query.where(data_id, f"{element}.region OVERLAPS area", bind={"area": _bound(visit.regions)})
        refs = list(query.datasets(dataset_type, collections=where).with_dimension_records())
    skymaps = sorted({str(ref.dataId["skymap"]) for ref in refs})
    if len(skymaps) > 1:
        # Templates of different grids can't be told apart by where they are.
        reason = f"there are some of several sky maps ({', '.join(skymaps)}): configure one (skymap)"
        builder.lacking(dataset_type.name, (), reason)
        return
    given = set()
    for ref in refs:
        region = ref.dataId.records[element].region
        detectors = [d for d, own in visit.regions.items() if own.overlaps(region) is not False]
        if detectors:
            given.update(detectors)
            builder.give(ref, detectors, lasting=False, reason=Reason("overlaps", ref.run))
    builder.lacking(dataset_type.name, given, f"none overlaps the detector{_text(data_id)}")


def _find_generic(butler: Butler, dataset_type: DatasetType, where: list[str], builder: _Builder) -> None:
    visit = builder.visit
    data_id = _data_id(dataset_type, visit)
    if data_id is None:
        builder.lacking(dataset_type.name, (), _why_not(visit, data_id))
        return
    per_detector = "detector" in dataset_type.dimensions
    given: set[int] = set()
    for ref in butler.query_datasets(dataset_type, collections=where, data_id=data_id, explain=False):
        detectors: tuple[int, ...] = visit.detectors
        if per_detector:
            detectors = tuple(d for d in visit.detectors if d == ref.dataId["detector"])
        if detectors:
            builder.give(ref, detectors, lasting=True, reason=Reason("generic", ref.run))
            given.update(detectors)
    builder.lacking(dataset_type.name, given, f"there is none{_text(data_id)}")


def _bound(regions: Mapping[int, ConvexPolygon]) -> Region:
    """A circle that holds all regions: one simple region for the database."""
    circles = [region.getBoundingCircle() for region in regions.values()]
    bound = Circle(circles[0])
    for circle in circles[1:]:
        bound.expandTo(circle)
    return bound
