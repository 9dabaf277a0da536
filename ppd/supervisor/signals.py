"""What the supervisor was told by signals: flags and counts, which the loop looks at."""

from __future__ import annotations

__all__ = ["Signals"]

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Signals:
    """Takes SIGTERM, SIGINT and SIGHUP for this process."""

    def __init__(self) -> None:
        self.stops = 0
        """How often ppd was told to end; more than once: now."""
        self._reload = False
        self._raising = False
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Let a signal to end break off what is done here: waits of the start-up, which leave nothing.

        Raises
        ------
        KeyboardInterrupt
            Raised at the first signal, also one that came before.
        """
        if self.stops:
            raise KeyboardInterrupt
        self._raising = True
        try:
            yield
        finally:
            self._raising = False

    def take_reload(self) -> bool:
        """Whether SIGHUP has come since this was asked last."""
        told, self._reload = self._reload, False
        return told

    def _stop(self, _signum: int, _frame: FrameType | None) -> None:
        self.stops += 1
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt

    def _hang_up(self, _signum: int, _frame: FrameType | None) -> None:
        self._reload = True
