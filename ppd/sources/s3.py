"""Raws that come into an S3 bucket, by listing, and by the presence service where there is one.

Asked is only for what is wanted: often from when the exposure is expected to
begin, less and less often the longer it does not come.  A presence service
that works is asked instead, and the listing is a safeguard.
"""

from __future__ import annotations

__all__ = ["S3Source"]

import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from ..deployment import day_obs
from ..s3 import explain, make_client
from .keys import LsstKey, RawKey, parse_lsst_path, parse_raw_path
from .polling import Look, Poller, Trouble
from .presence import PresenceError, PresenceService
from .raws import Candidate, SourceStatus, Wanted
from .s3_layouts import (
    CheckLook,
    DayLook,
    DetectorLook,
    FolderLook,
    HeadLook,
    QuestionLook,
    S3Bucket,
    S3Object,
)
from .sidecar import RawIdentity

_LOG = logging.getLogger(__name__)

_BY_DAY = {
    "LATISS": ("LATISS",),
    "LSSTCam": ("LSSTCam",),
    "LSSTCam-imSim": ("LSSTCam-imSim",),
    "LSSTComCam": ("LSSTComCam", "ComCam"),
    "LSSTComCamSim": ("LSSTComCamSim",),
    "LSST-TS8": ("LSST-TS8", "TS8"),
}
# An exposure may begin earlier or later than was announced: near the boundary
# of two days, both are looked at.
_DAY_MARGIN = 1800.0
# Part of the time that an exposure has taken already until the next look.
_PATIENCE = 1 / 40
# With a presence service, listing is for what it has missed.
_SAFEGUARD_SECONDS = 30.0
_RENEW_SECONDS = 5.0
# Looks per second for all detectors that have to be looked for one by one.
_RATE = 100.0
_CONNECT_SECONDS = 3.0
_READ_SECONDS = 10.0
_SOME_ONLY = ("absent", "changed", "denied", "other")
# How much older than the source an exposure without group may be to be told of.
_NAMELESS_SECONDS = 60.0


@dataclasses.dataclass
class _Asked:
    """What is wanted, and what was reported of it."""

    wanted: Wanted
    reported: dict[str, str] = dataclasses.field(default_factory=dict)
    """ETag by URI."""
    snaps: set[int] = dataclasses.field(default_factory=set)
    looks: list[Look] = dataclasses.field(default_factory=list)
    """Those that are for nobody else."""

    @property
    def complete(self) -> bool:
        """Whether there is nothing more to come."""
        return 0 < self.wanted.snaps <= len(self.snaps)


