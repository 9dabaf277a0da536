"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from observatory import Observatory
from sharing import make_once

from ppd.demo.night import simulate_night
from ppd.logs import bound


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process is left alone with it at the end."""
    items.sort(
        key=lambda item: (item.path.name != "test_whole_night.py", not item.get_closest_marker("night"))
    )


@pytest.fixture(autouse=True)
def no_bound_fields() -> Iterator[None]:
    """What a test binds to log records is not on those of the next."""
    with bound():
        yield


@pytest.fixture(scope="session")
def observatory(tmp_path_factory: pytest.TempPathFactory) -> Observatory:
    """A central repo and a visit's raws, simulated once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    return make_once(
        base, "observatory", lambda root: Observatory(root, simulate_night(root, visits=1, seed=5))
    )
