"""Where other threads leave what they have for the supervisor's loop."""

from __future__ import annotations

__all__ = ["Inbox"]

import contextlib
import os
import queue
from typing import Any


class Inbox:
    """A queue that a poller can wait for.

    Any thread may `put`; only the event loop may `drain`.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable after `put`."""
        return self._wake

    def put(self, item: Any) -> None:
        """Leave an item and wake the loop."""
        self._items.put(item)
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def drain(self, limit: int = 1000) -> list[Any]:
        """Take up to ``limit`` items; what is left keeps the loop awake."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        items = []
        for _ in range(limit):
            try:
                items.append(self._items.get_nowait())
            except queue.Empty:
                return items
        os.eventfd_write(self._wake, 1)
        return items

    def close(self) -> None:
        """Close the descriptor; later `put` calls are silently kept."""
        os.close(self._wake)
        self._wake = -1
