"""Raws that have been seen, and the detector-visits they belong to."""

from __future__ import annotations

__all__ = ["RawTable"]

import collections
import logging
import time
from collections.abc import Collection

from ..sources.raws import Candidate

_LOG = logging.getLogger(__name__)


class RawTable:
    """Keeps candidates by group and detector, for a bounded time and count.

    Parameters
    ----------
    keep_seconds : `float`
        How long a raw of an unknown group is kept.
    keep_count : `int`
        How many raws are kept at most.
    """

    def __init__(self, keep_seconds: float, keep_count: int):
        self.keep(keep_seconds, keep_count)
        self._raws: dict[tuple[str, int], list[Candidate]] = {}
        self._waiting: collections.OrderedDict[str, tuple[float, Candidate]] = collections.OrderedDict()
        self._seen: collections.OrderedDict[str, Candidate] = collections.OrderedDict()
        # Where each exposure of a detector was seen first: a directory or a bucket.
        self._places: collections.OrderedDict[tuple[str, int, int, int], str] = collections.OrderedDict()

    def keep(self, seconds: float, count: int) -> None:
        """Set how long and how many are kept."""
        self._keep_seconds, self._keep_count = seconds, count

    def add(self, candidate: Candidate, known: bool) -> bool:
        """Take a candidate.

        Parameters
        ----------
        candidate : `ppd.sources.raws.Candidate`
            A raw whose path has a known layout.
        known : `bool`
            Whether its detector-visit has been accepted.

        Returns
        -------
        new : `bool`
            `False` if the very same file was seen before.
        """
        assert candidate.key is not None
        path = candidate.uri
        if not self.remember(candidate):
            return False
        where = (candidate.key.group, candidate.key.detector)
        # A file that grew since replaces what was reported of it.
        others = [c for c in self._raws.get(where, []) if c.uri != candidate.uri]
        self._raws[where] = [*others, candidate]
        self._waiting.pop(path, None)
        if not known:
            self._waiting[path] = (time.monotonic(), candidate)
        self.is_copy(candidate)
        return True

    def remember(self, candidate: Candidate) -> bool:
        """Take note of a raw that nobody waits for now; `False`: the very same was seen before."""
        seen = self._seen.get(candidate.uri)
        if seen is not None and (seen.size, seen.stamp) == (candidate.size, candidate.stamp):
            return False
        self._seen.pop(candidate.uri, None)  # to the end of the order
        self._seen[candidate.uri] = candidate
        while len(self._seen) > 2 * self._keep_count:
            self._seen.popitem(last=False)
        return True

    def recall(self, group: str, detectors: Collection[int]) -> None:
        """Have those again that were seen of detector-visits which were over, and are to be tried again."""
        for candidate in self._seen.values():
            key = candidate.key
            if key is None or key.group != group or key.detector not in detectors:
                continue
            own = self._raws.setdefault((group, key.detector), [])
            if all(c.uri != candidate.uri for c in own):
                own.append(candidate)

    def is_copy(self, candidate: Candidate) -> bool:
        """Whether an exposure was seen in another place first: in a bucket, or in a directory."""
        key = candidate.key
        if key is None or key.exposure is None:
            return False
        place = _place(candidate.uri)
        first = self._places.setdefault((key.group, key.detector, key.snap, key.exposure), place)
        while len(self._places) > 2 * self._keep_count:
            self._places.popitem(last=False)
        return first != place

    def of(self, group: str, detector: int) -> list[Candidate]:
        """Return the raws of a detector-visit, and count them as matched."""
        found = self._raws.get((group, detector), [])
        for candidate in found:
            self._waiting.pop(candidate.uri, None)
        return found

    def forget(self, group: str, detector: int) -> None:
        """Drop the raws of a detector-visit that is over."""
        for candidate in self._raws.pop((group, detector), []):
            self._waiting.pop(candidate.uri, None)

    def expire(self) -> list[Candidate]:
        """Give up raws that matched nothing for too long, or are too many."""
        now = time.monotonic()
        expired = []
        while self._waiting:
            path, (since, candidate) = next(iter(self._waiting.items()))
            if now - since < self._keep_seconds and len(self._waiting) <= self._keep_count:
                break
            del self._waiting[path]
            assert candidate.key is not None
            where = (candidate.key.group, candidate.key.detector)
            others = [c for c in self._raws.get(where, []) if c.uri != candidate.uri]
            if others:
                self._raws[where] = others
            else:
                self._raws.pop(where, None)
            expired.append(candidate)
        return expired

    @property
    def unmatched(self) -> int:
        """How many raws wait for their visit."""
        return len(self._waiting)


def _place(uri: str) -> str:
    """Return which bucket a raw is in; all directories are one place."""
    return uri[: uri.find("/", 5)] if uri.startswith("s3://") else ""
