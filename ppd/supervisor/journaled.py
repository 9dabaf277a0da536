"""Visits as the journal has them."""

from __future__ import annotations

__all__ = ["Acceptance", "JournaledVisit", "OldVisit", "Standing", "UnfinishedVisit"]

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


class Acceptance(NamedTuple):
    """A visit that is about to be accepted, or some of its detectors."""

    instrument: str
    group: str
    detectors: tuple[int, ...]
    message: Mapping[str, Any]
    day_obs: int
    """The night that it is accepted for."""
    deployment: str
    """The deployment that it is accepted for."""
    detail: Mapping[str, Any]
    """What the event is to have: its source."""


@dataclasses.dataclass(frozen=True)
class UnfinishedVisit:
    """A visit of which an earlier supervisor left something undone."""

    instrument: str
    group: str
    message: dict[str, Any]
    accepted: float
    """Unix seconds."""
    day_obs: int
    """The night that it was accepted for."""
    deployment: str
    """The deployment that it was accepted for; empty: an older ppd has not written it down."""
    detectors: tuple[int, ...]
    """Accepted and neither handed over nor failed."""
    handed_over: tuple[int, ...]
    """Handed over, and not known to be exported."""
    attempts: Mapping[int, int]
    """The last attempt at each of these."""


@dataclasses.dataclass(frozen=True)
class OldVisit:
    """A visit all of whose detector-visits are over."""

    instrument: str
    group: str
    message: dict[str, Any]
    accepted: float
    """Unix seconds."""


class Standing(NamedTuple):
    """What the journal says of one detector-visit."""

    state: str
    attempt: int
    exported: int
    """How many of its outputs went to central, of whatever attempt."""
    raws: tuple[str, ...]
    """URIs of the raws that were matched to it, each once."""


@dataclasses.dataclass(frozen=True)
class JournaledVisit:
    """A visit with all that may decide whether it can be tried again."""

    message: dict[str, Any]
    accepted: float
    """Unix seconds."""
    day_obs: int
    """The night that it was accepted for."""
    detectors: Mapping[int, Standing]
