"""The benchmark's command: ``python -m bench``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import logging
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

from .central import CentralRepo, build_central
from .durability import measure_durability
from .life import measure_life
from .merging import merge_part
from .report import describe_machine, draw, show_table, write_results
from .rows import ForkTimes, Row, median_rows
from .servers import PostgresServer
from .sight import measure_sight
from .site import measure_site
from .sky import choose_detectors, make_visits

_PARTS = ("inputs", "life", "durability", "sight", "site")
_BACKENDS = ("sqlite", "postgresql")
_WAYS = {"ppd": "bench.ppd_way", "per-worker": "bench.per_worker"}
# What takes long once is measured once.
_REPEATS = 3
_FEW_DETECTORS = 9


def main() -> int:
    """Measure, and leave table, picture and figures.

    Returns
    -------
    code : `int`
        0; 1 if anything that was asked for could not be measured.
    """
    arguments = _parse()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    logging.disable(logging.WARNING)
    # So that everything that was begun is ended by those who began it.
    signal.signal(signal.SIGTERM, _end)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if "life" in arguments.only:
        figures = measure_life()
        merge_part(arguments.out / "results.json", "life", figures)
        console.print_json(data=figures)
    if "durability" in arguments.only:
        figures = measure_durability(arguments.small, console.print)
        merge_part(arguments.out / "results.json", "durability", figures)
        console.print_json(data=figures)
    if "sight" in arguments.only:
        figures = measure_sight(console.print)
        merge_part(arguments.out / "results.json", "sight", figures)
        console.print_json(data=figures)
    if "site" in arguments.only:
        figures = measure_site(console.print)
        merge_part(arguments.out / "results.json", "site", figures)
        console.print_json(data=figures)
    if "inputs" not in arguments.only:
        return 0
    run = _Run(console, time.monotonic() + 60.0 * arguments.minutes)
    ways = run.load_ways(arguments.ways)
    with tempfile.TemporaryDirectory(prefix="ppd-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # the PostgreSQL server may run under another account
        repos = list(run.build(folder, arguments.backends, stack))
        for count in arguments.detectors:
            run.measure(repos, ways, count)
        fork = run.measure_fork(repos, ways)
    rows = run.rows()
    if not rows:
        console.print("Nothing was measured.")
        return 1
    show_table(rows, console)
    results, picture = arguments.out / "results.json", arguments.out / "inputs.png"
    write_results(results, rows, fork, describe_machine(run.postgresql))
    draw(picture, rows)
    console.print(f"{results} has all figures, {picture} draws them.")
    return 1 if run.failed else 0


class _Run:
    """One run of the benchmark: what it has measured so far, and how long it may go on.

    Parameters
    ----------
    console : `rich.console.Console`
        Where to say what goes on.
    deadline : `float`
        When to begin nothing more, monotonic clock.
    """

    def __init__(self, console: Console, deadline: float):
        self._console = console
        self._deadline = deadline
        self._repeats: dict[tuple[str, str, int], list[list[Row]]] = defaultdict(list)
        self._seconds_per_detector: dict[tuple[str, str], float] = {}
        self.failed = False
        self.postgresql: str | None = None

    def load_ways(self, names: Sequence[str]) -> dict[str, ModuleType]:
        """Import the modules that measure the ways."""
        return {name: importlib.import_module(_WAYS[name]) for name in names}

    def build(
        self, folder: Path, backends: Sequence[str], stack: contextlib.ExitStack
    ) -> Iterator[CentralRepo]:
        """Build the same central repo on each kind of database."""
        for backend in backends:
            try:
                repo = self._build(folder, backend, stack)
            except RuntimeError as e:
                self._give_up(f"No repo on {backend}: {e}")
                continue
            self._console.print(
                f"Built the central repo on {backend}: {repo.datasets:,} datasets, {repo.seconds:.0f} s."
            )
            yield repo

    def _build(self, folder: Path, backend: str, stack: contextlib.ExitStack) -> CentralRepo:
        payloads = folder / "payloads"
        if backend == "sqlite":
            return build_central(folder / backend, payloads)
        server = stack.enter_context(PostgresServer(folder / "server"))
        self.postgresql = server.version()
        repo = build_central(folder / backend, payloads, server.create_database("central"))
        server.analyze("central")
        return repo

    def measure(self, repos: Sequence[CentralRepo], ways: dict[str, ModuleType], count: int) -> None:
        """Measure all ways on all repos in turn, so that what disturbs one disturbs the others."""
        order = list(ways.items())
        for _ in range(_REPEATS if count <= _FEW_DETECTORS else 1):
            for repo in repos:
                for way, module in order:
                    self._measure(repo, way, module.measure, count)
            order.reverse()

    def _measure(self, repo: CentralRepo, way: str, measure: Callable, count: int) -> None:
        key = (way, repo.backend)
        begin = time.monotonic()
        if begin + self._seconds_per_detector.get(key, 0.0) * count > self._deadline:
            self._give_up(f"No time is left for {way} on {repo.backend} with {count} detectors.")
            return
        try:
            rows = measure(repo, choose_detectors(count), make_visits())
        except (MemoryError, RuntimeError) as e:
            self._give_up(f"{way} on {repo.backend} with {count} detectors: {e}")
            return
        seconds = time.monotonic() - begin
        self._seconds_per_detector[key] = seconds / count
        self._repeats[(*key, count)].append(rows)
        times = ", ".join(f"{row.state} {row.ready_all_s:.2f} s" for row in rows)
        self._console.print(f"{count:4d} detectors, {repo.backend}, {way}: {times} ({seconds:.0f} s in all)")

    def measure_fork(self, repos: Sequence[CentralRepo], ways: dict[str, ModuleType]) -> ForkTimes | None:
        """Measure what a way that forks may tell of it."""
        for module in ways.values():
            if repos and hasattr(module, "measure_fork"):
                try:
                    times: ForkTimes = module.measure_fork(repos[0])
                except RuntimeError as e:
                    self._give_up(f"Times of forks: {e}")
                else:
                    return times
        return None

    def rows(self) -> list[Row]:
        """All rows, medians where a measurement was repeated."""
        return [row for repeats in self._repeats.values() for row in median_rows(repeats)]

    def _give_up(self, reason: str) -> None:
        self.failed = True
        self._console.print(reason)


def _end(number: int, _: object) -> None:
    print(f"Ended by {signal.Signals(number).name}.", file=sys.stderr)
    sys.exit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compare ppd with one process per detector: how inputs get ready.",
    )
    parser.add_argument(
        "--detectors",
        type=lambda text: sorted({int(n) for n in text.split(",")}),
        default="1,9,45,189",
        help="how many detectors, a list with commas (default %(default)s)",
    )
    for name, known in (("only", _PARTS), ("backends", _BACKENDS), ("ways", tuple(_WAYS))):
        parser.add_argument(
            f"--{name}",
            type=_list_of(known),
            default=",".join(known),
            help="a list with commas (default %(default)s)",
        )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        help="folder for results.json and inputs.png (default: that of the benchmark)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=19.0,
        help="begin nothing that would not end in so many minutes (default %(default)s)",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="measure little of durability: to see that it works, not to compare",
    )
    arguments = parser.parse_args()
    if not all(1 <= n <= 189 for n in arguments.detectors):
        parser.error("--detectors: the camera has 1 to 189 science detectors")
    if "inputs" in arguments.only and importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install -r requirements-bench.txt")
    return arguments


def _list_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; there are {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
