"""Whether every detector-visit ends in one known state: ``python -m bench.soak_night``.

A night in compressed time on a real ppd, with bad raws, killed children and
repeated announcements.  What has to become of each detector-visit follows
from what was done to it, never from what ppd says of it.
"""

from __future__ import annotations

__all__ = ["KEYS", "Bounds", "Night", "faults_of", "main", "soak"]

import argparse
import contextlib
import dataclasses
import json
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .soak_play import Play
from .soak_site import Site
from .soak_verdict import Verdict, judge

KEYS = (
    "visits",
    "detector_visits",
    "bad_raws",
    "killed",
    "succeeded",
    "failed_expected",
    "lost",
    "duplicated",
    "rss_growth_mb",
    "fd_growth",
    "left_behind",
)
"""The figures; what else there is, is in ``detail``."""

_IMAGE_TIMEOUT = 6.0
# Beside those of one visit: some wait for raws that never come, and two work.
_MORE_SLOTS = 9
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much supervisor and nursery may grow from the 20th visit to the last.

    The supervisor's Python objects stay as many from the 30th visit on; what
    still grows is the allocator's share, as SQLAlchemy's caches of statements
    turn over (the middleware names a temporary table anew for each import).
    """

    rss_mb: float = 40.0
    fds: int = 8


@dataclasses.dataclass(frozen=True)
class Night:
    """A night that was played, and its figures."""

    site: Site
    play: Play
    figures: dict[str, Any]


def soak(folder: Path, *, visits: int, detectors: int, seed: int, say: Callable[[str], None]) -> Night:
    """Play a night and judge it.

    Parameters
    ----------
    folder : `pathlib.Path`
        An empty folder.
    visits, detectors, seed : `int`
        How many, and the seed of all chance.
    say : callable
        Called with a line about how far it is, now and then.

    Returns
    -------
    night : `Night`
        Its ppd has ended; the folder still has all that it left.
    """
    with Site(folder, _IMAGE_TIMEOUT, detectors + _MORE_SLOTS) as site:
        play = Play(site, visits, detectors, seed, say)
        play.run()
        code = site.stop()
        left = site.left_behind()
        verdict = judge(site, play.fates, play.executioner)
    counts = play.status.get("counts", {})
    for name in ("internal_errors", "dead_letters", "child_messages_refused", "nursery_restarts"):
        if counts.get(name):
            play.faults.append(f"ppd counts {counts[name]} {name}")
    if code != 0:
        play.faults.append(f"ppd ended with exit code {code}")
    growth = play.usage.growth(visits)
    killed = [k for k in play.fates if any(d.outcome == "hit" for d in play.executioner.of(k))]
    values = (
        visits,
        len(play.fates),
        sum(f.plan.kind != "good" for f in play.fates.values()),
        len(killed),
        verdict.succeeded,
        verdict.failed_expected,
        len(verdict.lost),
        len(verdict.duplicated),
        growth.rss_mb,
        growth.fds,
        sum(left.values()) + len(verdict.orphans),
    )
    figures = {
        **dict(zip(KEYS, values, strict=True)),
        "detail": {"seed": seed, "left_behind": left, **_detail(play, verdict), "growth": growth.detail},
    }
    return Night(site, play, figures)


def _detail(play: Play, verdict: Verdict) -> dict[str, Any]:
    dooms = [d for key in play.fates for d in play.executioner.of(key)]
    lists = {f.name: getattr(verdict, f.name) for f in dataclasses.fields(verdict)}
    return {
        "seconds": round(play.busy_seconds, 1),
        "signals": len([d for d in dooms if d.outcome == "hit"]),
        "signals_too_late": len([d for d in dooms if d.outcome == "missed"]),
        "replies": dict(play.replies),
        **{name: value[:_SHOWN] for name, value in lists.items() if isinstance(value, list)},
        "faults": play.faults[:_SHOWN],
        "outcomes": verdict.outcomes,
        "reasons": verdict.reasons,
        "counts": play.status.get("counts", {}),
        "stages_seconds": {s: round(play.executioner.usual(s), 3) for s in ("life", "preprocess", "main")},
        "supervisor_uss_mb": play.usage.course("supervisor"),
        "nursery_uss_mb": play.usage.course("nursery"),
    }


def faults_of(figures: dict[str, Any], bounds: Bounds) -> list[str]:
    """Say what is wrong with a night, one line each; nothing: it was as it must be."""
    faults = [f"{figures[k]} {k}" for k in ("lost", "duplicated", "left_behind") if figures[k]]
    detail = figures["detail"]
    faults += [f"{len(detail[k])} {k}" for k in ("wrong", "inconsistent") if detail[k]]
    faults += detail["faults"]
    if figures["rss_growth_mb"] > bounds.rss_mb:
        faults.append(f"memory grew by {figures['rss_growth_mb']} MiB, more than {bounds.rss_mb}")
    if figures["fd_growth"] > bounds.fds:
        faults.append(f"descriptors grew by {figures['fd_growth']}, more than {bounds.fds}")
    return faults


def main() -> int:
    """Soak, and write the figures.

    Returns
    -------
    code : `int`
        0 if all ended as it must; 1 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.soak_night", description=__doc__)
    parser.add_argument("--visits", type=_count(10_000), default=200, help="default %(default)s")
    parser.add_argument("--detectors", type=_count(9), default=9, help="1 to 9, default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--keep", type=Path, help="keep everything in this folder, which must not exist")
    default = Path(__file__).parent / "soak-night.json"
    parser.add_argument("--out", type=Path, default=default, help="file for the figures")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, _end)
    with contextlib.ExitStack() as stack:
        if arguments.keep is not None:
            folder = arguments.keep.resolve()
            folder.mkdir(parents=True)
        else:
            folder = Path(tempfile.mkdtemp(prefix="ppd-soak-night-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        figures = soak(
            folder,
            visits=arguments.visits,
            detectors=arguments.detectors,
            seed=arguments.seed,
            say=lambda line: print(line, flush=True),
        ).figures
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for key, value in figures.items():
        if key != "detail":
            print(f"{key:>16} {value}")
    faults = faults_of(figures, Bounds())
    for fault in faults:
        print(f"Wrong: {fault}")
    print(f"{arguments.out} has the figures.")
    return 1 if faults else 0


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would disturb the clean-up
    sys.exit(128 + number)


def _count(limit: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not 1 <= number <= limit:
            raise argparse.ArgumentTypeError(f"must be 1 to {limit}")
        return number

    return parse


if __name__ == "__main__":
    sys.exit(main())
