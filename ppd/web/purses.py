"""How much each may ask for: so many at once, and so many a second in the long run."""

from __future__ import annotations

__all__ = ["Purses"]

import collections
import time

_MOST = 1000


class Purses:
    """A purse for each who asks, which fills with time; those not seen for longest are forgotten."""

    def __init__(self) -> None:
        # What is left of each one's burst, and when that was.
        self._purses: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def pays(self, name: str, rate: float, burst: float) -> bool:
        """Take one request from somebody's purse; `False`: it is empty.

        Parameters
        ----------
        name : `str`
            Whose purse.
        rate : `float`
            Requests a second, in the long run.
        burst : `float`
            How many at once.
        """
        now = time.monotonic()
        left, then = self._purses.pop(name, (burst, now))
        left = min(burst, left + (now - then) * rate)
        fine = left >= 1.0
        self._purses[name] = (left - 1.0 if fine else left, now)
        while len(self._purses) > _MOST:
            self._purses.popitem(last=False)
        return fine
