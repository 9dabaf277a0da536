"""What it costs that nothing is lost: ``python -m bench --only durability``."""

from __future__ import annotations

__all__ = ["measure_durability"]

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsst.daf.butler import Config

from .backlog import measure_away, measure_backlog
from .contention import measure_contention
from .hand_over_times import measure_hand_overs
from .hand_overs import make_central
from .restart import measure_restarts
from .servers import PostgresServer

_DETECTORS = 189


@dataclasses.dataclass(frozen=True)
class _Sizes:
    hand_overs: int = 60
    visits: int = 100
    detectors: int = _DETECTORS
    sample: int = 400
    nodes: tuple[int, ...] = (1, 3, 6)
    writers: int = 32
    each: int = 4
    journal: int = 1000
    kills: int = 7


_SMALL = _Sizes(hand_overs=10, visits=12, sample=60, nodes=(1, 2), writers=8, each=4, journal=200, kills=2)


def measure_durability(small: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure what is told in ``docs/durability-costs.md``.

    Parameters
    ----------
    small : `bool`, optional
        Whether to measure little of all: to see that it works.
    say : callable, optional
        Is told how far it is.

    Returns
    -------
    figures : `dict`
        All figures; those of a part that could not be measured are its
        ``failure``.
    """
    sizes = _SMALL if small else _Sizes()
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with contextlib.ExitStack() as stack:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppd-bench-")))
        memory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ppd-bench-", dir=shared_memory))
        )
        disk.chmod(0o755)  # the PostgreSQL server may run under another account
        parts: dict[str, Callable[[], Any]] = {
            "hand_over": lambda: measure_hand_overs(_new(disk / "hand-over"), memory, sizes.hand_overs),
            "restart": lambda: measure_restarts(
                _new(disk / "restart"), memory / "restart", sizes.journal, sizes.kills
            ),
        }
        if importlib.util.find_spec("bench.journal") is not None:
            journal = importlib.import_module("bench.journal")
            parts["journal"] = lambda: journal.measure(_new(disk / "journal"))
        figures = {name: _measured(name, measure, say) for name, measure in parts.items()}
        figures |= _with_server(disk, memory, sizes, say)
    return figures


def _with_server(disk: Path, memory: Path, sizes: _Sizes, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what needs a central repo on PostgreSQL."""
    if not PostgresServer.is_installed():
        return {"backlog": {"failure": "PostgreSQL is not installed"}}
    folder = _new(disk / "backlog")
    with PostgresServer(disk / "server", durable=True) as server:
        central = make_central(
            disk / "central",
            Config({"registry": {"db": server.create_database("central")}}),
            sizes.detectors,
        )
        waiting = [(visit, d) for visit in range(sizes.visits) for d in range(sizes.detectors)]
        # Each part has visits that no other has.
        free, later = sizes.visits, sizes.visits + 50
        parts: dict[str, Callable[[], Any]] = {
            "away": lambda: measure_away(folder, memory / "away", server, waiting),
            "backlog": lambda: measure_backlog(
                folder, central, len(waiting), sizes.sample, free, sizes.detectors
            ),
            "contention": lambda: measure_contention(
                _new(disk / "contention"),
                central,
                sizes.nodes,
                sizes.writers,
                sizes.each,
                sizes.detectors,
                later,
            ),
        }
        figures = {}
        for name, measure in parts.items():
            figures[name] = _measured(name, measure, say)
        return {"postgresql": server.version(), **figures}


def _measured(name: str, measure: Callable[[], Any], say: Callable[[str], None]) -> Any:
    begin = time.monotonic()
    try:
        figures = measure()
    except (OSError, RuntimeError) as e:
        figures = {"failure": str(e)}
    say(f"{name}: {time.monotonic() - begin:.0f} s")
    return figures


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
