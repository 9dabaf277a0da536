"""From exposures to visits: definition and regions, in the child's repo."""

from __future__ import annotations

__all__ = ["define_visits", "visits_to_process"]

import cmath
import dataclasses
import functools
import logging
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lsst.daf.butler import Butler, DimensionRecord, Timespan
from lsst.sphgeom import ConvexPolygon

from ..instruments.description import InstrumentDescription
from .ingest import RawExposure

_LOG = logging.getLogger(__name__)

# Names of visit systems, as `lsst.obs.base` gives them.
_ONE_TO_ONE = "one-to-one"
_BY_GROUP = "by-group-metadata"
_BY_SEQUENCE = "by-seq-start-end"


@dataclasses.dataclass
class _Visit:
    """A visit to be, and the visit systems that it is part of."""

    id: int
    name: str
    exposures: list[DimensionRecord]
    systems: set[str]


def define_visits(
    butler: Butler, raws: Sequence[RawExposure], description: InstrumentDescription
) -> tuple[int, ...]:
    """Define the visits of a group's exposures, as Rubin's visit systems do.

    After this, ``visit``, ``visit_definition``, ``visit_system_membership``
    and the ``visit_detector_region`` of this child's detector are in the
    repo, for each visit system that the repo has.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo; the exposures' records are in it.
    raws : sequence of `ppd.workers.ingest.RawExposure`
        A raw of each exposure, all of one detector.
    description : `ppd.instruments.description.InstrumentDescription`
        Gives the focal plane.

    Returns
    -------
    visits : `tuple` [ `int` ]
        IDs of the visits to process: those of the instrument's own visit
        system, or of the one-to-one system where that has none.

    Notes
    -----
    The systems are those of `lsst.obs.base`.  One-to-one: the exposure's ID
    and observation ID.  By ``seq_start`` and ``seq_end``: an exposure that is
    alone in its sequence has one visit in both systems; of several, the first
    gives ID and name to the visit of all, and its own one-to-one visit has a
    9 before its ID and ``_first`` after its name.  Without the first, the
    visit of all is not defined.  By group: the digits of the group's name.
    The region of several exposures is the first one's.
    """
    instrument = raws[0].info.instrument
    exposures = {
        raw.exposure: butler.query_dimension_records(
            "exposure", instrument=instrument, exposure=raw.exposure
        )[0]
        for raw in raws
    }
    systems = _visit_systems(butler, instrument)
    planned = _plan(sorted(exposures.values(), key=lambda e: (e.seq_num, e.id)), set(systems))
    by_exposure = {raw.exposure: raw for raw in raws}
    records: dict[str, list[DimensionRecord]] = {}
    for visit in planned:
        raw = by_exposure[visit.exposures[0].id]
        for element, made in _records(butler, visit, raw, description, systems).items():
            records.setdefault(element, []).extend(made)
    for element, made in records.items():
        butler.registry.insertDimensionData(element, *made, skip_existing=True)
    return visits_to_process(butler, instrument, list(exposures))


def _visit_systems(butler: Butler, instrument: str) -> dict[str, int]:
    """IDs of the repo's visit systems by name; one-to-one is always among them."""
    found = {record.name: int(record.id) for record in _query(butler, "visit_system", instrument)}
    if _ONE_TO_ONE not in found:
        record = butler.dimensions["visit_system"].RecordClass(instrument=instrument, id=0, name=_ONE_TO_ONE)
        butler.registry.insertDimensionData("visit_system", record, skip_existing=True)
        found[_ONE_TO_ONE] = 0
    return found


def _plan(exposures: list[DimensionRecord], systems: set[str]) -> list[_Visit]:
    """Plan the visits of exposures that are sorted by their number in the sequence."""
    planned: list[_Visit] = []
    sequences: dict[tuple[Any, ...], list[DimensionRecord]] = {}
    for exposure in exposures:
        key = (exposure.day_obs, exposure.seq_start, exposure.seq_end)
        sequences.setdefault(key if _BY_SEQUENCE in systems else (exposure.id,), []).append(exposure)
    for members in sequences.values():
        planned += _plan_sequence(members, systems)
    if _BY_GROUP in systems:
        planned += _plan_groups(exposures)
    return planned


def _plan_sequence(members: list[DimensionRecord], systems: set[str]) -> list[_Visit]:
    first = members[0]
    alone = first.seq_start == first.seq_end
    # Only ID and name of the sequence's first exposure can be the visit's.
    whole = _BY_SEQUENCE in systems and not alone and first.seq_num == first.seq_start
    planned = []
    for exposure in members:
        visit = _Visit(exposure.id, exposure.obs_id, [exposure], {_ONE_TO_ONE})
        if alone:
            visit.systems.add(_BY_SEQUENCE)
        elif whole and exposure is first:
            visit.id, visit.name = int(f"9{visit.id}"), f"{visit.name}_first"
        planned.append(visit)
    if whole:
        planned.append(_Visit(first.id, first.obs_id, members, {_BY_SEQUENCE}))
    return planned


