"""What the loop asks of the thread that reads the central repo, and the answers."""

from __future__ import annotations

__all__ = [
    "AskCache",
    "CacheSaid",
    "DayKnown",
    "Learn",
    "LearnDay",
    "Learned",
    "Prefetch",
    "Released",
    "Resolve",
    "Resolved",
]

import dataclasses
from collections.abc import Mapping

from ..messages import CacheView, ControlReply, ControlRequest, Pointing, PrepareNursery
from ..visit import BareVisit
from .deployments import Deployment
from .inputs import VisitInputs


@dataclasses.dataclass(frozen=True)
class Resolve:
    """Request: find and hold the inputs of a visit's detectors."""

    visit: BareVisit
    preprocessing: Mapping[int, tuple[str, ...]]
    """Pre-processing pipelines that each detector may run."""
    main: Mapping[int, tuple[str, ...]]
    """Main pipelines that each detector may run."""
    day_obs: int
    deployment: str
    runs: tuple[str, ...]
    """Output runs of the visit."""


@dataclasses.dataclass(frozen=True)
class Released:
    """Request: this holder is done with its inputs."""

    holder: str


@dataclasses.dataclass(frozen=True)
class Prefetch:
    """Request: fetch the inputs of pointings when there is nothing else to do."""

    pointings: tuple[Pointing, ...]


@dataclasses.dataclass(frozen=True)
class AskCache:
    """Request: say what is in the cache, or change something there, for an operator."""

    number: int
    """Of the question."""
    request: ControlRequest


@dataclasses.dataclass(frozen=True)
class CacheSaid:
    """Answer: what an operator is told."""

    number: int
    reply: ControlReply


@dataclasses.dataclass(frozen=True)
class LearnDay:
    """Request: find and fetch the init-outputs of a day, before a visit needs them."""

    day_obs: int
    deployment: str


@dataclasses.dataclass(frozen=True)
class Learn:
    """Request: get ready for the visits of another deployment."""

    deployment: Deployment
    day_obs: int
    number: int
    """Of the reload that wants it."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """Answer: its visits may come, or why not."""

    number: int
    error: str | None = None
    missing: bool = False
    """Whether it is that ``ppd-init`` has not been run."""


@dataclasses.dataclass(frozen=True)
class DayKnown:
    """Answer: the init-outputs of a day are in the cache, or why not."""

    day_obs: int
    deployment: str
    error: str | None = None
    missing: bool = False
    """Whether it is that ``ppd-init`` has not been run."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Answer: the inputs are in the cache, or why not."""

    group: str
    asked: frozenset[int] = frozenset()
    """The detectors that the request was about."""
    views: Mapping[int, CacheView] = dataclasses.field(default_factory=dict)
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Detectors that lack an input that every one of their pipelines needs."""
    postponed: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Detectors for which another try may find what this one did not."""
    error: str | None = None
    """What concerns all detectors."""
    retry: bool = False
    inputs: VisitInputs | None = None
    prepare: PrepareNursery | None = None
    """What the nursery should do for the children of the next visits."""
    statements: int = 0
    fetched: int = 0
    seconds: float = 0.0
