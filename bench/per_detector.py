"""The way that is compared with: each detector's outputs go to central by a transfer of their own."""

from __future__ import annotations

__all__ = ["Transfers", "make_source", "prepare_central", "transfer_together"]

import contextlib
import multiprocessing
import queue
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetRef

from ppd.supervisor.export_batch import BatchWriter, HandOver
from ppd.supervisor.spool import discard, make_folders, read_manifest

from .hand_overs import RUN, TYPES, make_central, make_hand_over, visit_of

# In dependency order; all that an exposure brings along.
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
_TOGETHER = 100
_TRIES = 5


def make_source(folder: Path, wanted: Iterable[tuple[int, int]], detectors: int) -> Path:
    """Make a repo that has the outputs of detector-visits, as the repo of a worker has its own.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where to; does not exist.
    wanted : iterable of `tuple` [ `int`, `int` ]
        Numbers of visits, and detectors.
    detectors : `int`
        How many the camera has.

    Returns
    -------
    root : `pathlib.Path`
        The repo's root.
    """
    spool = folder / "spool"
    make_folders(spool)
    root = make_central(folder / "source", detectors=detectors)
    todo = list(wanted)
    with Butler.from_config(str(root), writeable=True) as butler:
        writer = BatchWriter(butler)
        for begin in range(0, len(todo), _TOGETHER):
            entries = [
                make_hand_over(spool, number, detector, butler.dimensions)
                for number, detector in todo[begin : begin + _TOGETHER]
            ]
            writer.write([HandOver(entry, read_manifest(entry)) for entry in entries])
            for entry in entries:
                discard(entry)
    shutil.rmtree(spool)
    return root


def prepare_central(source: Path, central: Path) -> None:
    """Register run and dataset types in central, as is done once a day.

    Parameters
    ----------
    source : `pathlib.Path`
        A repo that has them.
    central : `pathlib.Path`
        The central repo.
    """
    with Butler.from_config(str(source)) as ours, Butler.from_config(str(central), writeable=True) as butler:
        butler.collections.register(RUN)
        for name in TYPES:
            butler.registry.registerDatasetType(ours.get_dataset_type(name))


class Transfers:
    """A worker that has the outputs of detectors, and writes to central by itself.

    Parameters
    ----------
    source : `pathlib.Path`
        Repo with the outputs.
    central : `pathlib.Path`
        The central repo; it has the dataset types, and the run.

    Notes
    -----
    This is what a worker of prompt_processing does: it refreshes what it knows
    of central, inserts the dimension records table by table, and transfers
    the datasets.  What it reads from its own repo is not timed.
    """

    def __init__(self, source: Path, central: Path):
        self._stack = contextlib.ExitStack()
        self._source = self._stack.enter_context(Butler.from_config(str(source)))
        self._central = self._stack.enter_context(Butler.from_config(str(central), writeable=True))
        self.failures = 0

    def transfer(self, number: int, detector: int) -> float:
        """Transfer the outputs of a detector-visit; return the seconds that it took."""
        data_id = {"instrument": "DemoCam", "visit": visit_of(number), "detector": detector}
        refs: list[DatasetRef] = []
        for name in TYPES:
            refs += self._source.query_datasets(name, RUN, data_id=data_id, with_dimension_records=True)
        records = self._records(data_id)
        begin = time.monotonic()
        for left in reversed(range(_TRIES)):
            try:
                self._write(refs, records)
                break
            except Exception:  # others write the same rows
                self.failures += 1
                if not left:
                    raise
        return time.monotonic() - begin

    def _write(self, refs: Sequence[DatasetRef], records: dict[str, list[Any]]) -> None:
        registry = self._central.registry
        registry.refresh()
        for element, rows in records.items():
            registry.insertDimensionData(element, *rows, skip_existing=True)
        done = self._central.transfer_from(self._source, refs, transfer="copy", transfer_dimensions=False)
        if len(done) != len(TYPES):
            raise RuntimeError(f"{len(done)} datasets were transferred")

    def _records(self, data_id: dict[str, Any]) -> dict[str, list[Any]]:
        expanded = self._source.registry.expandDataId(data_id)
        everything: dict[str, list[Any]] = {}
        for element in _ELEMENTS:
            names = self._source.dimensions[element].minimal_group.required
            own: dict[str, Any] = {k: expanded[k] for k in names if k in expanded.dimensions.required}
            if "exposure" in names:
                own["exposure"] = data_id["visit"]
            elif element == "group":
                own["group"] = f"synthetic-{data_id['visit'] % 100_000:05d}"
            elif element == "day_obs":
                own["day_obs"] = expanded["day_obs"]
            everything[element] = list(
                self._source.query_dimension_records(element, data_id=own, explain=False)
            )
        return everything

    def close(self) -> None:
        """Close both repos."""
        self._stack.close()


def transfer_together(
    source: Path, central: Path, work: Sequence[Sequence[tuple[int, int]]], timeout: float
) -> dict[str, Any]:
    """Have many workers write at once, each in a process of its own.

    Parameters
    ----------
    source : `pathlib.Path`
        Repo with all the outputs.
    central : `pathlib.Path`
        The central repo.
    work : sequence
        What each of the workers transfers.
    timeout : `float`
        Seconds that they may take.

    Returns
    -------
    figures : `dict`
        ``seconds`` from the first begin to the last end, ``times`` of all
        transfers, and ``failures`` that made them be tried again.

    Raises
    ------
    RuntimeError
        Raised if one of them has failed, or is not through in time.
    """
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(len(work))
    answers = context.Queue()
    processes = [
        context.Process(target=_worker, args=(source, central, own, begin, answers, timeout), daemon=True)
        for own in work
    ]
    deadline = time.monotonic() + timeout
    found: list[Any] = []
    try:
        for process in processes:
            process.start()
        while len(found) < len(processes):
            try:
                found.append(answers.get(timeout=max(0.1, deadline - time.monotonic())))
            except queue.Empty:
                raise RuntimeError(f"{len(processes)} workers need more than {timeout:.0f} s") from None
            if isinstance(found[-1], str):
                raise RuntimeError(f"a transfer failed: {found[-1]}")
    finally:
        for process in processes:
            if process.is_alive():
                process.join(0.0 if len(found) < len(processes) else 5.0)
                process.kill()
            process.join(5.0)
    return {
        "seconds": max(end for _, end, _, _ in found) - min(start for start, *_ in found),
        "times": [t for *_, times, _ in found for t in times],
        "failures": sum(failures for *_, failures in found),
    }


def _worker(
    source: Path,
    central: Path,
    work: Sequence[tuple[int, int]],
    begin: Any,
    answers: Any,
    timeout: float,
) -> None:
    try:
        transfers = Transfers(source, central)
        begin.wait(timeout)
        start = time.monotonic()
        times = [transfers.transfer(number, detector) for number, detector in work]
        answers.put((start, time.monotonic(), times, transfers.failures))
        transfers.close()
    except Exception as e:
        begin.abort()
        answers.put(f"{type(e).__name__}: {e}"[:1000])
