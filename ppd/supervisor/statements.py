"""Counting SQL statements on the central repo."""

from __future__ import annotations

__all__ = ["StatementCounter"]

import threading
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


class StatementCounter:
    """Counts the statements of the current thread, but those of some databases.

    Parameters
    ----------
    exclude : `str`
        Databases whose URL contains this are not counted (the cache repo's).
    """

    def __init__(self, exclude: str):
        self._exclude = exclude
        self._counts = threading.local()
        event.listen(Engine, "before_cursor_execute", self._count)

    def take(self) -> int:
        """Return the count of this thread since the last call, and start again."""
        count: int = getattr(self._counts, "value", 0)
        self._counts.value = 0
        return count

    def close(self) -> None:
        """Stop counting."""
        event.remove(Engine, "before_cursor_execute", self._count)

    def _count(self, conn: Any, _: Any, statement: str, *__: Any) -> None:
        # Only SQLite's driver is told to begin a transaction where it can be seen.
        if statement != "BEGIN" and self._exclude not in str(conn.engine.url):
            self._counts.value = getattr(self._counts, "value", 0) + 1
