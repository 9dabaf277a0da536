"""Whether anything is lost when everything fails: ``python -m bench.soak``.

A real ppd on PostgreSQL gets visits and raws while its processes are killed
and stopped, its database and its disk fail and its clock is stepped.  What
happens follows from the seed.  In the end every detector-visit, every output
and every row of the APDB is accounted for.
"""

from __future__ import annotations

__all__ = ["KEYS", "Soaked", "faults_of", "main", "soak"]

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .moved_clock import move
from .servers import PostgresServer
from .soak_account import Account, account_for, history
from .soak_disk import SoakDisk, private_mounts
from .soak_schedule import Schedule, draw_schedule
from .soak_site import Place, Site
from .soak_storm import Storm

KEYS = (
    "seed",
    "minutes",
    "faults",
    "detector_visits",
    "accounted",
    "outputs_made",
    "outputs_in_central",
    "lost",
    "duplicated",
    "corrupt",
    "apdb_duplicates",
    "recovery_s",
    "left_behind",
)
"""The figures; what else there is, is in ``detail``."""

_ZERO = ("lost", "duplicated", "corrupt", "apdb_duplicates", "left_behind")
_DISK_BYTES = 256 << 20
_QUIET_SECONDS = 180.0
_SETTINGS: dict[str, Any] = {
    "retries": 3,
    "repo_retry_delay": 1.0,
    "spool_min_free": "4 MiB",
    "worker_timeout": 120.0,
    "stop_grace": 20.0,
    "initialize_automatically": True,
}
_IMAGE_TIMEOUT = 10.0
_SLOTS = 16
_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Soaked:
    """A soak that is over, with its PostgreSQL still there."""

    site: Site
    storm: Storm
    account: Account
    figures: dict[str, Any]


@contextlib.contextmanager
def soak(folder: Path, schedule: Schedule, say: Callable[[str], None]) -> Iterator[Soaked]:
    """Soak, and account for all.

    Parameters
    ----------
    folder : `pathlib.Path`
        An empty folder that other accounts may enter.
    schedule : `bench.soak_schedule.Schedule`
        What happens.
    say : callable
        Called with a line about how far it is, now and then.

    Yields
    ------
    soaked : `Soaked`
        Its ppd has ended; the databases are there until the context ends.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer(folder / "postgres", durable=True))
        disk = SoakDisk(folder, _DISK_BYTES)
        stack.callback(disk.close)
        clock = folder / "clock"
        move(clock, 0.0)
        place = Place(
            registry_url=server.create_database("central"),
            apdb_url=server.create_database("apdb"),
            state_dir=disk.path / "state",
            clock=clock,
        )
        site = stack.enter_context(Site(folder, _IMAGE_TIMEOUT, _SLOTS, place, **_SETTINGS))
        log = folder / "soak.log"
        log.write_text(_describe(schedule))
        storm = Storm(site, schedule, server, disk, clock, log, say)
        stack.callback(storm.watch.stop)
        storm.run(_QUIET_SECONDS)
        code = site.stop()
        storm.watch.look()
        left = site.left_behind()
        if code != 0:
            storm.wrong.append(f"ppd ended with exit code {code}")
        account = account_for(site, storm)
        yield Soaked(site, storm, account, _figures(schedule, storm, account, left))


def _describe(schedule: Schedule) -> str:
    lines = [f"seed {schedule.seed}, {schedule.seconds:g} s; planned:"]
    lines += [f"{v.at:9.3f} visit {v}" for v in schedule.visits]
    lines += [f"{f.at:9.3f} fault {f}" for f in schedule.faults]
    return "\n".join([*lines, "happened:", ""])


def _figures(schedule: Schedule, storm: Storm, account: Account, left: dict[str, int]) -> dict[str, Any]:
    seconds = [r.seconds for r in storm.recoveries if r.seconds is not None]
    calm = [r.seconds for r in storm.recoveries if r.seconds is not None and not r.amid]
    values = (
        schedule.seed,
        round(schedule.seconds / 60, 2),
        dict(sorted((storm.faults.counts + storm.kinds).items())),
        account.detector_visits,
        account.accounted,
        account.outputs_made,
        account.outputs_in_central,
        len(account.lost),
        len(account.duplicated),
        len(account.corrupt),
        len(account.apdb_duplicates),
        _spread(seconds),
        sum(left.values()) + len(account.orphans),
    )
    return {
        **dict(zip(KEYS, values, strict=True)),
        "detail": {
            "machine": {"cpus": os.cpu_count(), "load_15_min": round(os.getloadavg()[2], 1)},
            "skipped": dict(storm.faults.skipped),
            "ends": account.ends,
            "reasons": account.reasons,
            "recovery_without_other_faults_s": _spread(calm),
            "recoveries": [dataclasses.asdict(r) for r in storm.recoveries],
            "unwatched": account.unwatched,
            "quiet_s": round(storm.quiet_seconds, 1),
            "left_behind": left,
            "orphans": account.orphans[:_SHOWN],
            "wrong": storm.wrong[:_SHOWN],
        },
    }


def _spread(seconds: list[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "max": None}
    return {"p50": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}


def faults_of(soaked: Soaked) -> list[str]:
    """Say what is wrong, one line each, with the history of those detector-visits; nothing: all is well."""
    account = soaked.account
    lines = list(soaked.storm.wrong)
    lines += [f"left behind: {k} {n}" for k, n in soaked.figures["detail"]["left_behind"].items() if n]
    lines += [f"left behind: {line}" for line in account.orphans[:_SHOWN]]
    for name in ("lost", "duplicated", "corrupt", "apdb_duplicates"):
        for key, line in getattr(account, name)[:_SHOWN]:
            lines += [f"{name}: {line}", *(f"    {text}" for text in history(soaked.site, key))]
    return lines


def main() -> int:
    """Soak, and write the figures.

    Returns
    -------
    code : `int`
        0 if nothing was lost, made twice or left behind; 1 if anything was.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument(
        "--keep", type=Path, help="keep log, journal and repo in this folder, which must not exist"
    )
    parser.add_argument("--out", type=Path, default=Path("soak-results.json"), help="file for the figures")
    arguments = parser.parse_args()
    if not 0.1 <= arguments.minutes <= 24 * 60:
        parser.error("--minutes: 0.1 to 1440")
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, _end)
    private_mounts()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ppd-soak-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # PostgreSQL may run under another account
        schedule = draw_schedule(arguments.seed, 60.0 * arguments.minutes)
        soaked = stack.enter_context(soak(folder, schedule, lambda line: print(line, flush=True)))
        figures, faults = soaked.figures, faults_of(soaked)
        if arguments.keep is not None:
            _keep(soaked.site, arguments.keep)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for key in KEYS:
        print(f"{key:>18} {figures[key]}")
    for fault in faults:
        print(fault if fault.startswith(" ") else f"Wrong: {fault}")
    print(f"{arguments.out} has the figures.")
    return 1 if faults or any(figures[key] for key in _ZERO) else 0


def _keep(site: Site, to: Path) -> None:
    to.mkdir(parents=True)
    for path in (site.log, site.folder / "soak.log", site.config):
        shutil.copy(path, to)
    shutil.copytree(site.settings.state_dir, to / "state", ignore=shutil.ignore_patterns("*.ipc"))
    with contextlib.suppress(OSError):
        shutil.copy(site.folder / "postgres" / "log", to / "postgres.log")


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would disturb the clean-up
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
