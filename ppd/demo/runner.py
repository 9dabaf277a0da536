"""Running the demo: simulate, initialize, start ppd, play, stop, report."""

from __future__ import annotations

__all__ = ["run_demo"]

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lsst.daf.butler import Butler
from rich.console import Console

from ..config import Settings
from ..control import ControlClient, NoSupervisorError
from ..deployment import chain_name, date_string, day_obs
from .camera import INSTRUMENT
from .configuration import write_config
from .history import read_history
from .leftovers import count_leftovers
from .matching import collection_exists, read_results
from .night import NightPlan, simulate_night
from .player import NightPlayer
from .summary import print_summary, summarize_night

_LOG = logging.getLogger(__name__)

_START_SECONDS = 90.0
_DRAIN_SECONDS = 180.0
_STOP_SECONDS = 45.0
_PAGE_SECONDS = 10.0


class _Interrupt:
    """Notes Ctrl-C: the first ends the night early, the second everything."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


def run_demo(output: Path, *, visits: int, seed: int, cadence: float) -> int:
    """Run the demo.

    Parameters
    ----------
    output : `pathlib.Path`
        Folder for the results; what an earlier demo left in it is removed.
    visits : `int`
        How many visits.
    seed : `int`
        Seed of the sky.
    cadence : `float`
        Seconds from visit to visit.

    Returns
    -------
    code : `int`
        0; 1 if something of the night failed; 130 after Ctrl-C.
    """
    begin = time.monotonic()
    console = Console(highlight=False)
    interrupt = _Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    output = output.resolve()
    _clear(output)
    console.print(f"Simulating sky, templates, calibs and raws of {visits} visits (seed {seed}) …")
    plan = simulate_night(output, visits=visits, seed=seed, cadence=cadence)
    with _socket_folder() as sockets:
        settings = write_config(output, plan, sockets / "sockets")
        console.print(f"Simulated in {time.monotonic() - begin:.0f} s. Running ppd-init …")
        _run_init(settings)
        try:
            if not interrupt.count:
                _night(settings, plan, output, console, interrupt)
        finally:
            left_behind = count_leftovers(settings)
    chain = chain_name(INSTRUMENT, date_string(day_obs(time.time())))
    summary = _report(plan, settings, chain, output, time.monotonic() - begin, left_behind, console)
    print_summary(summary, console)
    for name in ("report.html", "summary.json", "central_repo"):
        console.print(f"  {output / name}")
    if interrupt.count:
        return 130
    fine = summary["failed"] == 0 and summary["succeeded"] == 9 * visits and not any(left_behind.values())
    return 0 if fine else 1


def _night(
    settings: Settings, plan: NightPlan, output: Path, console: Console, interrupt: _Interrupt
) -> None:
    """Start ppd, play the night against it, and end it."""
    log = output / "ppd.log"
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C is ours to pass on, once.
        daemon = subprocess.Popen(
            [sys.executable, "-m", "ppd.cli.daemon", "--config", str(settings.config_path)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(),
        )
    client = ControlClient(settings.socket_dir, timeout=5.0)
    publisher = ControlClient(settings.socket_dir, timeout=10.0)
    player = NightPlayer(plan, settings.raw_dirs[0], publisher.submit)
    try:
        if not _await_ready(daemon, client, interrupt):
            if not interrupt.count:
                raise RuntimeError(f"ppd did not start; see {log}")
            return
        address = _await_page(client)
        if address is not None:
            console.print(f"Look at the night, while it goes on: {address}", soft_wrap=True)
        console.print("ppd is ready; the night begins.")
        player.start()
        progress = _Progress(console, len(plan.visits))
        while player.playing and not interrupt.count and daemon.poll() is None:
            progress.show(client, player)
            time.sleep(0.5)
        if interrupt.count:
            console.print("\nInterrupted: the night ends early.")
            return
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline and not interrupt.count and daemon.poll() is None:
            progress.show(client, player)
            if client.drain():
                break
            time.sleep(0.3)
        progress.end()
    finally:
        player.stop()
        _end(daemon, console)
        client.close()
        publisher.close()


class _Progress:
    """One line that says what happens: in place on a terminal, else now and then."""

    def __init__(self, console: Console, visits: int):
        self._console = console
        self._visits = visits
        self._last = 0.0
        self._begin = time.monotonic()

    def show(self, client: ControlClient, player: NightPlayer) -> None:
        interactive = self._console.is_terminal
        if not interactive and time.monotonic() - self._last < 5.0:
            return
        self._last = time.monotonic()
        try:
            status = client.status()
        except NoSupervisorError:
            return
        states: dict[str, Any] = status["detector_visits"]
        busy = sum(states[k] for k in ("accepted", "waiting", "forked", "ready"))
        line = (
            f"{time.monotonic() - self._begin:4.0f} s  visits {player.announced}/{self._visits}  "
            f"raws {status['counts'].get('raws_seen', 0)}  detector-visits: {busy} waiting, "
            f"{states['running']} running, {states['handed_over']} in spool, "
            f"{states['exported']} exported, {states['failed']} failed"
        )
        if interactive:
            self._console.print(f"\r{line}", end="\r", soft_wrap=True)
        else:
            self._console.print(line, soft_wrap=True)

    def end(self) -> None:
        if self._console.is_terminal:
            self._console.print()


def _await_ready(daemon: subprocess.Popen, client: ControlClient, interrupt: _Interrupt) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and daemon.poll() is None and not interrupt.count:
        try:
            client.status(timeout=0.5)
            return True
        except NoSupervisorError:
            continue
    return False


def _await_page(client: ControlClient) -> str | None:
    """Ask where the status page is; `None`: it is nowhere, and the night does without."""
    deadline = time.monotonic() + _PAGE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(NoSupervisorError):
            web = client.status()["web"]
            if web["address"] or web["trouble"]:
                return str(web["address"]) if web["address"] else None
        time.sleep(0.2)
    return None


def _end(daemon: subprocess.Popen, console: Console) -> None:
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(_STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        console.print("ppd does not end; it is killed.")
        daemon.kill()
        daemon.wait(10.0)


def _clear(output: Path) -> None:
    marker = output / ".ppd-demo"
    if output.exists() and any(output.iterdir()):
        if not marker.exists():
            raise SystemExit(f"{output} is not empty and no earlier demo made it; choose another --output.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()


@contextlib.contextmanager
def _socket_folder() -> Iterator[Path]:
    # The path of a Unix socket may have 107 bytes; a checkout may lie deep.
    folder = Path(tempfile.mkdtemp(prefix="ppd-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_init(settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ppd.cli.init", "--config", str(settings.config_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"ppd-init failed ({done.returncode}):\n{done.stdout}{done.stderr}")


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _report(
    plan: NightPlan,
    settings: Settings,
    chain: str,
    output: Path,
    wall_s: float,
    left_behind: dict[str, int],
    console: Console,
) -> dict[str, Any]:
    from .report import write_report

    with Butler.from_config(plan.central, writeable=False) as butler:
        known = collection_exists(butler, chain)
        alerts, times = _alerts(butler, plan, chain) if known else (0, {})
    results = read_results(plan, chain if known else None)
    history = read_history(settings.state_dir / "journal.sqlite3", times)
    summary = summarize_night(
        wall_s=wall_s,
        planned=len(plan.visits),
        history=history,
        results=results,
        alerts=alerts,
        left_behind=left_behind,
    )
    start = time.monotonic()
    write_report(output / "report.html", plan, chain if known else None, history, results, summary)
    summary["wall_s"] = round(wall_s + time.monotonic() - start, 1)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _alerts(butler: Butler, plan: NightPlan, chain: str) -> tuple[int, dict[tuple[str, int], float]]:
    groups = {v.exposure: v.group for v in plan.visits}
    count, times = 0, {}
    for ref in butler.query_datasets("alert_summary", collections=chain, explain=False, limit=None):
        summary = butler.get(ref)
        count += int(summary["n_alerts"])
        times[groups[int(ref.dataId["visit"])], int(ref.dataId["detector"])] = float(summary["time"])
    return count, times
