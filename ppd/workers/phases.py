"""Ending a phase of a child's life without ending the child."""

from __future__ import annotations

__all__ = ["CutShort", "ignore_cuts", "may_be_cut_short"]

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class CutShort(BaseException):
    """Raised in the child's main thread by SIGUSR1, in a phase that may be cut short."""


def ignore_cuts() -> None:
    """Ignore the signal; its default would end the process."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextlib.contextmanager
def may_be_cut_short() -> Iterator[None]:
    """Let SIGUSR1 raise `CutShort` within a ``with`` block."""
    signal.signal(signal.SIGUSR1, _cut)
    try:
        yield
    finally:
        ignore_cuts()


def _cut(signum: int, frame: FrameType | None) -> None:
    # One is enough; what is unwinding must not be hit again.
    ignore_cuts()
    raise CutShort("it took too long")
