"""Where the raws of what is wanted are in a bucket: one kind of look for each layout."""

from __future__ import annotations

__all__ = ["CheckLook", "DayLook", "DetectorLook", "FolderLook", "HeadLook", "QuestionLook", "S3Bucket"]

import datetime
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from .keys import LsstKey, RawKey, parse_lsst_path, parse_raw_path
from .presence import PresenceService
from .raws import Wanted
from .sidecar import RawIdentity, parse_header, parse_sidecar

_LOG = logging.getLogger(__name__)

_MAX_PAGES = 1000
_SIDECAR_BYTES = 4 << 20
_HEADER_BYTES = 512 << 10
# How long an exposure waits for the file that has its group.
_SIDECAR_SECONDS = 2.0
_SIDECAR_INTERVAL = 0.2
_MAX_NAMELESS_INTERVAL = 30.0
# Exposures are not written in the order of their numbers.
_MARGIN = 20
_FULL_SECONDS = 30.0
_CHECK_SECONDS = 60.0
# Exposures of hours ago, at a late start, come after what is wanted now.
_STAGGER_SECONDS = 0.02
_NUMBERED = re.compile(r"(?P<family>.*?)(?P<number>[0-9]{1,18})\Z")


class S3Object(NamedTuple):
    """One object, as a listing has it."""

    key: str
    etag: str
    size: int
    modified: datetime.datetime


class S3Bucket:
    """A bucket, or what is below a prefix of it, and a client that is made anew when need be.

    Parameters
    ----------
    name : `str`
        The bucket.
    make_client : callable
        Makes a client; called again when `forget_client` was.
    """

    def __init__(self, name: str, make_client: Callable[[], Any]):
        self.name = name
        self._make_client = make_client
        self._client: Any = None
        self._made = 0.0

    def forget_client(self, age: float) -> None:
        """Make the next request with a new client, which looks for credentials anew, if it has an age."""
        if time.monotonic() >= self._made + age:
            self._client = None

    def client(self) -> Any:
        """Return the client."""
        # Two threads may each make one: the second is kept.
        client = self._client
        if client is None:
            client = self._client = self._make_client()
            self._made = time.monotonic()
        return client

    def objects(self, prefix: str) -> Iterator[S3Object]:
        """List the objects below a prefix."""
        for page in self._pages(Prefix=prefix):
            for item in page.get("Contents", ()):
                etag = item.get("ETag", "").strip('"')
                yield S3Object(item["Key"], etag, item["Size"], item["LastModified"])

    def folders(self, prefix: str, start: str, after: str = "") -> Iterator[str]:
        """List the names of folders in a folder that begin with something, after one of them."""
        more = {"StartAfter": prefix + after} if after else {}
        for page in self._pages(Prefix=prefix + start, Delimiter="/", **more):
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"].removeprefix(prefix).rstrip("/")

    def read(self, key: str, size: int) -> bytes:
        """Read the beginning of an object."""
        answer = self.client().get_object(Bucket=self.name, Key=key, Range=f"bytes=0-{size - 1}")
        with answer["Body"] as body:
            return body.read(size)

    def head(self, key: str) -> S3Object:
        """Look at one object."""
        answer = self.client().head_object(Bucket=self.name, Key=key)
        return S3Object(
            key, answer.get("ETag", "").strip('"'), answer["ContentLength"], answer["LastModified"]
        )

    def check(self, prefix: str) -> None:
        """See whether it may be listed."""
        self.client().list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=1)

    def _pages(self, **request: Any) -> Iterator[Any]:
        token: dict[str, str] = {}
        for _ in range(_MAX_PAGES):
            page = self.client().list_objects_v2(Bucket=self.name, **request, **token)
            yield page
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not following or following == token.get("ContinuationToken"):
                return
            token = {"ContinuationToken": following}
        _LOG.error("The listing of %s/%s has no end.", self.name, request["Prefix"])


class CheckLook:
    """Whether the bucket is there: seen also while nothing is wanted."""

    def __init__(self, bucket: S3Bucket, prefix: str):
        self._bucket = bucket
        self._prefix = prefix

    def look(self) -> None:
        """List one object."""
        self._bucket.check(self._prefix)

    def interval(self) -> float | None:
        """Seldom."""
        return _CHECK_SECONDS


