"""What it costs to be looked at: the status page and ``ppdctl status``, with 189 detectors in flight."""

from __future__ import annotations

__all__ = ["measure_sight"]

import contextlib
import http.client
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ppd.messages import ControlRequest

from .central import build_central
from .ppd_way import running
from .sky import choose_detectors, make_visits

_DETECTORS = 189
_WINDOW_SECONDS = 30.0
_LOOKS = 100
_COMMANDS = 40
_SCRAPE_SECONDS = 15.0
_SCRAPES = 50
_PAGE_PATHS = ("/", "/static/page.css", "/static/page.js", "/api/focal-plane")


def measure_sight(say: Callable[[str], None]) -> dict[str, Any]:
    """Measure it, on a real ppd whose 189 children wait for their raws.

    Parameters
    ----------
    say : callable
        Told what goes on.

    Returns
    -------
    figures : `dict`
        ``metrics_cpu_share``: of one processor, by supervisor and page for
        ``/metrics`` every 15 seconds.  ``page_cpu_share``: of one processor, by the page's process while one
        page is open, from the announcement of a visit on, and by the
        supervisor for what the page asks once a second.  ``status_p95_s``:
        of ``ppdctl status``, as a command, from its start to its end.  The
        rest tells what these are made of.
    """
    with tempfile.TemporaryDirectory(prefix="ppd-sight-") as name:
        folder = Path(name)
        repo = build_central(folder / "sqlite", folder / "payloads")
        say(f"Built the central repo: {repo.datasets:,} datasets.")
        with running(repo, http_listen="127.0.0.1:0", image_timeout=600.0) as ppd:
            ppd.wait(lambda: ppd.client.status()["web"]["address"], "the page to be there")
            address = ppd.client.status()["web"]["address"]
            supervisor = psutil.Process(ppd.client.status()["pid"])
            page = _page_of(supervisor)
            idle = _share(page, 5.0)
            with _open_page(address) as told:
                before, begin = _seconds(page), time.monotonic()
                visit = make_visits().cold
                ppd.announce(visit, choose_detectors(_DETECTORS))
                ppd.opened(visit.groupId, _DETECTORS)
                say(f"{_DETECTORS} children are ready after {time.monotonic() - begin:.0f} s.")
                time.sleep(max(0.0, _WINDOW_SECONDS - (time.monotonic() - begin)))
                shares = (_seconds(page) - before) / (time.monotonic() - begin)
                steady = _share(page, 10.0)
                commands, processor = _time_commands(ppd.socket_dir)
            per_look, size = _cost_of_looks(ppd.client.request, supervisor)
            per_scrape, scraped = _cost_of_scrapes(address, [supervisor, page])
            memory = page.memory_info().rss
    return {
        "detectors": _DETECTORS,
        "metrics_cpu_share": per_scrape / _SCRAPE_SECONDS,
        "metrics_bytes": scraped,
        "page_cpu_share": shares + per_look,
        "page_process_cpu_share": shares,
        "page_process_steady_cpu_share": steady,
        "page_process_idle_cpu_share": idle,
        "supervisor_seconds_per_look": per_look,
        "bytes_per_look": size,
        "bytes_to_the_page": told[0],
        "page_memory_mb": memory / 1e6,
        "status_p95_s": float(np.percentile(commands, 95)),
        "status_p50_s": float(np.percentile(commands, 50)),
        "status_cpu_s": processor,
    }


def _page_of(supervisor: psutil.Process) -> psutil.Process:
    return next(p for p in supervisor.children() if "ppd.web.process" in p.cmdline())


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _share(process: psutil.Process, seconds: float) -> float:
    before = _seconds(process)
    time.sleep(seconds)
    return (_seconds(process) - before) / seconds


@contextlib.contextmanager
def _open_page(address: str) -> Iterator[list[int]]:
    """Do what a browser does with the page; yields how many bytes it was told."""
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    told = [0]
    for path in _PAGE_PATHS:
        once = http.client.HTTPConnection(host, int(port), timeout=10.0)
        once.request("GET", path)
        once.getresponse().read()
        once.close()
    stream = http.client.HTTPConnection(host, int(port), timeout=10.0)
    stream.request("GET", "/events")
    answer = stream.getresponse()

    def read() -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            while data := answer.read1(1 << 16):
                told[0] += len(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield told
    finally:
        if stream.sock is not None:
            stream.sock.close()
        stream.close()
        reader.join(12.0)


def _time_commands(socket_dir: Path) -> tuple[list[float], float]:
    """Time ``ppdctl status`` as a command; and its processor time, which a busy machine does not change."""
    command = [sys.executable, "-m", "ppd.cli.ctl", "status", "--socket-dir", str(socket_dir)]
    times = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(_COMMANDS):
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        times.append(time.monotonic() - begin)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times, spent / _COMMANDS


def _cost_of_looks(request: Callable[[ControlRequest], Any], supervisor: psutil.Process) -> tuple[float, int]:
    """What the supervisor spends on one look of the page, beyond what it spends anyway; and its bytes."""
    begin, before = time.monotonic(), _seconds(supervisor)
    time.sleep(5.0)
    anyway = (_seconds(supervisor) - before) / (time.monotonic() - begin)
    begin, before = time.monotonic(), _seconds(supervisor)
    size = 0
    for _ in range(_LOOKS):
        replies = [request(ControlRequest(command=name)) for name in ("status", "detectors")]
        size = sum(len(reply.model_dump_json()) for reply in replies)
    spent = _seconds(supervisor) - before - anyway * (time.monotonic() - begin)
    return max(0.0, spent) / _LOOKS, size


def _cost_of_scrapes(address: str, processes: list[psutil.Process]) -> tuple[float, int]:
    """What one answer of ``/metrics`` costs, seconds of a processor; and its bytes."""
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")

    def spent() -> float:
        return sum(map(_seconds, processes))

    begin, before = time.monotonic(), spent()
    time.sleep(5.0)
    anyway = (spent() - before) / (time.monotonic() - begin)
    begin, before, size = time.monotonic(), spent(), 0
    for _ in range(_SCRAPES):
        time.sleep(0.1)  # it is limited how often one may ask
        once = http.client.HTTPConnection(host, int(port), timeout=10.0)
        once.request("GET", "/metrics")
        answer = once.getresponse()
        body = answer.read()
        once.close()
        if answer.status != 200:
            raise RuntimeError(f"/metrics answers {answer.status}: {body[:200]!r}")
        size = len(body)
    return max(0.0, spent() - before - anyway * (time.monotonic() - begin)) / _SCRAPES, size
