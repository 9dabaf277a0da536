"""A Redis stream as one consumer of a group sees it: one function for each thing that is asked of it."""

from __future__ import annotations

__all__ = ["Claimed", "Pending", "RedisStream", "StreamEntry"]

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis

_LOG = logging.getLogger(__name__)

REJECTED_SUFFIX = ":ppd-rejected"
"""Ends the name of the stream that holds what was set aside."""

# What was set aside is for people; the newest of it is enough.
_MAX_REJECTED = 10_000


class StreamEntry(NamedTuple):
    """One entry."""

    id: str
    """``<ms>-<n>``: when the stream got it, Unix milliseconds, and a number."""
    fields: Mapping[bytes, bytes]
    """Empty: its body is gone, since the stream was trimmed."""

    @property
    def delivered(self) -> float:
        """When the stream got it, Unix seconds."""
        return int(self.id.partition("-")[0]) / 1000.0


class Pending(NamedTuple):
    """An entry that was given to this consumer, who has not confirmed it."""

    id: str
    deliveries: int
    """How often it was given to somebody."""


class Claimed(NamedTuple):
    """What was taken over from other consumers."""

    ids: tuple[str, ...]
    gone: tuple[str, ...]
    """Those whose body is gone; nobody has them any more."""
    cursor: str
    """Where to go on; ``0-0``: all were looked at."""


class RedisStream:
    """A stream, a consumer group and a consumer.

    Each function asks the server once or twice and raises `redis.RedisError`
    if that fails.

    Parameters
    ----------
    client : `redis.Redis`
        The client, see `ppd.redis_client.make_client`.
    stream, group, consumer : `str`
        Their names.
    """

    def __init__(self, client: redis.Redis, stream: str, group: str, consumer: str):
        # Its stubs know too many kinds of answers.
        self._client: Any = client
        self._stream, self._group, self._consumer = stream, group, consumer

    def standing(self) -> tuple[int | None, int] | None:
        """Return the group's lag (`None`: not known) and how many entries are pending; `None`: no group."""
        try:
            groups = self._client.xinfo_groups(self._stream)
        except redis.ResponseError as e:
            if "no such key" in str(e).lower():
                return None
            raise
        for group in groups:
            if group["name"] == self._group.encode():
                lag = group.get("lag")
                return None if lag is None else int(lag), int(group["pending"])
        return None

    def make_group(self, since: float) -> None:
        """Make the group, and the stream if there is none.

        Parameters
        ----------
        since : `float`
            Of which entries on it is to hear, Unix seconds.
        """
        try:
            self._client.xgroup_create(
                self._stream, self._group, id=f"{max(0, int(since * 1000))}-0", mkstream=True
            )
        except redis.ResponseError as e:
            if not str(e).startswith("BUSYGROUP"):  # another was quicker
                raise

    def new(self, count: int, seconds: float) -> list[StreamEntry]:
        """Read what nobody was given yet, and wait for it for some seconds."""
        return self._read(">", count, max(1, int(seconds * 1000)))

    def pending(self, after: str, count: int) -> list[Pending]:
        """List what is pending with this consumer, beyond an ID."""
        rows = self._client.xpending_range(
            self._stream, self._group, f"({after}", "+", count, consumername=self._consumer
        )
        return [Pending(row["message_id"].decode(), int(row["times_delivered"])) for row in rows]

    def again(self, after: str, count: int) -> list[StreamEntry]:
        """Read what is pending with this consumer, beyond an ID; that counts as a delivery."""
        return self._read(after, count, None)

    def _read(self, after: str, count: int, block: int | None) -> list[StreamEntry]:
        answer = self._client.xreadgroup(
            self._group, self._consumer, {self._stream: after}, count=count, block=block
        )
        return [StreamEntry(name.decode(), fields or {}) for _, some in answer or () for name, fields in some]

    def look(self, entry: str) -> StreamEntry:
        """Look at an entry; that counts as nothing."""
        found = self._client.xrange(self._stream, entry, entry, count=1)
        return StreamEntry(entry, found[0][1] if found else {})

    def claim(self, idle: float, cursor: str, count: int) -> Claimed:
        """Take over what others were given long ago; that counts as no delivery.

        Parameters
        ----------
        idle : `float`
            How long ago at least, seconds.
        cursor : `str`
            Where to go on, ``0-0`` to begin.
        count : `int`
            How many at most.
        """
        # Before Redis 7, those that are gone are claimed too.
        found, ids, *gone = self._client.xautoclaim(
            self._stream, self._group, self._consumer, int(idle * 1000), cursor, count, justid=True
        )
        return Claimed(_texts(ids), _texts(gone[0]) if gone else (), found.decode())

    def forgive(self, ids: Sequence[str]) -> None:
        """Have entries of this consumer count as never delivered: it is not their fault."""
        self._client.xclaim(self._stream, self._group, self._consumer, 0, ids, retrycount=0, justid=True)

    def confirm(self, ids: Sequence[str]) -> None:
        """Say that entries are done with."""
        self._client.xack(self._stream, self._group, *ids)

    def set_aside(self, entry: StreamEntry, reason: str) -> None:
        """Copy an entry to where people look for it, and be done with it, in one step."""
        fields = {**entry.fields, b"ppd_id": entry.id, b"ppd_consumer": self._consumer, b"ppd_reason": reason}
        steps = self._client.pipeline(transaction=True)
        steps.xadd(f"{self._stream}{REJECTED_SUFFIX}", fields, maxlen=_MAX_REJECTED, approximate=True)
        steps.xack(self._stream, self._group, entry.id)
        try:
            steps.execute()
        except redis.ReadOnlyError:
            raise
        except redis.ResponseError as e:
            # No right to, no memory, another node: that must not keep all others waiting.
            _LOG.error("Entry %s can't be copied to %s%s: %s", entry.id, self._stream, REJECTED_SUFFIX, e)
            self.confirm([entry.id])


def _texts(names: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(name.decode() for name in names)
