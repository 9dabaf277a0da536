"""The cache repo: the node's one copy of the inputs, as a real Butler repo.

Its datastore is a chain of an empty ``local`` store, which nothing is ever
written to here, and the ``shared`` store that holds the inputs.  A child's
repo is a copy of the registry file with the roles of the stores swapped, so
that no dataset is copied and no row inserted for a child.
"""

from __future__ import annotations

__all__ = ["CacheRepo", "CacheStatistics"]

import contextlib
import dataclasses
import errno
import logging
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import sqlalchemy.exc
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DimensionRecord,
    Timespan,
)

from ..errors import SharedMemoryError
from .stores import store_config, write_child_config

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CacheStatistics:
    """How full the cache is."""

    datasets: int
    bytes_held: int
    bytes_fetched: int
    evicted: int
    leases: int


@dataclasses.dataclass
class _Held:
    ref: DatasetRef
    size: int
    used: float
    lasting: bool


class CacheRepo:
    """The cache repo, its leases and its registry snapshots.

    Parameters
    ----------
    place : `pathlib.Path`
        Empty folder on shared memory.
    central : `lsst.daf.butler.Butler`
        The central repo: gives the dimension universe.
    max_bytes : `int`
        Bytes of datasets to hold at most.
    formatters : `~collections.abc.Mapping`, optional
        Formatters of the central repo that are not the middleware's own
        choice (see `ppd.cache.stores.site_formatters`); children write with the same.

    Notes
    -----
    One thread owns an instance; it is not safe for more.
    """

    def __init__(
        self, place: Path, central: Butler, max_bytes: int, formatters: Mapping[str, object] | None = None
    ):
        self.place = place
        self.root = place / "cache"
        self.max_bytes = max_bytes
        self._held: dict[uuid.UUID, _Held] = {}
        self._leases: dict[str, frozenset[uuid.UUID]] = {}
        # By dataset type and data ID; no two validity ranges of one overlap.
        self._certified: dict[tuple[str, DataCoordinate], dict[uuid.UUID, tuple[str, Timespan]]] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._collections: set[str] = set()
        self._generation = 0
        self._changed = True
        self._snapshot: Path | None = None
        self._snapshot_users: dict[Path, set[str]] = {}
        self._fetched = 0
        self._evicted = 0
        Butler.makeRepo(
            str(self.root),
            config=store_config(formatters),
            dimensionConfig=central.dimensions.dimensionConfig,
        )
        self.butler = Butler.from_config(str(self.root), writeable=True)
        self.child_config = place / "child-butler.yaml"
        write_child_config(self.root, self.child_config)
        (place / "snapshots").mkdir()

    def close(self) -> None:
        """Close the registry's connection."""
        self.butler.close()

    def insert_records(self, records: Mapping[str, Sequence[DimensionRecord]]) -> None:
        """Insert dimension records that every child needs.

        Parameters
        ----------
        records : `~collections.abc.Mapping` [ `str`, sequence of records ]
            Records by dimension element, in dependency order.
        """
        for element, rows in records.items():
            if rows:
                self.butler.registry.insertDimensionData(element, *rows, skip_existing=True)
                self._changed = True

    def register_dataset_types(self, dataset_types: Iterable[DatasetType]) -> None:
        """Register dataset types, so that children need not."""
        for dataset_type in dataset_types:
            self._changed |= self.butler.registry.registerDatasetType(dataset_type)

    def mirror_collections(self, chains: Mapping[str, tuple[str, ...]], calibrations: Iterable[str]) -> None:
        """Give the cache the chains of the central repo.

        Only what a search of the cache can meet is mirrored: the chains and
        their order, and calibration collections; runs come with datasets.

        Parameters
        ----------
        chains : `~collections.abc.Mapping` [ `str`, `tuple` [ `str`, ... ] ]
            Children of each chain, innermost chains first.
        calibrations : `~collections.abc.Iterable` [ `str` ]
            Calibration collections.
        """
        for name in calibrations:
            if name not in self._collections:
                self.butler.collections.register(name, CollectionType.CALIBRATION)
                self._collections.add(name)
                self._changed = True
        for name, children in chains.items():
            if self._chains.get(name) == children:
                continue
            for child in children:
                if child not in self._collections and child not in chains:
                    self.butler.collections.register(child, CollectionType.RUN)
                    self._collections.add(child)
            if name not in self._chains:
                self.butler.collections.register(name, CollectionType.CHAINED)
            self.butler.collections.redefine_chain(name, children)
            self._chains[name] = children
            self._changed = True

    def register_runs(self, runs: Iterable[str]) -> None:
        """Register output runs, so that children need not."""
        for run in runs:
            if run not in self._collections:
                self.butler.collections.register(run, CollectionType.RUN)
                self._collections.add(run)
                self._changed = True

    def fetch(self, central: Butler, refs: Iterable[DatasetRef], lasting: frozenset[uuid.UUID]) -> int:
        """Bring datasets into the cache that it does not hold yet.

        Parameters
        ----------
        central : `lsst.daf.butler.Butler`
            Where to read from.
        refs : `~collections.abc.Iterable` [ `lsst.daf.butler.DatasetRef` ]
            What is needed, held or not.
        lasting : `frozenset` [ `uuid.UUID` ]
            Those that this node uses at every visit: evicted last.

        Returns
        -------
        count : `int`
            How many were fetched.

        Raises
        ------
        FileNotFoundError
            Raised if a dataset is in the registry and its file is gone;
            nothing was fetched.
        SharedMemoryError
            Raised if the cache's file system is full and nothing can go;
            nothing was fetched.
        """
        now = time.monotonic()
        wanted = {ref.id: ref for ref in refs}
        missing = []
        for ref in wanted.values():
            held = self._held.get(ref.id)
            if held is None:
                missing.append(ref)
            else:
                held.used = now
                held.lasting |= ref.id in lasting
        if not missing:
            return 0
        while True:
            try:
                with self._full_is_an_error():
                    sizes = self._transfer(central, missing)
                break
            except SharedMemoryError:
                # The limit may be more than the file system has.
                if not self._evict(self._bytes_held() // 2, keep=wanted.keys()):
                    raise
        for ref in missing:
            self._fetched += sizes[ref.id]
            self._held[ref.id] = _Held(ref, sizes[ref.id], now, ref.id in lasting)
        self._changed = True
        self._evict(self.max_bytes, keep=wanted.keys())
        return len(missing)

    def certify(self, collection: str, ref: DatasetRef, timespan: Timespan) -> None:
        """Certify a calib as central has it.

        What was certified before of the same detector (or filter) stays only
        where it does not contradict: central may have changed its mind.

        Parameters
        ----------
        collection : `str`
            Calibration collection.
        ref : `lsst.daf.butler.DatasetRef`
            The calib; it must be in the cache.
        timespan : `lsst.daf.butler.Timespan`
            Its validity range in central.
        """
        known = self._certified.setdefault((ref.datasetType.name, ref.dataId), {})
        if known.get(ref.id) == (collection, timespan):
            return
        registry = self.butler.registry
        for other, (where, span) in list(known.items()):
            # Of another collection too: it may be searched before this one.
            if other == ref.id or span.overlaps(timespan):
                registry.decertify(where, ref.datasetType, span, dataIds=[ref.dataId])
                del known[other]
        registry.certify(collection, [ref], timespan)
        known[ref.id] = (collection, timespan)
        self._changed = True

    def lease(self, holder: str, ids: Iterable[uuid.UUID]) -> Path:
        """Promise datasets to a child and say which registry copy to clone.

        Parameters
        ----------
        holder : `str`
            Who holds the lease; give it back with `release`.
        ids : `~collections.abc.Iterable` [ `uuid.UUID` ]
            Datasets that may not be evicted meanwhile.

        Returns
        -------
        snapshot : `pathlib.Path`
            SQLite file that does not change while the lease lasts.

        Raises
        ------
        SharedMemoryError
            Raised if the cache's file system has no room for the copy.
        """
        if self._changed or self._snapshot is None:
            with self._full_is_an_error():
                self._take_snapshot()
        assert self._snapshot is not None
        self._leases[holder] = frozenset(ids)
        self._snapshot_users.setdefault(self._snapshot, set()).add(holder)
        return self._snapshot

    def release(self, holder: str) -> None:
        """Give a lease back; of an unknown holder, nothing happens."""
        self._leases.pop(holder, None)
        for path, users in list(self._snapshot_users.items()):
            users.discard(holder)
            if not users and path != self._snapshot:
                path.unlink(missing_ok=True)
                del self._snapshot_users[path]

    def statistics(self) -> CacheStatistics:
        """Say how full the cache is."""
        return CacheStatistics(
            datasets=len(self._held),
            bytes_held=self._bytes_held(),
            bytes_fetched=self._fetched,
            evicted=self._evicted,
            leases=len(self._leases),
        )

    def _bytes_held(self) -> int:
        return sum(h.size for h in self._held.values())

    @contextlib.contextmanager
    def _full_is_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            if not _is_full(e):
                raise
            raise SharedMemoryError(f"The cache's file system is full: {self.place}.") from e

    def _transfer(self, central: Butler, refs: list[DatasetRef]) -> dict[uuid.UUID, int]:
        """Copy all of them, or none, and tell their sizes."""
        try:
            self.butler.transfer_from(
                central,
                refs,
                transfer="copy",
                skip_missing=False,
                register_dataset_types=True,
                transfer_dimensions=True,
            )
        except ExceptionGroup as group:
            # One error for each file that could not be copied.
            errors = group.exceptions
            raise next((e for e in errors if _is_full(e)), errors[0]) from group
        try:
            return {ref.id: self._size(ref) for ref in refs}
        except FileNotFoundError:
            # Central's registry knows it and its datastore does not.
            self.butler.pruneDatasets(refs, disassociate=True, unstore=True, purge=True)
            raise

    def _size(self, ref: DatasetRef) -> int:
        primary, components = self.butler.getURIs(ref)
        uris = [primary] if primary is not None else list(components.values())
        return sum(Path(uri.ospath).stat().st_size for uri in uris)

    def _evict(self, limit: int, keep: Collection[uuid.UUID]) -> bool:
        """Evict the least recently used until ``limit`` bytes are held."""
        total = self._bytes_held()
        leased = frozenset(keep).union(*self._leases.values())
        victims = []
        for held in sorted(self._held.values(), key=lambda h: (h.lasting, h.used)):
            if total <= limit:
                break
            if held.ref.id not in leased:
                victims.append(held.ref)
                total -= held.size
        if victims:
            for ref in victims:
                del self._held[ref.id]
                self._certified.get((ref.datasetType.name, ref.dataId), {}).pop(ref.id, None)
            self._changed = True
            with self._full_is_an_error():
                self.butler.pruneDatasets(victims, disassociate=True, unstore=True, purge=True)
            self._evicted += len(victims)
            _LOG.info("Evicted %d datasets from the cache; %d bytes are held.", len(victims), total)
        return bool(victims)

    def _take_snapshot(self) -> None:
        self._generation += 1
        path = self.place / "snapshots" / f"{self._generation}.sqlite3"
        # SQLite's own backup sees a consistent registry whatever its journal
        # mode; a plain copy would not have to.
        source = sqlite3.connect(f"file:{self.root / 'gen3.sqlite3'}?mode=ro", uri=True)
        target = sqlite3.connect(path)
        try:
            source.backup(target)
        except BaseException:
            path.unlink()
            raise
        finally:
            target.close()
            source.close()
        old, self._snapshot, self._changed = self._snapshot, path, False
        if old is not None and not self._snapshot_users.get(old):
            old.unlink(missing_ok=True)
            self._snapshot_users.pop(old, None)


def _is_full(error: Exception) -> bool:
    """Whether an error says that there is no room."""
    if isinstance(error, sqlalchemy.exc.DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