class S3Source:
    """The raws in one bucket.

    Parameters
    ----------
    bucket : `str`
        Its name.
    report : callable
        Called with each `Candidate`, from the source's threads.
    instrument : `str`
        Instrument that is observed with.
    detectors : `~collections.abc.Mapping` [ `str`, `int` ]
        Detector by full name.
    prefix : `str`, optional
        What the keys begin with, before the instrument.
    endpoint : `str`, optional
        URL of the S3 service; AWS when absent.
    presence : `PresenceService`, optional
        Whom to ask first.
    poll : `tuple` [ `float`, `float` ], optional
        The least and the most seconds between two looks for the same raw.
    workers : `int`, optional
        How many requests at once.
    """

    def __init__(
        self,
        bucket: str,
        report: Callable[[Candidate], None],
        instrument: str,
        detectors: Mapping[str, int],
        *,
        prefix: str = "",
        endpoint: str | None = None,
        presence: PresenceService | None = None,
        poll: tuple[float, float] = (0.5, 5.0),
        workers: int = 8,
    ):
        self._report = report
        self._detectors = detectors
        self._prefix = prefix
        self._poll = poll
        self._started = time.time()
        self._lock = threading.RLock()
        self._asked: dict[tuple[str, int], _Asked] = {}
        self._days: dict[str, DayLook] = {}
        self._folders: dict[str, FolderLook] = {}
        self._hurried: tuple[str, float] | None = None
        self._told: set[str] = set()
        client = functools.partial(
            make_client, endpoint, connect=_CONNECT_SECONDS, read=_READ_SECONDS, connections=workers
        )
        self._bucket = S3Bucket(bucket, client)
        self._name = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        self._lister = Poller(f"Raws from {self._name}", workers, poll[1], self._explain)
        self._lister.add(CheckLook(self._bucket, f"{prefix}{instrument}/"))
        self._presence = presence
        self._questions: Poller | None = None
        if presence is not None:
            self._questions = Poller(
                f"Presence service {presence.url}", 4, 4 * poll[1], _explain_presence, self._lister.hurry
            )

    def start(self) -> None:
        """Begin to look."""
        self._lister.start()
        if self._questions is not None:
            self._questions.start()

    def stop(self) -> None:
        """End the threads; bounded."""
        self._lister.stop()
        if self._questions is not None:
            self._questions.stop()
        if self._presence is not None:
            self._presence.close()

    def expect(self, wanted: Wanted) -> None:
        """Look for the raws of a detector-visit from now on."""
        with self._lock:
            known = self._asked.get(wanted.where)
            if known is not None:
                known.wanted = wanted
                self._lister.hurry(known.looks)
                return
            asked = self._asked[wanted.where] = _Asked(wanted)
            names = _BY_DAY.get(wanted.instrument)
            if names is None:
                look = DetectorLook(self._bucket, self._prefix, wanted, self._found, self._detector_pace)
                asked.looks.append(look)
                self._lister.add(look)
            elif self._hurried != (wanted.group, wanted.begin):
                self._hurried = wanted.group, wanted.begin  # for all its detectors
                self._expect_by_day(wanted, names)
            if self._questions is not None and self._presence is not None:
                question = QuestionLook(
                    self._presence, wanted, self._snaps, self._present, self._question_pace
                )
                asked.looks.append(question)
                self._questions.add(question)

    def dismiss(self, group: str, detector: int) -> None:
        """Look no more for them."""
        with self._lock:
            asked = self._asked.pop((group, detector), None)
            self._hurried = None
            for look in asked.looks if asked is not None else ():
                self._lister.remove(look)
                if self._questions is not None:
                    self._questions.remove(look)

    def status(self) -> SourceStatus:
        """Tell how the source is."""
        troubles = [self._lister.trouble] if self._lister.trouble else []
        if self._questions is not None and self._questions.trouble:
            troubles.append(f"presence service: {self._questions.trouble}; it is listed instead")
        return SourceStatus(self._name, "; ".join(troubles) or None)

    # The layouts

    def _expect_by_day(self, wanted: Wanted, names: tuple[str, ...]) -> None:
        self._forget_days()
        for name in names:
            for day in _days(wanted.begin):
                path = f"{self._prefix}{name}/{day}/"
                if path not in self._days:
                    look = DayLook(
                        self._bucket, path, self._new_folder, functools.partial(self._day_pace, day)
                    )
                    self._days[path] = look
                    self._lister.add(look)
        self._lister.hurry(self._days.values())
        self._lister.hurry(
            f for f in self._folders.values() if f.identity is None or f.identity.group == wanted.group
        )

    def _forget_days(self) -> None:
        wanted = {day for a in self._asked.values() for day in _days(a.wanted.begin)}
        for path in [p for p in self._days if int(p.rstrip("/").rpartition("/")[2]) not in wanted]:
            self._lister.remove(self._days.pop(path))
            for folder in [f for f in self._folders if f.startswith(path)]:
                self._lister.remove(self._folders.pop(folder))

    def _new_folder(self, path: str, delay: float) -> None:
        with self._lock:
            if path not in self._folders:
                look = FolderLook(self._bucket, path, self._found_by_name, self._nameless, self._group_pace)
                self._folders[path] = look
                self._lister.add(look, delay)

    def _snaps(self, wanted: Wanted) -> list[int]:
        """Say which snaps to ask for: all that are missing, or the next one."""
        with self._lock:
            asked = self._asked.get(wanted.where)
            if asked is None:
                return []
            if wanted.snaps == 0:
                return [max(asked.snaps, default=-1) + 1]
            return [snap for snap in range(wanted.snaps) if snap not in asked.snaps]

    def _present(self, wanted: Wanted, snap: int, name: str) -> None:
        key = RawKey(wanted.instrument, wanted.group, wanted.detector, snap)
        path = PurePosixPath(name)
        says = parse_raw_path(path) or parse_lsst_path(path)
        if says is not None:
            key = dataclasses.replace(key, exposure=says.exposure, physical_filter=says.physical_filter)
        with self._lock:
            asked = self._asked.get(wanted.where)
            if asked is None or any(isinstance(x, HeadLook) and x.name == name for x in asked.looks):
                return
            look = HeadLook(self._bucket, key, name, self._found, functools.partial(self._seen, asked))
            asked.looks.append(look)
            self._lister.add(look)

    def _seen(self, asked: _Asked, look: HeadLook) -> None:
        with self._lock:
            asked.looks.remove(look)
            self._lister.remove(look)

    # What was found

    def _found_by_name(self, key: LsstKey, identity: RawIdentity, item: S3Object) -> None:
        detector = self._detectors.get(key.detector)
        if detector is not None:
            self._found(
                RawKey(
                    instrument=key.instrument,
                    group=identity.group,
                    detector=detector,
                    snap=identity.snap,
                    exposure=key.exposure,
                    physical_filter=key.physical_filter,
                ),
                item,
            )

    def _found(self, key: RawKey, item: S3Object) -> None:
        uri = f"s3://{self._bucket.name}/{item.key}"
        with self._lock:
            asked = self._asked.get((key.group, key.detector))
            if asked is None or key.instrument != asked.wanted.instrument:
                return
            if asked.reported.get(uri) == item.etag:
                return
            asked.reported[uri] = item.etag
            asked.snaps.add(key.snap)
        self._report(Candidate(uri, key, item.size, item.etag, time.time()))

    def _nameless(self, item: S3Object) -> None:
        """Tell of an exposure whose group is nowhere, once; not of what was there long before."""
        uri = f"s3://{self._bucket.name}/{item.key}"
        if item.modified.timestamp() < self._started - _NAMELESS_SECONDS:
            return
        with self._lock:
            first = self._asked and uri not in self._told
            self._told.add(uri)
        if first:
            fault = "neither a file beside it nor its header has its group (GROUPID)"
            self._report(Candidate(uri, None, item.size, item.etag, time.time(), fault))

    # When

    def _interval(self, wanted: Wanted) -> float | None:
        """Seconds until a raw is to be looked for again."""
        asked, now = self._asked.get(wanted.where), time.time()
        if asked is None:
            return None
        wanted = asked.wanted
        if now > wanted.until:
            return None
        least, most = self._poll
        if asked.complete:
            return most
        if now < wanted.begin:
            return max(least, min(most, wanted.begin - now))
        return max(least, min(most, (now - wanted.begin) * _PATIENCE))

    def _interval_of_many(self, wanted: Wanted) -> float | None:
        interval = self._interval(wanted)
        return None if interval is None else max(interval, len(self._asked) / _RATE)

    def _detector_pace(self, wanted: Wanted) -> float | None:
        return self._seldom(self._interval_of_many(wanted))

    def _seldom(self, interval: float | None) -> float | None:
        """Lengthen the time to the next listing while the presence service does its work."""
        if interval is not None and self._questions is not None and self._questions.trouble is None:
            return max(interval, _SAFEGUARD_SECONDS)
        return interval

    def _question_pace(self, wanted: Wanted) -> float | None:
        asked = self._asked.get(wanted.where)
        return None if asked is None or asked.complete else self._interval_of_many(wanted)

    def _group_pace(self, group: str | None) -> float | None:
        with self._lock:
            return self._least([a.wanted for (g, _), a in self._asked.items() if group in (None, g)])

    def _day_pace(self, day: int) -> float | None:
        with self._lock:
            return self._least(
                [a.wanted for a in self._asked.values() if not a.complete and day in _days(a.wanted.begin)]
            )

    def _least(self, wanted: list[Wanted]) -> float | None:
        found = min((p for w in wanted if (p := self._interval(w)) is not None), default=math.inf)
        return self._seldom(None if found == math.inf else found)

    def _explain(self, error: Exception) -> Trouble | None:
        fault = explain(error)
        if fault is None:
            return None
        if fault.kind in ("credentials", "denied"):
            # Somebody may have put better ones there.
            self._bucket.forget_client(_RENEW_SECONDS if fault.kind == "denied" else 0.0)
        return Trouble(fault.text, everywhere=fault.kind not in _SOME_ONLY)


@functools.lru_cache(maxsize=256)
def _days(begin: float) -> frozenset[int]:
    """Return the days in which the exposure may be taken."""
    return frozenset(day_obs(begin + offset) for offset in (-_DAY_MARGIN, 0.0, _DAY_MARGIN))


def _explain_presence(error: Exception) -> Trouble | None:
    return Trouble(str(error), everywhere=True) if isinstance(error, PresenceError) else None
