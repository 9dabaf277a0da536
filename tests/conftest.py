"""Fixtures for all tests."""

from __future__ import annotations

import fcntl
import os
import pickle

import pytest
from observatory import Observatory

from ppd.demo.night import simulate_night


@pytest.fixture(scope="session")
def observatory(tmp_path_factory: pytest.TempPathFactory) -> Observatory:
    """A central repo and a visit's raws, simulated once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    root, done = base / "observatory", base / "observatory.pickle"
    with (base / "observatory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            root.mkdir()
            done.write_bytes(pickle.dumps(simulate_night(root, visits=1, seed=5)))
    return Observatory(root, pickle.loads(done.read_bytes()))
