"""Spools that are drained by exporters, as ppd's supervisor has them."""

from __future__ import annotations

__all__ = ["Drained", "drain", "export_settings"]

import dataclasses
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from ppd.config import Settings
from ppd.messages import Exported, SetAside
from ppd.supervisor.exporter_keeper import ExporterKeeper
from ppd.supervisor.spool import make_folders

_WAKE_SECONDS = 60.0


@dataclasses.dataclass
class Drained:
    """What came of it."""

    seconds: float = 0.0
    entries: int = 0
    datasets: int = 0
    batches: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """Hand-overs and seconds of each batch."""
    cpu_seconds: float = 0.0
    """Processor time of the exporters."""
    memory: int = 0
    """Resident bytes of the largest exporter at the end."""

    @property
    def rate(self) -> float:
        """Hand-overs a second."""
        return self.entries / self.seconds

    @property
    def times(self) -> list[float]:
        """Seconds of each hand-over's batch, for each hand-over."""
        return [seconds for entries, seconds in self.batches for _ in range(entries)]


def export_settings(folder: Path, central: Path, **changes: Any) -> Settings:
    """Make settings of which an exporter needs only these.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where the spool is to be.
    central : `pathlib.Path`
        The central repo.
    **changes
        Further settings.
    """
    settings = Settings.model_validate(
        {
            "instrument": "DemoCam",
            "central_repo": str(central),
            "main_pipelines": [{"pipelines": ["none.yaml"]}],
            "state_dir": str(folder),
            "spool_dir": str(folder / "spool"),
            "socket_dir": "/nowhere",  # an exporter has no sockets, and a folder may be too deep for one
            "log_level": "WARNING",
            **changes,
        }
    )
    make_folders(settings.spool_dir)
    return settings


def drain(sites: Sequence[Settings], timeout: float) -> Drained:
    """Drain spools, each by an exporter of its own, all at once.

    Parameters
    ----------
    sites : sequence of `ppd.config.Settings`
        One for each exporter; its spool has what is to be exported.
    timeout : `float`
        Seconds that they may take.

    Returns
    -------
    drained : `Drained`
        From when all exporters were at work until the last spool was empty.
    """
    held = [_hold(settings.spool_dir) for settings in sites]
    keepers = [ExporterKeeper(settings) for settings in sites]
    try:
        # What it takes to start, and to open central, is not what is measured.
        for entries, settings in zip(held, sites, strict=True):
            _give(settings.spool_dir, entries[:1])
        woken = Drained()
        _serve(keepers, woken, lambda: woken.entries >= len(keepers), _WAKE_SECONDS)
        for keeper in keepers:
            keeper.hurry()
        processes = [psutil.Process(keeper.pid) for keeper in keepers]
        drained = Drained(cpu_seconds=-sum(_processor_seconds(p) for p in processes))
        begin = time.monotonic()
        for entries, settings in zip(held, sites, strict=True):
            _give(settings.spool_dir, entries[1:])
        expected = sum(len(entries) - 1 for entries in held)
        _serve(keepers, drained, lambda: drained.entries >= expected, timeout)
        drained.seconds = time.monotonic() - begin
        drained.cpu_seconds += sum(_processor_seconds(p) for p in processes)
        drained.memory = max(p.memory_info().rss for p in processes)
        return drained
    finally:
        for keeper in keepers:
            keeper.stop(20.0)


def _serve(
    keepers: Sequence[ExporterKeeper], drained: Drained, enough: Callable[[], bool], seconds: float
) -> None:
    """Do what a supervisor does: hear what is exported, and let go of it."""
    deadline = time.monotonic() + seconds
    while not enough():
        if time.monotonic() > deadline:
            trouble = [keeper.trouble for keeper in keepers]
            raise RuntimeError(f"{drained.entries} hand-overs were exported in {seconds:.0f} s: {trouble}")
        select.select([k for k in keepers if k.fileno() != -1], [], [], 0.1)
        for keeper in keepers:
            for message in keeper.receive():
                if isinstance(message, SetAside):
                    raise RuntimeError(f"{message.entry} was set aside: {message.reason}")
                if isinstance(message, Exported):
                    keeper.discard([e.entry for e in message.entries])
                    drained.entries += len(message.entries)
                    drained.datasets += sum(e.datasets for e in message.entries)
                    drained.batches.append((len(message.entries), message.seconds))
            keeper.flush()


def _hold(spool: Path) -> list[Path]:
    """Hide what is in a spool."""
    hidden = spool / "held"
    (spool / "ready").rename(hidden)
    make_folders(spool)
    return sorted(hidden.iterdir())


def _give(spool: Path, entries: Sequence[Path]) -> None:
    for entry in entries:
        entry.rename(spool / "ready" / entry.name)


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
