"""The cache repo: the node's one copy of the inputs, as a real Butler repo.

Its datastore is a chain of an empty ``local`` store, which nothing is ever
written to here, and the ``shared`` store that holds the inputs.  A child's
repo is a copy of the registry file with the roles of the stores swapped, so
that no dataset is copied and no row inserted for a child.
"""

from __future__ import annotations

__all__ = ["CacheRepo", "CacheStatistics", "Certificate", "Fetched"]

import itertools
import logging
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DimensionRecord,
    MissingDatasetTypeError,
    Timespan,
)

from ..errors import PpdError, SharedMemoryError
from .holdings import (
    PINNED_SHARE,
    CacheStatistics,
    Fetched,
    Held,
    TypeHeld,
    choose_victims,
    held_by_type,
)
from .snapshots import Snapshots
from .stores import store_config, write_child_config
from .transfer import FetchFailure, copy_in, full_is_an_error

_LOG = logging.getLogger(__name__)

# Datasets of one transfer.
_PART = 1000

Certificate = tuple[str, DatasetRef, Timespan]
"""Calibration collection, calib, validity range."""


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
        self._held: dict[uuid.UUID, Held] = {}
        self._leases: dict[str, frozenset[uuid.UUID]] = {}
        self._pinned: set[str] = set()
        # By dataset type and data ID; no two validity ranges of one overlap.
        self._certified: dict[tuple[str, DataCoordinate], dict[uuid.UUID, tuple[str, Timespan]]] = {}
        self._tagged: dict[tuple[str, str, DataCoordinate], uuid.UUID] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._collections: set[str] = set()
        self._changed = True
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
        self._snapshots = Snapshots(self.root / "gen3.sqlite3", place / "snapshots")

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

    def mirror_collections(
        self, chains: Mapping[str, tuple[str, ...]], calibrations: Iterable[str], tagged: Iterable[str] = ()
    ) -> None:
        """Give the cache the chains of the central repo.

        Only what a search of the cache can meet is mirrored: the chains and
        their order, and calibration collections; runs come with datasets.

        Parameters
        ----------
        chains : `~collections.abc.Mapping` [ `str`, `tuple` [ `str`, ... ] ]
            Children of each chain, innermost chains first.
        calibrations : `~collections.abc.Iterable` [ `str` ]
            Calibration collections.
        tagged : `~collections.abc.Iterable` [ `str` ], optional
            Tagged collections.
        """
        for kind, names in ((CollectionType.CALIBRATION, calibrations), (CollectionType.TAGGED, tagged)):
            for name in names:
                if name not in self._collections:
                    self.butler.collections.register(name, kind)
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

    def lacks(self, refs: Iterable[DatasetRef]) -> list[DatasetRef]:
        """Return those of some datasets that the cache does not hold, each once."""
        return [ref for i, ref in {ref.id: ref for ref in refs}.items() if i not in self._held]

    def size(self, dataset: uuid.UUID) -> int | None:
        """Return the bytes of a dataset; `None` if the cache does not hold it."""
        held = self._held.get(dataset)
        return None if held is None else held.size

    def refs(self) -> list[DatasetRef]:
        """Return what the cache holds."""
        return [held.ref for held in self._held.values()]

    def withdraw(self, refs: Iterable[DatasetRef]) -> None:
        """Drop what central no longer has; what a child has leased stays until that ends."""
        leased = self._leased()
        victims = [ref for ref in refs if ref.id not in leased]
        if victims:
            _LOG.info("Dropped %d datasets that central no longer has where they were.", len(victims))
            self._drop(victims)

    def fetch(
        self,
        central: Butler,
        refs: Iterable[DatasetRef],
        lasting: frozenset[uuid.UUID],
        evict: bool = True,
    ) -> Fetched:
        """Bring datasets into the cache that it does not hold yet.

        Parameters
        ----------
        central : `lsst.daf.butler.Butler`
            Where to read from.
        refs : `~collections.abc.Iterable` [ `lsst.daf.butler.DatasetRef` ]
            What is needed, held or not.
        lasting : `frozenset` [ `uuid.UUID` ]
            Those that this node uses at every visit: evicted last.
        evict : `bool`, optional
            Whether others may be evicted for them.

        Returns
        -------
        fetched : `Fetched`
            How many were fetched, and which could not be.  Of those nothing
            is left in the cache.

        Raises
        ------
        SharedMemoryError
            Raised if the cache's file system is full and nothing can go.
        sqlalchemy.exc.DBAPIError
            Raised if central's database failed; what came before is kept.
        """
        now = time.monotonic()
        wanted = {ref.id: ref for ref in refs}
        for i in wanted.keys() & self._held.keys():
            self._held[i].used = now
            self._held[i].lasting |= i in lasting
        failed: dict[uuid.UUID, FetchFailure] = {}
        count = 0
        # In parts, so that one bad file costs the others little.
        for part in itertools.batched(self.lacks(wanted.values()), _PART):
            sizes, faults = self._copy_in(central, list(part), wanted.keys(), evict)
            failed |= faults
            for ref in part:
                if ref.id in sizes:
                    self._held[ref.id] = Held(ref, sizes[ref.id], now, ref.id in lasting)
            self._fetched += sum(sizes.values())
            count += len(sizes)
            self._changed |= bool(sizes)
        if count and evict:
            self._evict(self.max_bytes, keep=wanted.keys())
        return Fetched(count, failed)

    def certify(self, certifications: Iterable[Certificate]) -> None:
        """Certify calibs as central has them.

        What was certified before of the same detector (or filter) stays only
        where it does not contradict: central may have changed its mind.

        Parameters
        ----------
        certifications : `~collections.abc.Iterable`
            Calibration collection, calib (it must be in the cache) and
            validity range in central, of each.
        """
        gone: dict[tuple[str, DatasetType, Timespan], list[DataCoordinate]] = {}
        new: dict[tuple[str, DatasetType, Timespan], list[DatasetRef]] = {}
        for collection, ref, timespan in certifications:
            known = self._certified.setdefault((ref.datasetType.name, ref.dataId), {})
            if known.get(ref.id) == (collection, timespan):
                continue
            for other, (where, span) in list(known.items()):
                # Of another collection too: it may be searched before this one.
                if other == ref.id or span.overlaps(timespan):
                    gone.setdefault((where, ref.datasetType, span), []).append(ref.dataId)
                    del known[other]
            known[ref.id] = (collection, timespan)
            new.setdefault((collection, ref.datasetType, timespan), []).append(ref)
        for (where, dataset_type, span), data_ids in gone.items():
            self.butler.registry.decertify(where, dataset_type, span, dataIds=data_ids)
        for (collection, _, timespan), refs in new.items():
            self.butler.registry.certify(collection, refs, timespan)
        self._changed |= bool(new)

    def associate(self, tags: Iterable[tuple[str, DatasetRef]]) -> None:
        """Put datasets, which must be in the cache, into tagged collections as central has them."""
        new: dict[str, list[DatasetRef]] = {}
        for name, ref in tags:
            key = (name, ref.datasetType.name, ref.dataId)
            old = self._held.get(self._tagged.get(key, ref.id))
            if old is not None and old.ref.id != ref.id:
                self.butler.registry.disassociate(name, [old.ref])
            if self._tagged.get(key) != ref.id:
                self._tagged[key] = ref.id
                new.setdefault(name, []).append(ref)
        for name, refs in new.items():
            self.butler.registry.associate(name, refs)
            self._changed = True

    def certified(self) -> list[Certificate]:
        """Return all calibs with collection and validity range."""
        return [
            (where, self._held[i].ref, span)
            for known in self._certified.values()
            for i, (where, span) in known.items()
        ]

    def decertify(self, certificates: Iterable[Certificate]) -> None:
        """Take validity ranges back that central no longer has."""
        for where, ref, span in certificates:
            self.butler.registry.decertify(where, ref.datasetType, span, dataIds=[ref.dataId])
            del self._certified[ref.datasetType.name, ref.dataId][ref.id]
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
        if self._changed:
            with full_is_an_error(self.place):
                self._snapshots.take()
            self._changed = False
        self._leases[holder] = frozenset(ids)
        return self._snapshots.use(holder)

    def release(self, holder: str) -> None:
        """Give a lease back; of an unknown holder, nothing happens."""
        self._leases.pop(holder, None)
        self._snapshots.release(holder)

    def statistics(self) -> CacheStatistics:
        """Say how full the cache is."""
        return CacheStatistics(
            datasets=len(self._held),
            bytes_held=self._bytes_held(),
            bytes_fetched=self._fetched,
            evicted=self._evicted,
            leases=len(self._leases),
        )

    def by_type(self) -> list[TypeHeld]:
        """Say what the cache holds, by dataset type."""
        return held_by_type(self._held.values(), self._leased(), self._pinned)

    def evict(self, types: Collection[str]) -> tuple[int, int]:
        """Drop what nobody has leased of some dataset types; return how many, and their bytes."""
        leased = self._leased()
        chosen = [
            h for h in self._held.values() if h.ref.datasetType.name in types and h.ref.id not in leased
        ]
        if chosen:
            self._drop([h.ref for h in chosen])
            self._evicted += len(chosen)
        return len(chosen), sum(h.size for h in chosen)

    def pin(self, types: Iterable[str]) -> None:
        """Never evict what is of some dataset types, as long as this supervisor lives.

        Raises
        ------
        ppd.errors.PpdError
            Raised if there is no such type, or too little room would be left
            for all else; then nothing has changed.
        """
        pinned = {*self._pinned, *types}
        for name in pinned:
            try:
                self.butler.get_dataset_type(name)
            except MissingDatasetTypeError:
                raise PpdError(f"No pipeline has a dataset type {name!r}.") from None
        size = sum(h.size for h in self._held.values() if h.ref.datasetType.name in pinned)
        room = int(PINNED_SHARE * self.max_bytes)
        if size > room:
            raise PpdError(
                f"Pinned types would have {size / 1e6:.1f} MB, and may have {room / 1e6:.1f} MB:"
                " half of cache_bytes, so that visits find room."
            )
        self._pinned = pinned

    def unpin(self, dataset_type: str) -> bool:
        """Let what is of a dataset type go again; return whether it was pinned."""
        was_pinned = dataset_type in self._pinned
        self._pinned.discard(dataset_type)
        return was_pinned

    def _leased(self) -> frozenset[uuid.UUID]:
        return frozenset().union(*self._leases.values())

    def _bytes_held(self) -> int:
        return sum(h.size for h in self._held.values())

    def _copy_in(
        self, central: Butler, refs: list[DatasetRef], keep: Collection[uuid.UUID], evict: bool
    ) -> tuple[dict[uuid.UUID, int], dict[uuid.UUID, FetchFailure]]:
        while True:
            try:
                return copy_in(self.butler, self.root, central, refs)
            except SharedMemoryError:
                # The limit may be more than the file system has.
                half = self._bytes_held() // 2
                # A visit that can't be processed is worse than a type that is fetched again.
                if not evict or not (self._evict(half, keep) or self._evict(half, keep, pins=False)):
                    raise

    def _drop(self, refs: list[DatasetRef]) -> None:
        gone = {ref.id for ref in refs}
        self._tagged = {key: i for key, i in self._tagged.items() if i not in gone}
        for ref in refs:
            del self._held[ref.id]
            self._certified.get((ref.datasetType.name, ref.dataId), {}).pop(ref.id, None)
        self._changed = True
        with full_is_an_error(self.place):
            self.butler.pruneDatasets(refs, disassociate=True, unstore=True, purge=True)

    def _evict(self, limit: int, keep: Collection[uuid.UUID], pins: bool = True) -> bool:
        """Evict the least recently used until ``limit`` bytes are held."""
        victims = choose_victims(
            self._held.values(),
            self._leased().union(keep),
            limit,
            self._pinned if pins else (),
            int(PINNED_SHARE * self.max_bytes),
        )
        if victims:
            self._drop([h.ref for h in victims])
            self._evicted += len(victims)
            _LOG.info(
                "Evicted %d datasets from the cache; %d bytes are held.", len(victims), self._bytes_held()
            )
        return bool(victims)
