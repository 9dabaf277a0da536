"""A ppd whose tasks do what a test tells them, and a look at what they left."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from lsst.daf.butler import Butler
from observatory import Observatory, Ppd, running

from ppd.config import Settings
from ppd.supervisor.containment import mark_prefix
from ppd.supervisor.processes import all_processes, mark_of

_EARLY = """
description: What a task does before the raw comes.
instrument: ppd.demo.democam.DemoCam
tasks:
  early: {{class: rude_tasks.EarlyTask, config: {{folder: "{folder}"}}}}
"""
_MAIN = """
description: Instrument signature removal, and what a task does after it.
instrument: ppd.demo.democam.DemoCam
tasks:
  isr: {{class: ppd.demo.tasks.isr.IsrTask}}
  rude: {{class: rude_tasks.RudeTask, config: {{folder: "{folder}"}}}}
"""
BAD, GOOD = 4, 5


@dataclasses.dataclass
class RudeSite:
    """A ppd whose tasks do what they are told."""

    ppd: Ppd
    folder: Path
    nursery: int
    names: Iterator[str]

    def misbehave(self, deed: str, when: str = "main") -> str:
        """Have a detector-visit do something; return its group."""
        (self.folder / "notes").write_text("")
        (self.folder / f"{when}-{BAD}").write_text(deed)
        group = f"{deed}-{next(self.names)}"
        self.ppd.good_visit(group, BAD)
        return group

    def notes(self, kind: str) -> list[Any]:
        """What was done."""
        notes = map(json.loads, (self.folder / "notes").read_text().splitlines())
        return [value for k, value in notes if k == kind]

    def log(self, group: str, attempt: int = 1) -> str:
        """The log of a detector-visit's child."""
        (path,) = (self.ppd.settings.state_dir / "logs").glob(f"*/*{group}-{BAD}-{attempt}.log")
        return path.read_text()

    def output(self, name: str, group: str) -> dict[str, Any]:
        """What a task has put."""
        found = [r for r in self.ppd.outputs(name) if group in (r.dataId.get("group"), _group_of(r))]
        with Butler.from_config(str(self.ppd.central), writeable=False) as butler:
            return butler.get(found[0])

    def check(self) -> None:
        """Nothing is left of it, and the next visit is processed well."""
        for path in self.folder.glob(f"*-{BAD}"):
            path.unlink()
        alive = [pid for pid in self.notes("stray") if lives(pid)]
        assert not alive, "processes are left"
        assert not marked(self.ppd.settings), "processes are left"
        assert not [f for f in self.notes("file") if Path(f).exists()], "files are left"
        repos = [p.name for p in self.ppd.settings.local_repos.glob("ppd-*") if "nursery" not in p.name]
        assert repos == []
        status = self.ppd.status()
        assert status["slots"]["used"] == 0
        assert status["processors"]["used"] == 0
        assert status["health"] == "ok"
        assert not status["counts"].get("internal_errors")
        assert not status["counts"].get("nursery_restarts")
        assert psutil.pid_exists(self.nursery)
        assert not _zombies(self.ppd)
        group = f"next-{next(self.names)}"
        self.ppd.good_visit(group, GOOD)
        self.ppd.await_state(group, exported=1)


@contextlib.contextmanager
def rude_site(observatory: Observatory, folder: Path, **changes: Any) -> Iterator[RudeSite]:
    deeds = folder / "deeds"
    deeds.mkdir()
    paths = []
    for name, text in (("Early", _EARLY), ("Rude", _MAIN)):
        path = folder / f"{name}.yaml"
        path.write_text(text.format(folder=deeds))
        paths.append(str(path))
    early = [{"pipelines": paths[:1]}]
    settings = {"retries": 0, "preprocessing_pipelines": early, **changes}
    with running(observatory, folder, main=(paths[1],), **settings) as ppd:
        assert ppd.process is not None
        (nursery,) = (
            p.pid for p in psutil.Process(ppd.process.pid).children() if "ppd.workers.nursery" in p.cmdline()
        )
        yield RudeSite(ppd, deeds, nursery, map(str, itertools.count(1)))
    assert not marked(ppd.settings)


def _group_of(ref: Any) -> str | None:
    return ref.dataId.records["exposure"].group if "exposure" in ref.dimensions else None


def logs(site: RudeSite, group: str) -> list[Path]:
    return list((site.ppd.settings.state_dir / "logs").glob(f"*/*{group}-{BAD}-1.log"))


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _zombies(ppd: Ppd) -> list[int]:
    assert ppd.process is not None
    return [p.pid for p in psutil.Process(ppd.process.pid).children() if p.status() == psutil.STATUS_ZOMBIE]


def marked(settings: Settings) -> list[int]:
    """Children of a ppd, and what descends from them."""
    prefix = mark_prefix(settings)
    return [pid for pid in all_processes() if mark_of(pid).startswith(prefix)]
