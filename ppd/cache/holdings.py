"""What the cache holds, by dataset type, and what of it goes first."""

from __future__ import annotations

__all__ = ["PINNED_SHARE", "CacheStatistics", "Fetched", "Held", "TypeHeld", "choose_victims", "held_by_type"]

import dataclasses
import uuid
from collections.abc import Collection, Iterable, Mapping

from lsst.daf.butler import DatasetRef

from .transfer import FetchFailure

PINNED_SHARE = 0.5
"""Part of the cache that pinned types may take: the rest is for what visits need."""


@dataclasses.dataclass(frozen=True)
class CacheStatistics:
    """How full the cache is."""

    datasets: int
    bytes_held: int
    bytes_fetched: int
    evicted: int
    leases: int


@dataclasses.dataclass(frozen=True)
class Fetched:
    """What `CacheRepo.fetch` did."""

    count: int
    """How many datasets were fetched."""
    failed: Mapping[uuid.UUID, FetchFailure]


@dataclasses.dataclass
class Held:
    """A dataset in the cache."""

    ref: DatasetRef
    size: int
    used: float
    """When it was wanted last, monotonic seconds."""
    lasting: bool
    """Whether this node uses it at every visit."""


@dataclasses.dataclass(frozen=True)
class TypeHeld:
    """What the cache holds of one dataset type."""

    name: str
    datasets: int
    bytes: int
    leased: int
    """How many of them a child or a nursery has been promised."""
    lasting: int
    """How many of them every visit uses."""
    pinned: bool


def held_by_type(
    held: Iterable[Held], leased: Collection[uuid.UUID], pinned: Collection[str]
) -> list[TypeHeld]:
    """Sum up by dataset type, the largest first.

    Parameters
    ----------
    held : `~collections.abc.Iterable` [ `Held` ]
        What the cache holds.
    leased : `~collections.abc.Collection` [ `uuid.UUID` ]
        What is promised to someone.
    pinned : `~collections.abc.Collection` [ `str` ]
        Dataset types that are pinned; also those of which there is nothing.
    """
    found: dict[str, list[Held]] = {name: [] for name in pinned}
    for one in held:
        found.setdefault(one.ref.datasetType.name, []).append(one)
    types = [
        TypeHeld(
            name=name,
            datasets=len(own),
            bytes=sum(h.size for h in own),
            leased=sum(h.ref.id in leased for h in own),
            lasting=sum(h.lasting for h in own),
            pinned=name in pinned,
        )
        for name, own in found.items()
    ]
    return sorted(types, key=lambda t: (-t.bytes, t.name))


def choose_victims(
    held: Iterable[Held],
    spared: Collection[uuid.UUID],
    limit: int,
    pinned: Collection[str] = (),
    pinned_limit: int = 0,
) -> list[Held]:
    """Choose what is to go, so that no more than some bytes are held.

    Parameters
    ----------
    held : `~collections.abc.Iterable` [ `Held` ]
        What the cache holds.
    spared : `~collections.abc.Collection` [ `uuid.UUID` ]
        What may not go.
    limit : `int`
        Bytes to hold at most.
    pinned : `~collections.abc.Collection` [ `str` ], optional
        Dataset types of which nothing goes, as long as they take no more
        than ``pinned_limit`` bytes.
    pinned_limit : `int`, optional
        See there.

    Returns
    -------
    victims : `list` [ `Held` ]
        The least recently used, those that every visit uses last of all.
    """
    everything = list(held)
    total = sum(h.size for h in everything)
    fixed = sum(h.size for h in everything if h.ref.datasetType.name in pinned)
    victims = []
    for one in sorted(everything, key=lambda h: (h.ref.datasetType.name in pinned, h.lasting, h.used)):
        if total <= limit:
            break
        is_pinned = one.ref.datasetType.name in pinned
        if one.ref.id in spared or (is_pinned and fixed <= pinned_limit):
            continue
        victims.append(one)
        total -= one.size
        fixed -= one.size if is_pinned else 0
    return victims
