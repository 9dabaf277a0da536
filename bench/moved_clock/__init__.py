"""A clock that can be moved, for the processes of a ppd that is tested.

`environment` makes the variables that they are started with, `move` sets how
many seconds their clock is ahead, also while they run.  All that Python asks
the wall clock of (`time.time` and its relatives) is moved; the monotonic clock,
files' times and the databases' own clocks are not.
"""

from __future__ import annotations

__all__ = ["environment", "move"]

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from .sitecustomize import VARIABLE


def move(file: Path, seconds: float) -> None:
    """Set how far the clock is ahead.

    Parameters
    ----------
    file : `pathlib.Path`
        Where it is said; made if it does not exist.
    seconds : `float`
        Seconds; negative: it is behind.
    """
    # In place: whoever reads it has it mapped.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, struct.pack("d", seconds), 0)
    finally:
        os.close(descriptor)


def environment(file: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose Python processes go by the moved clock.

    Parameters
    ----------
    file : `pathlib.Path`
        What `move` has written.
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        The environment otherwise.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), environ.get("PYTHONPATH")]))
    return {**environ, "PYTHONPATH": path, VARIABLE: str(file)}
