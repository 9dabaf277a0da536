"""The thread that writes to the central repo: several hand-overs at a time."""

from __future__ import annotations

__all__ = ["Exported", "Exporter", "Undeliverable"]

import dataclasses
import logging
import random
import threading
import time
from pathlib import Path

import sqlalchemy.exc
from lsst.daf.butler import (
    CollectionType,
    DatasetType,
    DimensionRecord,
    FileDataset,
    SerializedDatasetType,
    SerializedDimensionRecord,
)
from lsst.daf.butler._file_dataset import SerializedFileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError

from ..config import Settings
from ..errors import one_line
from ..messages import DetectorKey
from .dead_letters import Kind, set_aside
from .inbox import Inbox
from .reading import open_butler
from .spool import Manifest, discard, read_manifest, ready_entries

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Exported:
    """Report: central has the outputs of these detector-visits."""

    entries: tuple[tuple[DetectorKey, int, bool], ...]
    """Key and number of datasets of each, and whether its pipeline ran to its end."""
    seconds: float


@dataclasses.dataclass(frozen=True)
class Undeliverable:
    """Report: a hand-over can't be exported and was set aside."""

    key: DetectorKey | None
    entry: str
    reason: str


class Exporter:
    """Exports the spool, in a thread of its own with the primary Butler.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    inbox : `ppd.supervisor.inbox.Inbox`
        Where reports go.
    """

    def __init__(self, settings: Settings, inbox: Inbox):
        self._settings = settings
        self._inbox = inbox
        self.butler = open_butler(settings.central_repo, writeable=True, attempts=3, delay=1.0)
        self._types: dict[str, DatasetType] = {}
        self._runs: set[str] = set()
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)

    def start(self) -> None:
        """Begin; what an earlier supervisor left in the spool goes first."""
        self._thread.start()

    def hurry(self) -> None:
        """Export what is there without waiting for a fuller batch."""
        self._hurry.set()

    def stop(self, timeout: float) -> bool:
        """End after the batch at hand; return whether that was in time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        ended = not self._thread.is_alive()
        if ended:
            self.butler.close()
        return ended

    def _run(self) -> None:
        failures = 0
        while not self._stop.wait(_POLL_SECONDS):
            try:
                entries = self._due()
                if entries:
                    self._export(entries)
                failures, self.trouble = 0, None
            except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, OSError) as e:
                # Central is away or busy; the spool keeps everything.
                failures += 1
                self.trouble = one_line(e)
                delay = min(2.0**failures, self._settings.repo_retry_delay) * random.uniform(0.5, 1.0)
                _LOG.error("Export failed; the spool keeps the outputs, next try in %.1f s: %s", delay, e)
                self._stop.wait(delay)
            except Exception as e:
                failures += 1
                self.trouble = f"{type(e).__name__}: {e}"
                _LOG.exception("Export met something it does not know; the spool keeps the outputs.")
                self._stop.wait(min(2.0**failures, 30.0))

    def _due(self) -> list[Path]:
        entries = ready_entries(Path(self._settings.spool_dir))
        if not entries:
            return []
        if len(entries) < self._settings.export_batch and not self._hurry.is_set():
            try:
                age = time.time() - entries[0].stat().st_mtime
            except FileNotFoundError:
                return []
            if age < self._settings.export_age:
                return []
        return entries[: self._settings.export_batch]

    def _export(self, entries: list[Path]) -> None:
        begin = time.monotonic()
        manifests: list[tuple[Path, Manifest]] = []
        for entry in entries:
            try:
                manifests.append((entry, read_manifest(entry)))
            except (ValueError, OSError) as e:
                self._set_aside(entry, None, f"its manifest can't be read: {e}", "corrupt")
        try:
            self._ingest(manifests)
            done = manifests
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError):
            raise
        except Exception as e:
            if len(manifests) > 1:
                _LOG.warning("A batch of %d can't be exported (%s); one by one now.", len(manifests), e)
            done = []
            for entry, manifest in manifests:
                try:
                    self._ingest([(entry, manifest)])
                    done.append((entry, manifest))
                except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError):
                    raise
                except Exception as e_one:
                    _LOG.exception("Hand-over %s can't be exported.", entry.name)
                    kind: Kind = "conflict" if isinstance(e_one, ConflictingDefinitionError) else "refused"
                    self._set_aside(entry, manifest.key, f"{type(e_one).__name__}: {e_one}", kind)
        if done:
            # Said first: between the two, a child that was killed at its last word
            # would seem to have handed over nothing.
            report = tuple((m.key, len(m.datasets), m.success) for _, m in done)
            self._inbox.put(Exported(report, time.monotonic() - begin))
        for entry, _ in done:
            discard(entry)

    def _ingest(self, batch: list[tuple[Path, Manifest]]) -> None:
        """Write a batch to central; a repeat writes nothing new."""
        if not batch:
            return
        butler = self.butler
        universe = butler.dimensions
        datasets: list[FileDataset] = []
        records: dict[str, dict[object, DimensionRecord]] = {}
        for entry, manifest in batch:
            for serialized_type in manifest.dataset_types:
                dataset_type = DatasetType.from_simple(
                    SerializedDatasetType.model_validate(serialized_type), universe=universe
                )
                if dataset_type.name not in self._types:
                    butler.registry.registerDatasetType(dataset_type)
                    self._types[dataset_type.name] = dataset_type
            for run in manifest.runs:
                if run not in self._runs:
                    butler.collections.register(run, CollectionType.RUN)
                    self._runs.add(run)
            for serialized_record in manifest.dimension_records:
                record = DimensionRecord.from_simple(
                    SerializedDimensionRecord.model_validate(serialized_record), universe=universe
                )
                assert record is not None
                records.setdefault(record.definition.name, {})[record.dataId] = record
            for serialized in manifest.datasets:
                dataset = FileDataset.from_simple(
                    SerializedFileDataset.model_validate(serialized),
                    dataset_type_loader=self._types.__getitem__,
                    universe=universe,
                )
                dataset.path = str(entry / str(dataset.path))
                datasets.append(dataset)
        with butler.transaction():
            # The manifest has its records in dependency order.
            for element, rows in records.items():
                butler.registry.insertDimensionData(element, *rows.values(), skip_existing=True)
        # Expanded data IDs give the datastore what its file names are made of.
        # What an exposure implies (its day, filter and group) is central's
        # word: one detector's odd header must not cost the others' outputs.
        with butler.registry.caching_context():
            for dataset in datasets:
                dataset.refs = [
                    r.expanded(
                        butler.registry.expandDataId(r.dataId.required, dimensions=r.dataId.dimensions)
                    )
                    for r in dataset.refs
                ]
        self._remove_orphans(datasets)
        butler.ingest(*datasets, transfer=self._transfer(datasets), skip_existing=True)

    def _remove_orphans(self, datasets: list[FileDataset]) -> None:
        """Remove files that a killed exporter placed without recording them."""
        for dataset in datasets:
            for ref in dataset.refs:
                uri = self.butler.getURI(ref, predict=True)
                if uri.isLocal and Path(uri.ospath).exists() and not self.butler.stored(ref):
                    Path(uri.ospath).unlink()

    def _transfer(self, datasets: list[FileDataset]) -> str:
        """Link where central is on the spool's file system: no byte moves."""
        uri = self.butler.getURI(datasets[0].refs[0], predict=True)
        if not uri.isLocal:
            return "copy"
        folder = Path(uri.ospath)
        while not folder.exists():
            folder = folder.parent
        return "hardlink" if folder.stat().st_dev == Path(self._settings.spool_dir).stat().st_dev else "copy"

    def _set_aside(self, entry: Path, key: DetectorKey | None, reason: str, kind: Kind) -> None:
        set_aside(entry, reason, kind)
        self._inbox.put(Undeliverable(key, entry.name, reason))
