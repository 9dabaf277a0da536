"""A clock that can be stepped: Python imports this at its start if its folder is in ``PYTHONPATH``.

``time.time`` and ``time.time_ns`` are off by as many seconds as the file says
that ``PPD_CLOCK_OFFSET_FILE`` names.  What the file says may change at any
time, as a clock may be set at any time; a file that says nothing is an
offset of 0.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time

WIDTH = 32
"""Bytes of the file: a number, filled up with spaces."""


def _move() -> None:
    path = os.environ.get("PPD_CLOCK_OFFSET_FILE")
    if not path:
        return
    # A map is the cheapest way to look at each call, and it outlives a fork.
    with open(path, "rb") as stream:  # noqa: PTH123 (no more imports than needed)
        view = mmap.mmap(stream.fileno(), WIDTH, prot=mmap.PROT_READ)
    seconds, nanoseconds = time.time, time.time_ns

    def offset() -> float:
        with contextlib.suppress(ValueError):
            return float(view[:])
        return 0.0

    time.time = lambda: seconds() + offset()
    time.time_ns = lambda: nanoseconds() + int(offset() * 1e9)


_move()
