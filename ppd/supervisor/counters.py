"""What has happened since the start: counts and the last errors."""

from __future__ import annotations

__all__ = ["Counters"]

import collections
import time
from typing import Any


class Counters:
    """Counts by name, and a bounded list of errors for the operator."""

    def __init__(self, keep: int = 50):
        self._counts: collections.Counter[str] = collections.Counter()
        self._errors: collections.deque[dict[str, Any]] = collections.deque(maxlen=keep)

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        self._counts[name] += count

    def error(self, name: str, what: str, message: str) -> None:
        """Count a fault and keep its message.

        Parameters
        ----------
        name : `str`
            Kind of fault, as it is counted.
        what : `str`
            Visit, detector-visit or file that it is about.
        message : `str`
            What happened.
        """
        self._counts[name] += 1
        self._errors.append(
            {"time": time.time(), "kind": name, "what": _plain(what), "message": _plain(message)}
        )

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def as_dict(self) -> dict[str, int]:
        """All counts by name."""
        return dict(sorted(self._counts.items()))

    def errors(self) -> list[dict[str, Any]]:
        """The last errors, oldest first."""
        return list(self._errors)


def _plain(text: str) -> str:
    """Cut a text to what people read, and make JSON of it possible: names of files may be no UTF-8."""
    return text[:1000].encode("utf-8", "backslashreplace").decode()
