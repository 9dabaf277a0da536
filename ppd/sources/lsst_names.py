"""Raws of LSST cameras: their path has no group, which a file beside them has, sooner or later."""

from __future__ import annotations

__all__ = ["LsstNames"]

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from .keys import LsstKey, RawKey
from .raws import Candidate
from .sidecar import RawIdentity, read_header, read_sidecar, sidecar_path

# How long a raw waits for the file that has its group.
_SIDECAR_SECONDS = 2.0
_MAX_GIVEN_UP = 1000


class LsstNames:
    """Finds the group of raws, and remembers those that are still without.

    Parameters
    ----------
    detectors : `~collections.abc.Mapping` [ `str`, `int` ]
        Detector by full name.

    Notes
    -----
    The sidecar may come a little later than the raw; where none comes, the
    raw's own header is read.
    """

    def __init__(self, detectors: Mapping[str, int]):
        self._detectors = detectors
        self._lock = threading.Lock()
        self._waiting: dict[str, float] = {}
        self._given_up: dict[str, None] = {}

    def knows(self, key: LsstKey) -> bool:
        """Whether a detector is one that is processed: wavefront and guide sensors come too."""
        return key.detector in self._detectors

    @property
    def waiting(self) -> list[str]:
        """Raws that wait for their sidecar."""
        with self._lock:
            return list(self._waiting)

    def without(self, sidecar: Path) -> list[str]:
        """Return the raws that were without this sidecar, however long ago."""
        with self._lock:
            return [p for p in (*self._waiting, *self._given_up) if sidecar_path(Path(p)) == sidecar]

    def forget(self, path: str) -> None:
        """Wait no more for the sidecar of a raw."""
        with self._lock:
            self._waiting.pop(path, None)

    def name(self, candidate: Candidate, key: LsstKey) -> Candidate | None:
        """Give a raw the key that its path has only a part of.

        Parameters
        ----------
        candidate : `ppd.sources.raws.Candidate`
            The raw.
        key : `ppd.sources.keys.LsstKey`
            What its path says.

        Returns
        -------
        named : `ppd.sources.raws.Candidate` or `None`
            With its key, or with the reason why it has none; `None`: its
            sidecar may come yet, ask again.
        """
        path = candidate.uri
        identity = read_sidecar(Path(path))
        if identity is None:
            with self._lock:
                since = self._waiting.setdefault(path, time.monotonic())
            if time.monotonic() < since + _SIDECAR_SECONDS:
                return None
            identity = read_header(Path(path))
        self._settle(path, identity)
        if identity is None:
            fault = "neither a file beside it nor its header has its group (GROUPID)"
            return dataclasses.replace(candidate, fault=fault)
        whole = RawKey(
            instrument=key.instrument,
            group=identity.group,
            detector=self._detectors[key.detector],
            snap=identity.snap,
            exposure=key.exposure,
            physical_filter=key.physical_filter,
        )
        return dataclasses.replace(candidate, key=whole)

    def _settle(self, path: str, identity: RawIdentity | None) -> None:
        with self._lock:
            self._waiting.pop(path, None)
            self._given_up.pop(path, None)
            if identity is None:
                self._given_up[path] = None
                while len(self._given_up) > _MAX_GIVEN_UP:
                    del self._given_up[next(iter(self._given_up))]
