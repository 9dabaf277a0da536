"""What a source of raws is: candidates in, nothing lost, nothing reported twice as it was."""

from __future__ import annotations

__all__ = ["Candidate", "RawSource", "SourceStatus", "Wanted"]

import dataclasses
from typing import Protocol

from .keys import RawKey


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An object that looks like a complete raw."""

    uri: str
    """Absolute path of a file, or a URI (``s3://bucket/key``)."""
    key: RawKey | None
    """`None`: it can't be told whose it is."""
    size: int
    """Bytes."""
    stamp: str
    """Tells one content of the same URI from another: time of change or ETag."""
    closed: float
    """When it was seen complete, Unix seconds."""
    fault: str = "its path is of no known layout"
    """Why there is no key, if there is none."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A detector-visit that waits, or soon will, for raws."""

    instrument: str
    group: str
    detector: int
    detector_name: str
    """Full name of the detector (``R22_S11``)."""
    snaps: int
    """How many raws are expected; 0: not known."""
    begin: float
    """When the exposure is expected to begin, Unix seconds."""
    until: float
    """After which nobody waits for it any more, Unix seconds."""
    seen: tuple[str, ...] = ()
    """URIs of its raws that were there once, if it is tried again."""

    @property
    def where(self) -> tuple[str, int]:
        """Group and detector."""
        return self.group, self.detector


@dataclasses.dataclass(frozen=True)
class SourceStatus:
    """How a source is, for people."""

    name: str
    """What it looks at: a folder, a bucket."""
    trouble: str | None = None
    """What is wrong with it now."""


class RawSource(Protocol):
    """Where raws come from.

    A source reports each object once when it is complete, and again if its
    content has changed since, from threads of its own.  What was there before
    it was started is reported too, at the latest when it is wanted.  Trouble
    of any kind (no network, no permission, a missing folder or bucket) is
    logged, shown in `status` and tried again; it never ends the source.

    Sources that are told of objects (by inotify, by notifications) need not
    know what is wanted; those that must ask (listing, presence service) look
    for what is wanted only.
    """

    def start(self) -> None:
        """Begin to look; `ppd.errors.ConfigurationError` if that can never work."""

    def stop(self) -> None:
        """End the source's threads; bounded."""

    def expect(self, wanted: Wanted) -> None:
        """Look for the raws of a detector-visit from now on; returns at once."""

    def dismiss(self, group: str, detector: int) -> None:
        """Look no more for them; returns at once."""

    def status(self) -> SourceStatus:
        """Tell how the source is."""