def _plan_groups(exposures: list[DimensionRecord]) -> list[_Visit]:
    groups: dict[str, list[DimensionRecord]] = {}
    for exposure in exposures:
        groups.setdefault(exposure.group, []).append(exposure)
    planned = []
    for group, members in groups.items():
        digits = re.sub(r"\D", "", group)
        if not digits or int(digits) >= 1 << 63:
            _LOG.warning("Group %r gives no visit ID; it has no %s visit.", group, _BY_GROUP)
            continue
        planned.append(_Visit(int(digits), group, members, {_BY_GROUP}))
    return planned


def _records(
    butler: Butler,
    visit: _Visit,
    raw: RawExposure,
    description: InstrumentDescription,
    systems: dict[str, int],
) -> dict[str, list[DimensionRecord]]:
    """Make a visit's records by element, in dependency order."""
    universe = butler.dimensions
    instrument = raw.info.instrument
    regions = _regions(raw, description)
    corners = [v for region in regions.values() for v in region.getVertices()]
    values = {
        **_combined(visit.exposures),
        "instrument": instrument,
        "id": visit.id,
        "name": visit.name,
        "region": ConvexPolygon.convexHull(corners),
    }
    record_class = universe["visit"].RecordClass
    known = set(record_class.fields.names)

    def make(element: str, **key: Any) -> DimensionRecord:
        return universe[element].RecordClass(instrument=instrument, visit=visit.id, **key)

    return {
        "visit": [record_class(**{k: v for k, v in values.items() if k in known})],
        "visit_definition": [make("visit_definition", exposure=e.id) for e in visit.exposures],
        "visit_system_membership": [
            make("visit_system_membership", visit_system=systems[name])
            for name in sorted(visit.systems & systems.keys())
        ],
        "visit_detector_region": [
            make("visit_detector_region", detector=raw.detector, region=regions[raw.detector])
        ],
    }


def _regions(raw: RawExposure, description: InstrumentDescription) -> dict[int, ConvexPolygon]:
    return description.focal_plane.regions(*raw.pointing, padding=description.region_padding)


def _combined(exposures: Sequence[DimensionRecord]) -> dict[str, Any]:
    """Combine exposures' values as Rubin's visit definition does."""
    first = exposures[0]
    if len(exposures) == 1:
        return {name: getattr(first, name) for name in first.fields.names}
    zenith = _reduce(operator.add, (e.zenith_angle for e in exposures))
    reason = _reduce(_if_equal, (e.observation_reason for e in exposures))
    return {
        "day_obs": min(e.day_obs for e in exposures),
        "seq_num": _reduce(min, (e.seq_num for e in exposures)),
        "physical_filter": _reduce(_if_equal, (e.physical_filter for e in exposures)),
        "target_name": _reduce(_if_equal, (e.target_name for e in exposures)),
        "science_program": _reduce(_if_equal, (e.science_program for e in exposures)),
        "observation_reason": "various" if reason is None else reason,
        "exposure_time": _reduce(operator.add, (e.exposure_time for e in exposures)),
        "zenith_angle": None if zenith is None else zenith / len(exposures),
        "azimuth": _mean_angle([e.azimuth for e in exposures]),
        "timespan": Timespan(
            min(e.timespan.begin for e in exposures), max(e.timespan.end for e in exposures)
        ),
    }


def _reduce(function: Callable[[Any, Any], Any], values: Iterable[Any]) -> Any:
    """Combine values; `None` if one of them is."""
    found = list(values)
    return None if any(value is None for value in found) else functools.reduce(function, found)


def _if_equal(one: Any, other: Any) -> Any:
    return one if one == other else None


def _mean_angle(angles: Sequence[float | None]) -> float | None:
    """Mean of angles in degrees, around the circle."""
    known = [angle for angle in angles if angle is not None]
    if len(known) < len(angles):
        return None
    return math.degrees(cmath.phase(sum(cmath.rect(1.0, math.radians(angle)) for angle in known))) % 360.0


def visits_to_process(butler: Butler, instrument: str, exposures: Sequence[int]) -> tuple[int, ...]:
    """Find the visits of exposures that are to be processed.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo, with the visits in it.
    instrument : `str`
        Name of the instrument.
    exposures : sequence of `int`
        Exposure IDs.

    Returns
    -------
    visits : `tuple` [ `int` ]
        Visits of the instrument's own visit system; those of the one-to-one
        system where that has none.
    """
    wanted = set(exposures)
    (record,) = butler.query_dimension_records("instrument", instrument=instrument)
    systems = {r.name: int(r.id) for r in _query(butler, "visit_system", instrument)}
    visits = {int(d.visit) for d in _query(butler, "visit_definition", instrument) if d.exposure in wanted}
    members: dict[int, list[int]] = {}
    for m in _query(butler, "visit_system_membership", instrument):
        if m.visit in visits:
            members.setdefault(int(m.visit_system), []).append(int(m.visit))
    # Better two visits of one exposure each than none.
    own = members.get(record.visit_system) or members.get(systems.get(_ONE_TO_ONE, -1), [])
    order = {int(v.id): (v.seq_num or 0, v.timespan.begin) for v in _query(butler, "visit", instrument)}
    return tuple(sorted(own, key=lambda visit: order[visit]))


def _query(butler: Butler, element: str, instrument: str) -> list[DimensionRecord]:
    return butler.query_dimension_records(element, instrument=instrument, explain=False)
