"""Handing a child's outputs over to the spool.

A hand-over is a folder that one rename makes exist: files, and a manifest in
the form that Rubin's butler-writer publishes (``pp-output``).
"""

from __future__ import annotations

__all__ = ["HandOver", "find_outputs", "hand_over"]

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, FileDataset

from ..checksums import CHECKSUM, checksum_of, checksum_of_file
from ..messages import DetectorKey

_LOG = logging.getLogger(__name__)

# Records that a child makes itself and central may not have, in the order in
# which central must get them.
_ELEMENTS = (
    "day_obs",
    "group",
    "exposure",
    "visit_system",
    "visit",
    "visit_definition",
    "visit_system_membership",
    "visit_detector_region",
)


@dataclasses.dataclass(frozen=True)
class HandOver:
    """What was handed over."""

    entry: str
    datasets: int
    size: int


def find_outputs(butler: Butler, runs: Iterable[str], patterns: Sequence[str]) -> list[DatasetRef]:
    """List the outputs to export.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo.
    runs : iterable of `str`
        The child's output runs.
    patterns : sequence of `str`
        Regular expressions; a dataset type must match one wholly.

    Returns
    -------
    refs : `list` [ `lsst.daf.butler.DatasetRef` ]
        Those with ``detector`` in their dimensions, with dimension records.
    """
    compiled = [re.compile(p) for p in patterns]
    existing = list(butler.collections.query_info(sorted(set(runs)), include_summary=True))
    refs: list[DatasetRef] = []
    for info in existing:
        for name in sorted(info.dataset_types or ()):
            dataset_type = butler.get_dataset_type(name)
            if "detector" not in dataset_type.dimensions:
                continue
            if not any(p.fullmatch(name) for p in compiled):
                continue
            refs += butler.query_datasets(
                dataset_type,
                collections=info.name,
                find_first=False,
                explain=False,
                with_dimension_records=True,
            )
    return refs


def hand_over(
    butler: Butler,
    refs: Sequence[DatasetRef],
    spool: Path,
    key: DetectorKey,
    *,
    success: bool = True,
    reason: str = "",
) -> HandOver:
    """Move outputs with their records into the spool.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo; the files are gone from it afterwards.
    refs : sequence of `lsst.daf.butler.DatasetRef`
        What `find_outputs` found.
    spool : `pathlib.Path`
        Root of the spool.
    key : `ppd.messages.DetectorKey`
        Whose outputs they are.
    success : `bool`, optional
        Whether the pipeline ran to its end.
    reason : `str`, optional
        Why it did not.

    Returns
    -------
    done : `HandOver`
        Name of the entry, number and bytes of the datasets.

    Raises
    ------
    OSError
        Raised if the spool can't take them.  Nothing is left of the entry
        and the outputs are where they were, so that it can be tried again.
    """
    entry = key.file_name
    sources = [Path(butler.getURI(ref).ospath) for ref in refs]
    building = spool / "building" / entry
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        size = 0
        datasets = []
        checksums = {}
        for number, (ref, source) in enumerate(zip(refs, sources, strict=True)):
            # The number keeps names of several runs apart; the suffix tells
            # the central datastore nothing, but a person something.
            target = building / f"{number:04d}-{_tail(source.name)}"
            size += _link(source, target)
            checksums[target.name] = checksum_of_file(target)
            datasets.append(FileDataset(path=target.name, refs=ref))
        manifest = {
            "type": "pp-output",
            "key": key.model_dump(),
            "dimension_records": [
                r.to_simple().model_dump(mode="json") for r in collect_records(butler, refs)
            ],
            "dataset_types": [
                t.to_simple().model_dump(mode="json") for t in sorted({r.datasetType for r in refs})
            ],
            "datasets": [d.to_simple().model_dump(mode="json") for d in datasets],
            "runs": sorted({r.run for r in refs}),
            "bytes": size,
            "success": success,
            "reason": reason,
            "checksum": CHECKSUM,
            "checksums": checksums,
        }
        text = json.dumps(manifest)
        _write_durably(building / "manifest.sum", checksum_of(text.encode()) + "\n")
        _write_durably(building / "manifest.json", text)
        _sync_folder(building)
        ready = spool / "ready"
        ready.mkdir(exist_ok=True)
        building.rename(ready / entry)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    # From here on it is handed over, whatever happens.
    try:
        _sync_folder(ready)
    except OSError as e:
        _LOG.error("Hand-over %s may not outlive a power failure: %s", entry, e)
    for source in sources:
        with contextlib.suppress(OSError):
            source.unlink()
    return HandOver(entry, len(refs), size)


def collect_records(butler: Butler, refs: Sequence[DatasetRef]) -> list[DimensionRecord]:
    """Collect the records that a child made, each once, in dependency order.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo.
    refs : sequence of `lsst.daf.butler.DatasetRef`
        Outputs, with dimension records.
    """
    found: dict[str, dict[object, DimensionRecord]] = {element: {} for element in _ELEMENTS}
    for ref in refs:
        for element in ref.dataId.dimensions.elements:
            record = ref.dataId.records[element]
            if element in found and record is not None:
                found[element][record.dataId] = record
    # A data ID with an exposure or visit says nothing of the tables that
    # join the two; they follow from the visits.
    for visit_id in list(found["visit"]):
        instrument, visit = visit_id["instrument"], visit_id["visit"]  # type: ignore[index]
        for element in ("visit_definition", "visit_system_membership"):
            for record in butler.query_dimension_records(
                element, instrument=instrument, visit=visit, explain=False
            ):
                found[element][record.dataId] = record
        for record in butler.query_dimension_records("visit_system", instrument=instrument, explain=False):
            found["visit_system"][record.dataId] = record
        for definition in found["visit_definition"].values():
            for record in butler.query_dimension_records(
                "exposure", instrument=instrument, exposure=definition.exposure, explain=False
            ):
                found["exposure"][record.dataId] = record
    for exposure in found["exposure"].values():
        for element, value in (("group", exposure.group), ("day_obs", exposure.day_obs)):
            for record in butler.query_dimension_records(
                element, data_id={"instrument": exposure.instrument, element: value}, explain=False
            ):
                found[element][record.dataId] = record
    return [record for element in _ELEMENTS for record in found[element].values()]


def _tail(name: str) -> str:
    """Cut a name to what a file's name has room for; the end tells the type."""
    return os.fsdecode(os.fsencode(name)[-200:])


def _link(source: Path, target: Path) -> int:
    """Link a file, or copy it from another file system; return its bytes."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_size


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
