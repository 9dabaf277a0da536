"""Moves the wall clock of a Python process by what a file says.

Python imports it at its start where this folder is on ``PYTHONPATH``.  The file
has one double, the seconds that the clock is ahead; it is mapped, and so read
at each call at next to no cost, and may be changed while the process runs.
Without the variable, nothing is done.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Any

VARIABLE = "PPD_MOVED_CLOCK"


def _install(path: str) -> None:
    with open(path, "rb") as stream:  # noqa: PTH123
        mapped = mmap.mmap(stream.fileno(), 8, access=mmap.ACCESS_READ)
    real, unpack = time.time, struct.Struct("d").unpack_from

    def now() -> float:
        return real() + unpack(mapped)[0]

    def now_ns() -> int:
        return int(now() * 1e9)

    def defaulting(convert: Any) -> Any:
        return lambda seconds=None: convert(now() if seconds is None else seconds)

    real_strftime = time.strftime
    time.time, time.time_ns = now, now_ns
    for name in ("gmtime", "localtime", "ctime"):
        setattr(time, name, defaulting(getattr(time, name)))
    time.strftime = lambda format, t=None: real_strftime(format, time.localtime() if t is None else t)


if os.environ.get(VARIABLE):
    _install(os.environ[VARIABLE])
