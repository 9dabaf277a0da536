"""Hand-overs as children make them, without children: small datasets, real records."""

from __future__ import annotations

__all__ = ["RUN", "TYPES", "make_central", "make_hand_over"]

import json
import os
import shutil
import uuid
from pathlib import Path

import astropy.time
from lsst.daf.butler import (
    Butler,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DimensionRecord,
    DimensionUniverse,
    FileDataset,
    Timespan,
)
from lsst.sphgeom import ConvexPolygon, UnitVector3d

from ppd.checksums import CHECKSUM, checksum_of
from ppd.demo.democam import DemoCam
from ppd.messages import DetectorKey

RUN = "DemoCam/prompt/output-2026-11-27/Synthetic/pipelines-0000000-config-0000000"
"""The run that they all go to."""

_INSTRUMENT = "DemoCam"
_NUMBERS = ("instrument", "visit", "detector")
TYPES = tuple(f"synthetic_{name}" for name in ("sources", "summary", "background", "metadata", "log"))
"""Their dataset types, one dataset of each."""

_REGION = ConvexPolygon([UnitVector3d(1, 0, 0), UnitVector3d(1, 0.01, 0), UnitVector3d(1, 0, 0.01)])
_EPOCH = astropy.time.Time("2026-11-27T04:00:00", scale="tai")


def make_central(root: Path, config: Config | None = None, detectors: int = 9) -> Path:
    """Make a central repo that knows DemoCam, with as many detectors as needed.

    Parameters
    ----------
    root : `pathlib.Path`
        Its root; does not exist.
    config : `lsst.daf.butler.Config`, optional
        Where its registry is; SQLite in the root when absent.
    detectors : `int`, optional
        How many detectors it has.

    Returns
    -------
    root : `pathlib.Path`
        The root.
    """
    with Butler.from_config(Butler.makeRepo(str(root), config=config), writeable=True) as butler:
        DemoCam().register(butler.registry)
        more = [
            {
                "instrument": _INSTRUMENT,
                "id": number,
                "full_name": f"X{number:03d}",
                "name_in_raft": f"{number:03d}",
                "raft": "X",
                "purpose": "SCIENCE",
            }
            for number in range(9, detectors)
        ]
        if more:
            butler.registry.insertDimensionData("detector", *more)
    return root


def make_hand_over(
    spool: Path,
    number: int,
    detector: int,
    universe: DimensionUniverse,
    *,
    types: tuple[str, ...] = TYPES,
    run: str = RUN,
    size: int = 200,
    attempt: int = 1,
    success: bool = True,
) -> Path:
    """Put a hand-over into a spool; its content says whose it is.

    Parameters
    ----------
    spool : `pathlib.Path`
        Root of the spool, with its folders.
    number : `int`
        Number of the visit, from 0.
    detector : `int`
        Detector ID.
    universe : `lsst.daf.butler.DimensionUniverse`
        That of the central repo.
    types : `tuple` [ `str` ], optional
        Names of the dataset types.
    run : `str`, optional
        Where they go.
    size : `int`, optional
        Bytes of each file, about.
    attempt : `int`, optional
        Which attempt at the detector-visit it is of.
    success : `bool`, optional
        Whether its pipeline ran to its end.

    Returns
    -------
    entry : `pathlib.Path`
        The hand-over.
    """
    visit = 20261127_00000 + number
    group = f"synthetic-{number:05d}"
    key = DetectorKey(instrument=_INSTRUMENT, group=group, detector=detector, attempt=attempt)
    records = _records(universe, visit, group, detector)
    building = spool / "building" / key.file_name
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    dimensions = universe.conform(_NUMBERS)
    data_id = DataCoordinate.standardize(
        instrument=_INSTRUMENT,
        visit=visit,
        detector=detector,
        physical_filter="demo-r",
        band="r",
        day_obs=20261127,
        universe=universe,
    ).subset(dimensions)
    datasets, checksums, dataset_types, total = [], {}, [], 0
    for index, name in enumerate(types):
        dataset_type = DatasetType(name, dimensions, "StructuredDataDict")
        data = json.dumps({"of": [group, detector, name], "fill": "x" * size}).encode()
        file = f"{index:04d}-{name}.yaml"
        (building / file).write_bytes(data)
        ref = DatasetRef(dataset_type, data_id, run=run, id=uuid.uuid4())
        datasets.append(FileDataset(path=file, refs=ref).to_simple().model_dump(mode="json"))
        dataset_types.append(dataset_type.to_simple().model_dump(mode="json"))
        checksums[file] = checksum_of(data)
        total += len(data)
    text = json.dumps(
        {
            "type": "pp-output",
            "key": key.model_dump(),
            "dimension_records": [r.to_simple().model_dump(mode="json") for r in records],
            "dataset_types": dataset_types,
            "datasets": datasets,
            "runs": [run],
            "bytes": total,
            "success": success,
            "reason": "" if success else "its pipeline failed",
            "checksum": CHECKSUM,
            "checksums": checksums,
        }
    )
    (building / "manifest.sum").write_text(checksum_of(text.encode()))
    (building / "manifest.json").write_text(text)
    entry = spool / "ready" / key.file_name
    os.rename(building, entry)  # noqa: PTH104 - says what it is
    return entry


def _records(universe: DimensionUniverse, visit: int, group: str, detector: int) -> list[DimensionRecord]:
    def record(element: str, **values: object) -> DimensionRecord:
        made: DimensionRecord = universe[element].RecordClass(instrument=_INSTRUMENT, **values)
        return made

    begin = _EPOCH + 34.0 * (visit % 100_000) * astropy.time.TimeDelta(1.0, format="sec")
    timespan = Timespan(begin, begin + astropy.time.TimeDelta(30.0, format="sec"))
    common = {
        "day_obs": 20261127,
        "physical_filter": "demo-r",
        "seq_num": visit % 100_000,
        "exposure_time": 30.0,
        "target_name": "field",
        "observation_reason": "science",
        "science_program": "bench",
        "azimuth": 0.0,
        "zenith_angle": 30.0,
        "timespan": timespan,
    }
    return [
        record("day_obs", id=20261127, timespan=None),
        record("group", name=group),
        record(
            "exposure",
            id=visit,
            obs_id=f"DC_{visit}",
            group=group,
            dark_time=30.0,
            observation_type="science",
            seq_start=visit % 100_000,
            seq_end=visit % 100_000,
            tracking_ra=10.0,
            tracking_dec=0.0,
            sky_angle=0.0,
            has_simulated=True,
            can_see_sky=True,
            **common,
        ),
        record("visit_system", id=0, name="one-to-one"),
        record("visit", id=visit, name=f"DC_{visit}", region=_REGION, **common),
        record("visit_definition", visit=visit, exposure=visit),
        record("visit_system_membership", visit_system=0, visit=visit),
        record("visit_detector_region", visit=visit, detector=detector, region=_REGION),
    ]
