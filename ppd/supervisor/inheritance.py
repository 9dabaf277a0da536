"""Which inputs the nursery reads into memory, for all children to inherit."""

from __future__ import annotations

__all__ = ["Inheritance"]

import collections
import logging
import uuid

from ..cache.repo import CacheRepo
from ..messages import CacheView, PrepareNursery
from .resolve import Resolution

_LOG = logging.getLogger(__name__)


class Inheritance:
    """What the nursery was asked to read, and what it should read next.

    Parameters
    ----------
    cache : `ppd.cache.repo.CacheRepo`
        The cache, whose registry and files the nursery reads.
    max_bytes : `int`
        Bytes of files to be read at most; 0: nothing is inherited.
    """

    def __init__(self, cache: CacheRepo, max_bytes: int):
        self._cache = cache
        self.max_bytes = max_bytes
        self._count = 0
        self._asked: frozenset[uuid.UUID] | None = None
        self._known: frozenset[uuid.UUID] = frozenset()

    def first(self) -> PrepareNursery:
        """Say that the nursery should open a repo, and read nothing yet."""
        return self._ask(frozenset())

    def again(self) -> PrepareNursery:
        """Say that the nursery should open the registry as it is now, and read what it has read."""
        return self._ask(self._asked or frozenset())

    def plan(self, resolution: Resolution) -> PrepareNursery | None:
        """Say what the nursery should read, if that is news.

        Parameters
        ----------
        resolution : `ppd.supervisor.resolve.Resolution`
            The inputs that all detectors use wherever the telescope points.

        Returns
        -------
        prepare : `ppd.messages.PrepareNursery` or `None`
            The request.  The cache keeps what it names until
            ``prepare.holder`` releases it.
        """
        self._known = _inheritable(resolution)
        chosen = frozenset(self._choose(resolution))
        return None if chosen == self._asked else self._ask(chosen)

    def outdated(self, resolution: Resolution) -> bool:
        """Whether a visit uses what was not there when the last plan was made."""
        return self.max_bytes > 0 and not _inheritable(resolution) <= self._known

    def _ask(self, chosen: frozenset[uuid.UUID]) -> PrepareNursery:
        self._asked = chosen
        self._count += 1
        holder = f"nursery#{self._count}"
        view = CacheView(
            snapshot=str(self._cache.lease(holder, chosen)),
            config=str(self._cache.child_config),
            collections=(),
        )
        return PrepareNursery(
            view=view, datasets=tuple(sorted(map(str, chosen))), max_bytes=self.max_bytes, holder=holder
        )

    def _choose(self, resolution: Resolution) -> list[uuid.UUID]:
        """What the most detectors use comes first, and of that the smallest."""
        users = collections.Counter(i for d in resolution.detectors.values() for i in d.ids)
        candidates = []
        for i in _inheritable(resolution):
            size = self._cache.size(i)
            if size is not None and users[i]:
                candidates.append((-users[i], size, i))
        chosen, total = [], 0
        for _, size, i in sorted(candidates):
            if total + size <= self.max_bytes:
                chosen.append(i)
                total += size
        return chosen


def _inheritable(resolution: Resolution) -> frozenset[uuid.UUID]:
    """What does not change with the filter: or each change would be read again."""
    return frozenset(
        i for i in resolution.lasting if "band" not in resolution.refs[i].datasetType.dimensions.names
    )