class DetectorLook:
    """The generic layout, where each detector-visit has a prefix.

    Parameters
    ----------
    bucket : `S3Bucket`
        Where to look.
    prefix : `str`
        What comes before the instrument.
    wanted : `Wanted`
        What is looked for.
    found : callable
        Takes what a key says, and the object.
    pace : callable
        Gives the seconds until the next look.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        prefix: str,
        wanted: Wanted,
        found: Callable[[RawKey, S3Object], None],
        pace: Callable[[Wanted], float | None],
    ):
        self._bucket = bucket
        self._prefix = prefix
        self._wanted = wanted
        self._found = found
        self._pace = pace

    def look(self) -> None:
        """List the snaps."""
        w = self._wanted
        # All its snaps together: it may not be known how many there are.
        for item in self._bucket.objects(f"{self._prefix}{w.instrument}/{w.detector}/{w.group}/"):
            key = parse_raw_path(PurePosixPath(item.key.removeprefix(self._prefix)))
            if key is not None:
                self._found(key, item)

    def interval(self) -> float | None:
        """Ask the schedule."""
        return self._pace(self._wanted)


class FolderLook:
    """The folder of an LSST camera's exposure, whose group is in a file in it.

    Parameters
    ----------
    bucket : `S3Bucket`
        Where to look.
    path : `str`
        The folder's prefix.
    found : callable
        Takes what a key says with what the folder's group is, and the object.
    nameless : callable
        Takes an object when there is no group to be found.
    pace : callable
        Gives the seconds until the next look, for a group or all.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        path: str,
        found: Callable[[LsstKey, RawIdentity, S3Object], None],
        nameless: Callable[[S3Object], None],
        pace: Callable[[str | None], float | None],
    ):
        self.path = path
        self.identity: RawIdentity | None = None
        """Whose exposure it is, once that is known."""
        self._bucket = bucket
        self._found = found
        self._nameless = nameless
        self._pace = pace
        self._since: float | None = None
        self._tries = 0

    def look(self) -> None:
        """Find the group if it is not known, then list the detectors."""
        items = list(self._bucket.objects(self.path))
        raws = [(key, item) for item in items if (key := parse_lsst_path(PurePosixPath(item.key)))]
        if self.identity is None:
            self.identity = self._learn(items, [item for _, item in raws])
        if self.identity is not None:
            for key, item in raws:
                self._found(key, self.identity, item)

    def interval(self) -> float | None:
        """Often until the group is known, then as the group wants."""
        if self.identity is not None:
            return self._pace(self.identity.group)
        if self._pace(None) is None:
            return None
        return min(_MAX_NAMELESS_INTERVAL, _SIDECAR_INTERVAL * 1.5 ** max(0, self._tries - 6))

    def _learn(self, items: list[S3Object], raws: list[S3Object]) -> RawIdentity | None:
        self._tries += 1
        sidecars = [i for i in items if i.key.endswith(".json") and 0 < i.size <= _SIDECAR_BYTES]
        for item in sidecars[:2]:
            identity = parse_sidecar(self._bucket.read(item.key, _SIDECAR_BYTES))
            if identity is not None:
                return identity
        if not raws:
            return None
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now < self._since + _SIDECAR_SECONDS:
            return None
        identity = None
        if raws[0].size:
            identity = parse_header(self._bucket.read(raws[0].key, _HEADER_BYTES))
        if identity is None:
            self._nameless(raws[0])
        return identity


class DayLook:
    """The exposures of an LSST camera's day, each a folder.

    Parameters
    ----------
    bucket : `S3Bucket`
        Where to look.
    path : `str`
        The day's prefix.
    new : callable
        Takes the prefix of a folder that was not known, and when it may be
        looked at, in seconds from now.
    pace : callable
        Gives the seconds until the next look.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        path: str,
        new: Callable[[str, float], None],
        pace: Callable[[], float | None],
    ):
        self.path = path
        self._bucket = bucket
        self._new = new
        self._pace = pace
        self._known: set[str] = set()
        # The last number of each series of names, and how many digits it has.
        self._last: dict[str, tuple[int, int]] = {}
        self._listed = -_FULL_SECONDS

    def look(self) -> None:
        """List the folders that may be new; now and then all of them."""
        now = time.monotonic()
        names: set[str] = set()
        if now >= self._listed + _FULL_SECONDS or not self._last:
            names.update(self._bucket.folders(self.path, ""))
            self._listed = now
        else:
            for family, (number, digits) in list(self._last.items()):
                after = f"{family}{max(0, number - _MARGIN):0{digits}d}"
                names.update(self._bucket.folders(self.path, family, after))
        new = sorted(((self._number(n), n) for n in names - self._known), reverse=True)
        for i, (_, name) in enumerate(new):
            self._new(f"{self.path}{name}/", i * _STAGGER_SECONDS)
        self._known |= names

    def interval(self) -> float | None:
        """As those want that are of this day."""
        return self._pace()

    def _number(self, name: str) -> int:
        match = _NUMBERED.match(name)
        if match is None:
            return -1
        number, digits = int(match["number"]), len(match["number"])
        last, _ = self._last.get(match["family"], (-1, 0))
        if number > last:
            self._last[match["family"]] = number, digits
        return number


class QuestionLook:
    """A detector-visit that the presence service is asked for.

    Parameters
    ----------
    service : `PresenceService`
        Who is asked.
    wanted : `Wanted`
        What for.
    snaps : callable
        Gives the numbers of the snaps to ask for.
    present : callable
        Takes the number of a snap that is there, and its object's key.
    pace : callable
        Gives the seconds until the next look.
    """

    def __init__(
        self,
        service: PresenceService,
        wanted: Wanted,
        snaps: Callable[[Wanted], list[int]],
        present: Callable[[Wanted, int, str], None],
        pace: Callable[[Wanted], float | None],
    ):
        self._service = service
        self._wanted = wanted
        self._snaps = snaps
        self._present = present
        self._pace = pace

    def look(self) -> None:
        """Ask."""
        w = self._wanted
        for snap in self._snaps(w):
            key = self._service.ask(w.instrument, w.group, snap, w.detector_name)
            if key is not None:
                self._present(w, snap, key)

    def interval(self) -> float | None:
        """Ask the schedule."""
        return self._pace(self._wanted)


class HeadLook:
    """One object that is said to be there; looked at once.

    Parameters
    ----------
    bucket : `S3Bucket`
        Where it is.
    key : `RawKey`
        What was asked for.
    name : `str`
        The object's key.
    found : callable
        Takes what was asked for, and the object.
    over : callable
        Called when it need not be looked at any more.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        key: RawKey,
        name: str,
        found: Callable[[RawKey, S3Object], None],
        over: Callable[[HeadLook], None],
    ):
        self.name = name
        self._bucket = bucket
        self._key = key
        self._found = found
        self._over = over

    def look(self) -> None:
        """Look for its size and ETag."""
        self._found(self._key, self._bucket.head(self.name))
        self._over(self)

    def interval(self) -> float | None:
        """Never again."""
        return None
