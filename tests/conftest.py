"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from observatory import Observatory

from ppd.demo.night import simulate_night


@pytest.fixture(scope="session")
def observatory(tmp_path_factory: pytest.TempPathFactory) -> Observatory:
    """A central repo and a visit's raws, simulated once."""
    root: Path = tmp_path_factory.mktemp("observatory")
    return Observatory(root, simulate_night(root, visits=1, seed=5))
