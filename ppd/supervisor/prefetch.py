"""Fetching ahead: inputs of visits that have not been announced yet."""

from __future__ import annotations

__all__ = ["Prefetcher"]

import collections
import logging
import math
import uuid
from collections.abc import Iterable

import numpy as np
from lsst.daf.butler import DatasetRef
from lsst.sphgeom import ConvexPolygon, UnitVector3d

from ..cache.repo import CacheRepo
from ..errors import PpdError
from ..focalplane import FocalPlane
from ..messages import Pointing
from .gather import Gatherer
from .resolve import Resolution

_LOG = logging.getLogger(__name__)

# A visit that is announced waits for the step at hand: it is small.
_STEP = 8
# What is fetched on suspicion may not push out what was fetched for a visit.
_FULL = 0.9
_VERTICES = 24


class Prefetcher:
    """Pointings whose inputs are to be fetched, and how far that is.

    Parameters
    ----------
    gatherer : `ppd.supervisor.gather.Gatherer`
        Finds inputs and fetches them.
    cache : `ppd.cache.repo.CacheRepo`
        The cache.
    focal_plane : `ppd.focalplane.FocalPlane`
        Geometry of the instrument.
    padding : `float`
        Padding of detectors, arcsec.
    max_pointings : `int`, optional
        How many pointings may wait; the oldest go first.
    """

    def __init__(
        self,
        gatherer: Gatherer,
        cache: CacheRepo,
        focal_plane: FocalPlane,
        padding: float,
        max_pointings: int = 1000,
    ):
        self._gatherer = gatherer
        self._cache = cache
        self._focal_plane = focal_plane
        self.padding = padding
        self._pointings: collections.deque[Pointing] = collections.deque(maxlen=max_pointings)
        self._resolution: Resolution | None = None
        self._refs: list[DatasetRef] = []
        self._failed: dict[uuid.UUID, str] = {}
        self.fetched = 0
        """Datasets fetched ahead so far."""

    @property
    def busy(self) -> bool:
        """Whether there is something to fetch."""
        return bool(self._pointings or self._resolution)

    @property
    def waiting(self) -> int:
        """Pointings that are not done."""
        return len(self._pointings) + (self._resolution is not None)

    def add(self, pointings: Iterable[Pointing]) -> None:
        """Have the inputs of pointings fetched."""
        for pointing in pointings:
            if pointing not in self._pointings:
                self._pointings.append(pointing)

    def step(self) -> Resolution | None:
        """Do a little: ask central once, or fetch a few datasets.

        Returns
        -------
        resolution : `ppd.supervisor.resolve.Resolution` or `None`
            What was found for a pointing, when all of it is in the cache.
        """
        try:
            return self._step()
        except (PpdError, ValueError) as e:
            # Nobody waits for it: the visit, when it comes, tries itself.
            _LOG.warning("Inputs can't be fetched ahead: %s", e)
            self._resolution, self._refs = None, []
            self._pointings.clear()
        return None

    def _step(self) -> Resolution | None:
        if self._resolution is None:
            self._begin(self._pointings.popleft())
            return None
        part, self._refs = self._refs[:_STEP], self._refs[_STEP:]
        full = self._cache.statistics().bytes_held > _FULL * self._cache.max_bytes
        if part and not full:
            count, failed = self._gatherer.fetch(part, self._resolution.lasting, evict=False)
            self.fetched += count
            for i, fault in failed.items():
                self._failed[i] = fault.reason
                _LOG.warning("%s can't be fetched ahead: %s", self._resolution.refs[i], fault.reason)
            return None
        if part:
            _LOG.warning("The cache is nearly full: %d datasets are not fetched ahead.", len(part))
        resolution, self._resolution, self._refs = self._resolution, None, []
        self._gatherer.mirror(resolution)
        return resolution

    def _begin(self, pointing: Pointing) -> None:
        regions = {}
        if pointing.ra is not None and pointing.dec is not None:
            disc = _disc(self._focal_plane, pointing.ra, pointing.dec, self.padding)
            # Whose it is does not matter here, only that it is needed.
            regions = {self._focal_plane.detectors[0].id: disc}
        self._resolution = self._gatherer.overlapping(regions, pointing.physical_filter)
        lacking = self._cache.lacks(self._resolution.refs.values())
        self._refs = [ref for ref in lacking if ref.id not in self._failed]


def _disc(plane: FocalPlane, ra: float, dec: float, padding: float) -> ConvexPolygon:
    """A polygon around the focal plane at any rotation."""
    pad = padding / plane.scale
    corners = [
        math.hypot(abs(x) + pad, abs(y) + pad)
        for d in plane.detectors
        for x in (d.x_min, d.x_max)
        for y in (d.y_min, d.y_max)
    ]
    # Its edges, not its vertices, have to be outside; distortion bends them.
    radius = 1.01 * max(corners) / math.cos(math.pi / _VERTICES)
    angles = np.arange(_VERTICES) * (2 * math.pi / _VERTICES)
    vectors = plane.to_vectors(radius * np.cos(angles), radius * np.sin(angles), ra, dec, 0.0)
    return ConvexPolygon.convexHull([UnitVector3d(*v) for v in vectors])
