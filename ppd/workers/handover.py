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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, FileDataset
from lsst.daf.butler.datastore import DatasetRefURIs

from ..checksums import CHECKSUM, checksum_of, checksum_of_file
from ..crash_points import here
from ..durably import sync
from ..messages import DetectorKey

_LOG = logging.getLogger(__name__)

# Files that are synced at the same time.
_SYNC_THREADS = 10

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
    # What a run is need not be asked for each dataset type.
    with butler.registry.caching_context(), butler.query() as query:
        for info in existing:
            for name in sorted(info.dataset_types or ()):
                dataset_type = butler.get_dataset_type(name)
                if "detector" not in dataset_type.dimensions:
                    continue
                if not any(p.fullmatch(name) for p in compiled):
                    continue
                refs += query.datasets(dataset_type, collections=info.name, find_first=False)
        # All have one of a few data IDs, whose records are looked up by their keys.
        expanded = {data_id: butler.registry.expandDataId(data_id) for data_id in {r.dataId for r in refs}}
    return [ref.expanded(expanded[ref.dataId]) for ref in refs]


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
    uris = butler.get_many_uris(refs)
    sources = [_source(ref, uris[ref]) for ref in refs]
    building = spool / "building" / entry
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    here("child.building-made")
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
            here("child.file-linked")
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
        here("child.records-collected")
        (building / "manifest.sum").write_text(checksum_of(text.encode()) + "\n", encoding="utf-8")
        here("child.manifest-sum-written")
        (building / "manifest.json").write_text(text, encoding="utf-8")
        here("child.manifest-written")
        _sync_files([building / name for name in (*checksums, "manifest.sum", "manifest.json")])
        sync(building)
        ready = spool / "ready"
        ready.mkdir(exist_ok=True)
        here("child.hand-over-built")
        building.rename(ready / entry)
        here("child.handed-over")
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    # From here on it is handed over, whatever happens.
    try:
        sync(ready)
    except OSError as e:
        _LOG.error("Hand-over %s may not outlive a power failure: %s", entry, e)
    for source in sources:
        with contextlib.suppress(OSError):
            source.unlink()
        here("child.source-removed")
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
    wanted = [
        {"instrument": e.instrument, "exposure": e.id}  # type: ignore[attr-defined]
        for e in found["exposure"].values()
    ]
    for visit_id in list(found["visit"]):
        instrument, visit = visit_id["instrument"], visit_id["visit"]  # type: ignore[index]
        for element, other in (("visit_definition", "exposure"), ("visit_system_membership", "visit_system")):
            for record in butler.query_dimension_records(
                element, instrument=instrument, visit=visit, explain=False
            ):
                found[element][record.dataId] = record
                wanted.append({"instrument": instrument, other: getattr(record, other)})
    # By data IDs, which takes a fraction of the time of a query.  An exposure
    # brings its group and its day.
    for data_id in wanted:
        expanded = butler.registry.expandDataId(data_id)
        for element in expanded.dimensions.elements:
            record = expanded.records[element]
            if element in found and record is not None:
                found[element][record.dataId] = record
    return [record for element in _ELEMENTS for record in found[element].values()]


def _source(ref: DatasetRef, uris: DatasetRefURIs) -> Path:
    if uris.primaryURI is None:
        raise RuntimeError(f"{ref} is in more files than one")
    return Path(uris.primaryURI.ospath)


def _tail(name: str) -> str:
    """Cut a name to what a file's name has room for; the end tells the type."""
    return os.fsdecode(os.fsencode(name)[-200:])


def _link(source: Path, target: Path) -> int:
    """Link a file, or copy it from another file system; return its bytes."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
    return target.stat().st_size


def _sync_files(files: Sequence[Path]) -> None:
    """Sync files together: a file system commits once for all that wait at the same time."""
    try:
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(sync, files))
    except RuntimeError:  # no more threads, no more memory
        for file in files:
            sync(file)
