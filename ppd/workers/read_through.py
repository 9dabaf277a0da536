"""The child's Butler as tasks see it: what was inherited is not read again."""

from __future__ import annotations

__all__ = ["ReadThroughButler"]

import os
from collections.abc import Iterable
from typing import Any

from lsst.daf.butler import Butler, DatasetProvenance, DatasetRef, StorageClass
from lsst.pipe.base.caching_limited_butler import CachingLimitedButler

from .containment import leave_if_copied
from .inherited import Inherited


class ReadThroughButler(CachingLimitedButler):
    """Serves inherited datasets from memory and all others from the repo.

    Parameters
    ----------
    wrapped : `lsst.daf.butler.Butler`
        The child's Butler.
    inherited : `ppd.workers.inherited.Inherited`
        What was read before the fork.

    Notes
    -----
    Whoever asks gets a copy: a task may change what it gets, as it may what
    it reads, and the next one that asks gets it unchanged.
    """

    def __init__(self, wrapped: Butler, inherited: Inherited):
        super().__init__(wrapped)
        self._inherited = inherited
        self._pid = os.getpid()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self.served = 0
        """How many datasets came from memory."""

    def get(
        self,
        ref: DatasetRef,
        /,
        *,
        parameters: dict[str, Any] | None = None,
        storageClass: StorageClass | str | None = None,
    ) -> Any:
        """Get a dataset; see `lsst.daf.butler.LimitedButler.get`."""
        handle = self._inherited.handle(ref)
        if handle is None:
            return super().get(ref, parameters=parameters, storageClass=storageClass)
        self.served += 1
        return handle.get(
            component=ref.datasetType.component(),
            parameters=parameters,
            storageClass=storageClass or ref.datasetType.storageClass,
        )

    def put(self, obj: Any, ref: DatasetRef, /, *, provenance: DatasetProvenance | None = None) -> DatasetRef:
        """Put a dataset; see `lsst.daf.butler.LimitedButler.put`."""
        # A task's copy of this process would put it twice.
        leave_if_copied(self._pid)
        # Nor should the task's umask keep the exporter from reading it.
        os.umask(self._umask)
        return super().put(obj, ref, provenance=provenance)

    def stored_many(self, refs: Iterable[DatasetRef]) -> dict[DatasetRef, bool]:
        """Say whether datasets are stored; the inherited ones are."""
        refs = list(refs)
        known = {ref: True for ref in refs if self._inherited.handle(ref) is not None}
        return known | super().stored_many(ref for ref in refs if ref not in known)
