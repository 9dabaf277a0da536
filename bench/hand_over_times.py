"""What a hand-over costs the child that makes it."""

from __future__ import annotations

__all__ = ["measure_hand_overs"]

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset

from ppd.messages import DetectorKey
from ppd.supervisor.spool import make_folders
from ppd.workers import handover

from .hand_overs import RUN, make_central, make_records, visit_of

# Bytes of a detector-visit's outputs: images, tables, and much that is small.
_SIZES = (2_000_000,) * 3 + (200_000,) * 5 + (8_000,) * 12
_CHANGED = ("all", "without_fsync", "without_checksums")


def measure_hand_overs(disk: Path, memory: Path, repeats: int) -> dict[str, Any]:
    """Measure hand-overs of 20 datasets.

    Parameters
    ----------
    disk : `pathlib.Path`
        Folder on a disk.
    memory : `pathlib.Path`
        Folder on another file system, in memory.
    repeats : `int`
        How often each is measured.

    Returns
    -------
    figures : `dict`
        ``one_file_system_ms``: by links, all on the disk, and what is saved
        without one of its steps; ``copied``: from memory to the disk, and
        from the disk to memory.
    """
    ways: dict[str, tuple[Path, Path]] = dict.fromkeys(_CHANGED, (disk, disk))
    ways |= {"memory_to_disk": (memory, disk), "disk_to_memory": (disk, memory)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    find: list[float] = []
    with contextlib.ExitStack() as stack:
        children = {folder: stack.enter_context(_child(folder)) for folder in (disk, memory)}
        for spool in (disk / "spool", memory / "spool"):
            make_folders(spool)
        # In turn, so that what disturbs one disturbs all.  The first is to wake up.
        for number in range(-1, repeats):
            for detector, (name, (home, target)) in enumerate(ways.items()):
                butler = children[home]
                _process(butler, home, number + 1, detector)
                begin = time.perf_counter()
                refs = handover.find_outputs(butler, [RUN], [".*"])
                found = time.perf_counter()
                key = DetectorKey(instrument="DemoCam", group=f"g{number}", detector=detector)
                with _changed(name):
                    done = handover.hand_over(butler, refs, target / "spool", key)
                end = time.perf_counter()
                if (done.datasets, done.size) != (len(_SIZES), sum(_SIZES)):
                    raise RuntimeError(f"{done} is not what was to be handed over")
                butler.pruneDatasets(refs, disassociate=True, unstore=True, purge=True)
                shutil.rmtree(target / "spool" / "ready" / done.entry)
                if number >= 0:
                    times[name].append(1000.0 * (end - found))
                    find.append(1000.0 * (found - begin))
    figures = {name: _summary(values) for name, values in times.items()}
    whole = figures["all"]
    copied = {}
    for name in ("memory_to_disk", "disk_to_memory"):
        median = figures[name]["p50"]
        copied[name] = {
            **figures[name],
            "ratio_to_links": median / whole["p50"],
            "MB_per_s": sum(_SIZES) / 1e3 / median,
        }
    return {
        "datasets": len(_SIZES),
        "MB": sum(_SIZES) / 1e6,
        "one_file_system_ms": whole,
        "share_of_fsync": 1.0 - figures["without_fsync"]["p50"] / whole["p50"],
        "share_of_checksums": 1.0 - figures["without_checksums"]["p50"] / whole["p50"],
        "find_outputs_ms": _summary(find),
        "copied_ms": copied,
        "mark_ms_p95": 50.0,
    }


@contextlib.contextmanager
def _changed(name: str) -> Iterator[None]:
    """Leave a step of hand-overs out."""
    with contextlib.ExitStack() as stack:
        if name == "without_fsync":
            stack.enter_context(mock.patch("os.fsync", lambda descriptor: None))
        elif name == "without_checksums":
            stack.enter_context(mock.patch.object(handover, "checksum_of_file", lambda path: "0" * 32))
        yield


@contextlib.contextmanager
def _child(folder: Path) -> Iterator[Butler]:
    """A repo as a child has it, with the dataset types of its outputs."""
    root = make_central(folder / "child")
    with Butler.from_config(str(root), writeable=True) as butler:
        for number in range(len(_SIZES)):
            butler.registry.registerDatasetType(_type(butler, number))
        butler.collections.register(RUN)
        yield butler


def _type(butler: Butler, number: int) -> DatasetType:
    dimensions = ("instrument", "visit", "detector")
    return DatasetType(f"output_{number:02d}", dimensions, "StructuredDataDict", universe=butler.dimensions)


def _process(butler: Butler, folder: Path, number: int, detector: int) -> None:
    """Do what a pipeline does: write datasets a moment before they are handed over."""
    for record in make_records(butler.dimensions, number, detector):
        butler.registry.insertDimensionData(record.definition.name, record, skip_existing=True)
    data_id = butler.registry.expandDataId(instrument="DemoCam", visit=visit_of(number), detector=detector)
    rng = np.random.default_rng(number)
    datasets = []
    for index, size in enumerate(_SIZES):
        path = folder / f"made-{index:02d}.yaml"
        path.write_bytes(rng.bytes(size))
        ref = DatasetRef(_type(butler, index), data_id, run=RUN, id=uuid.uuid4())
        datasets.append(FileDataset(path=str(path), refs=ref))
    butler.ingest(*datasets, transfer="move")


def _summary(values: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(values, (50, 95))
    return {"min": min(values), "p50": float(p50), "p95": float(p95), "repeats": len(values)}
