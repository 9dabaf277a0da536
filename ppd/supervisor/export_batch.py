"""Writing hand-overs to the central repo: several in one go, each dataset once."""

from __future__ import annotations

__all__ = ["BatchWriter", "ConflictError"]

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetType,
    DimensionRecord,
    DimensionUniverse,
    FileDataset,
    SerializedDatasetType,
    SerializedDimensionRecord,
)
from lsst.daf.butler._file_dataset import SerializedFileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError

from ..crash_points import here
from ..errors import PpdError
from .spool import HandOver, Manifest


class ConflictError(PpdError):
    """Raised when central has another dataset where one of ours belongs."""


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
        self._serialized_types: dict[str, dict[str, Any]] = {}
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
        records = _Records(self._butler.dimensions)
        for hand_over in batch:
            self._register(hand_over.manifest)
            self._collect(hand_over, datasets)
            records.add(hand_over.manifest.dimension_records)
        here("exporter.collections-registered")
        butler = self._butler
        # In a transaction of their own: other exporters write records of the same exposures, and
        # wait for ours no longer than this takes.
        with butler.transaction():
            # The manifest has its records in dependency order.
            for element, rows in records.sorted():
                butler.registry.insertDimensionData(element, *rows, skip_existing=True)
            here("exporter.records-in-transaction")
        here("exporter.records-inserted")
        if not datasets:
            return
        # Expanded data IDs give the datastore what its file names are made of.
        # What an exposure implies (its day, filter and group) is central's
        # word: one detector's odd header must not cost the others' outputs.
        # Many datasets have the same data ID: each is expanded once.
        data_ids = list({ref.dataId for dataset in datasets for ref in dataset.refs})
        expanded = dict(
            zip(data_ids, butler._registry.expand_data_ids([_bare(d) for d in data_ids]), strict=True)
        )
        for dataset in datasets:
            dataset.refs = [ref.expanded(expanded[ref.dataId]) for ref in dataset.refs]
        mode, root = self._transfer(datasets[0], batch[0].path)
        here("exporter.not-ingested")
        try:
            butler.ingest(*datasets, transfer=mode, skip_existing=True)
        except ConflictingDefinitionError as e:
            if len(batch) == 1:
                self._explain(datasets, e)
            raise
        here("exporter.ingested")
        if root is not None:
            _sync(root)

    def _register(self, manifest: Manifest) -> None:
        butler = self._butler
        for serialized in manifest.dataset_types:
            if self._serialized_types.get(serialized["name"]) == serialized:
                continue
            dataset_type = DatasetType.from_simple(
                SerializedDatasetType.model_validate(serialized), universe=butler.dimensions
            )
            if self._types.get(dataset_type.name) != dataset_type:
                butler.registry.registerDatasetType(dataset_type)
                self._types[dataset_type.name] = dataset_type
            self._serialized_types[dataset_type.name] = serialized
        for run in manifest.runs:
            if run not in self._runs:
                butler.collections.register(run, CollectionType.RUN)
                _put_into_chain(butler, run)
                self._runs.add(run)

    def _collect(self, hand_over: HandOver, datasets: list[FileDataset]) -> None:
        universe = self._butler.dimensions
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


class _Records:
    """Dimension records of a batch, each once."""

    def __init__(self, universe: DimensionUniverse):
        self._universe = universe
        self._found: dict[str, dict[object, DimensionRecord]] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def add(self, serialized: Iterable[dict[str, Any]]) -> None:
        for one in serialized:
            # Detectors of a visit follow each other, and have its records in common.
            if self._last.get(one["definition"]) == one:
                continue
            record = DimensionRecord.from_simple(
                SerializedDimensionRecord.model_validate(one), universe=self._universe
            )
            assert record is not None
            self._found.setdefault(record.definition.name, {})[record.dataId] = record
            self._last[one["definition"]] = one

    def sorted(self) -> Iterator[tuple[str, list[DimensionRecord]]]:
        """In dependency order, as the manifests have them; each table's in the same order everywhere."""
        for element, rows in self._found.items():
            yield element, [rows[k] for k in sorted(rows, key=str)]


def _bare(data_id: DataCoordinate) -> DataCoordinate:
    """Drop what a data ID implies."""
    return DataCoordinate.from_required_values(data_id.dimensions, data_id.required_values)


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
