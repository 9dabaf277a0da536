"""What takes long to make is made once for all processes that run tests."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path


def make_once[T](base: Path, name: str, make: Callable[[Path], T]) -> T:
    """Make something in a folder, or take what another process has made there.

    ``base`` is pytest's ``tmp_path_factory.getbasetemp()``; what is made must
    be fit for pickle, and nobody may change it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    root, done = base / name, base / f"{name}.pickle"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            root.mkdir()
            data = pickle.dumps(make(root))
            done.write_bytes(data)
    made: T = pickle.loads(done.read_bytes())
    return made
