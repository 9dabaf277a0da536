"""Writing hand-overs to the central repo: several in one go, each dataset once."""

from __future__ import annotations

__all__ = ["BatchWriter", "ConflictError", "HandOver"]

import ctypes
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetRef,
    DatasetType,
    DimensionRecord,
    FileDataset,
    SerializedDatasetType,
    SerializedDimensionRecord,
)
from lsst.daf.butler._file_dataset import SerializedFileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError

from ..errors import PpdError
from .spool import Manifest


class ConflictError(PpdError):
    """Raised when central has another dataset where one of ours belongs."""


@dataclasses.dataclass(frozen=True)
class HandOver:
    """A hand-over with its manifest."""

    path: Path
    manifest: Manifest


class BatchWriter:
    """Writes to one central repo, and remembers what it has registered there.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo, writeable.
    """

    def __init__(self, butler: Butler):
        self._butler = butler
        self._types: dict[str, DatasetType] = {}
        self._runs: set[str] = set()

    def write(self, batch: Sequence[HandOver]) -> None:
        """Write some hand-overs: all or none of them.

        Done again, it finds the datasets by their UUIDs and writes nothing.
        When it returns, central has rows and files durably, as far as a
        local file system's are ours to sync.

        Parameters
        ----------
        batch : sequence of `HandOver`
            Not of the same detector-visit twice.

        Raises
        ------
        ConflictError
            Raised, for a single hand-over, if somebody else has written a
            dataset of the same data ID to the run.
        Exception
            Raised as whatever the middleware, a database or a disk raises.
        """
        datasets: list[FileDataset] = []
        records: dict[str, dict[object, DimensionRecord]] = {}
        for hand_over in batch:
            self._register(hand_over.manifest)
            self._collect(hand_over, datasets, records)
        butler = self._butler
        # In a transaction of their own: other exporters write records of the same exposures, and
        # wait for ours no longer than this takes.
        with butler.transaction():
            # The manifest has its records in dependency order.
            for element, rows in records.items():
                butler.registry.insertDimensionData(
                    element, *(rows[k] for k in sorted(rows, key=str)), skip_existing=True
                )
        if not datasets:
            return
        # Expanded data IDs give the datastore what its file names are made of.
        # What an exposure implies (its day, filter and group) is central's
        # word: one detector's odd header must not cost the others' outputs.
        bare = [_bare(ref) for dataset in datasets for ref in dataset.refs]
        expanded = iter(butler._registry.expand_refs(bare))
        for dataset in datasets:
            dataset.refs = [next(expanded) for _ in dataset.refs]
        mode, root = self._transfer(datasets[0], batch[0].path)
        try:
            butler.ingest(*datasets, transfer=mode, skip_existing=True)
        except ConflictingDefinitionError as e:
            if len(batch) == 1:
                self._explain(datasets, e)
            raise
        if root is not None:
            _sync(root)

    def _register(self, manifest: Manifest) -> None:
        butler = self._butler
        for serialized in manifest.dataset_types:
            dataset_type = DatasetType.from_simple(
                SerializedDatasetType.model_validate(serialized), universe=butler.dimensions
            )
            if self._types.get(dataset_type.name) != dataset_type:
                butler.registry.registerDatasetType(dataset_type)
                self._types[dataset_type.name] = dataset_type
        for run in manifest.runs:
            if run not in self._runs:
                butler.collections.register(run, CollectionType.RUN)
                _put_into_chain(butler, run)
                self._runs.add(run)

    def _collect(
        self,
        hand_over: HandOver,
        datasets: list[FileDataset],
        records: dict[str, dict[object, DimensionRecord]],
    ) -> None:
        universe = self._butler.dimensions
        for serialized_record in hand_over.manifest.dimension_records:
            record = DimensionRecord.from_simple(
                SerializedDimensionRecord.model_validate(serialized_record), universe=universe
            )
            assert record is not None
            records.setdefault(record.definition.name, {})[record.dataId] = record
        for serialized in hand_over.manifest.datasets:
            dataset = FileDataset.from_simple(
                SerializedFileDataset.model_validate(serialized),
                dataset_type_loader=self._types.__getitem__,
                universe=universe,
            )
            dataset.path = str(hand_over.path / str(dataset.path))
            datasets.append(dataset)

    def _transfer(self, dataset: FileDataset, entry: Path) -> tuple[str, Path | None]:
        """Link where central is on the spool's file system: no byte moves."""
        uri = self._butler.getURI(dataset.refs[0], predict=True)
        if not uri.isLocal:
            return "copy", None
        folder = Path(uri.ospath).parent
        while not folder.exists():
            folder = folder.parent
        return ("hardlink" if folder.stat().st_dev == entry.stat().st_dev else "copy"), folder

    def _explain(self, datasets: Sequence[FileDataset], cause: Exception) -> None:
        """Raise if somebody else's dataset is in the way of one of ours."""
        for dataset in datasets:
            for ref in dataset.refs:
                there = self._butler.find_dataset(ref.datasetType, ref.dataId, collections=ref.run)
                if there is not None and there.id != ref.id:
                    raise ConflictError(
                        f"another writer has {ref.datasetType.name} {ref.dataId} in {ref.run}: "
                        f"dataset {there.id}, and ours is {ref.id}"
                    ) from cause


def _bare(ref: DatasetRef) -> DatasetRef:
    """Drop what a data ID implies."""
    required = ref.dataId.subset(ref.dataId.dimensions)
    return ref.expanded(type(required).standardize(ref.dataId.required, dimensions=ref.dataId.dimensions))


def _put_into_chain(butler: Butler, run: str) -> None:
    """Make the day's chain and put a run into it, where ppd-init's work has been undone."""
    # <instrument>/prompt/output-<day>/<pipeline>/<deployment>
    chain, _, rest = run.rpartition("/")[0].rpartition("/")
    if not chain.rpartition("/")[2].startswith("output-") or not rest:
        return
    butler.collections.register(chain, CollectionType.CHAINED)
    if run not in butler.collections.get_info(chain).children:
        butler.collections.prepend_chain(chain, run)


def _sync(folder: Path) -> None:
    """Have a file system write what it holds back: the files' names, and their bytes if they were copied.

    Raises
    ------
    OSError
        Raised if it can't.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
