"""The status page's server for tests, and a control socket that answers as the supervisor's does."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from ppd.focalplane import FocalPlane
from ppd.messages import ControlReply, ControlRequest, WebSetup, decode, encode
from ppd.web.door import Limits
from ppd.web.process import serving


def make_status(**changes: Any) -> dict[str, Any]:
    """Make an answer to ``status``, as far as the page reads it."""
    return {
        "health": "ok",
        "pid": 4711,
        "instrument": "LSSTCam",
        "deployment": "pipelines-0000000-config-0000000",
        "paused": {"all": None, "detectors": {}},
        "slots": {"used": 3, "total": 32},
        "processors": {"used": 2, "total": 2, "queued": 1},
        "cache": {"datasets": 100, "bytes_held": 10**9, "bytes_fetched": 0, "evicted": 0, "leases": 3},
        "spool": {"entries": 2, "bytes": 10**7, "deferred": 0, "max_bytes": 10**10, "dead_letters": 0},
        "loop": {"turns": 1, "busy": 0.1, "longest": 0.1, "longest_minute": 0.01},
        "raws_waiting": 0,
        "errors": [],
        **changes,
    }


def make_visit(group: str, states: dict[str, int], begin: float, **changes: Any) -> dict[str, Any]:
    """Make one of the visits of an answer to ``detectors``; it is over if its states are."""
    over = not set(states) - {"exported", "failed"}
    return {
        "group": group,
        "filter": "r_57",
        "accepted": begin,
        "raw": begin + 10.0,
        "exported": begin + 30.0 if "exported" in states else None,
        "over": begin + 30.0 if over else None,
        "slowest": 20.0 if "exported" in states else None,
        "states": states,
        "alerts": {"late": 0, "expected_late": 0, **changes.pop("alerts", {})},
        **changes,
    }


def make_overview(detectors: dict[str, Any], visits: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Make an answer to ``detectors``."""
    return {
        "detectors": detectors,
        "visits": visits,
        "faults": [],
        "unready": [],
        "started": 1000.0,
        "alert_deadline": 60.0,
        "cache_bytes": 4 * 2**30,
        **changes,
    }


class StandIn:
    """A control socket with the real messages; what it answers is what a test has put there.

    Parameters
    ----------
    folder : `pathlib.Path`
        Folder of the socket.
    """

    def __init__(self, folder: Path):
        self._path = folder / "control.ipc"
        self.answers: dict[str, ControlReply | Callable[[ControlRequest], ControlReply]] = {}
        self.asked: list[ControlRequest] = []
        self.set(make_status(), make_overview({}, []))
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def set(self, status: dict[str, Any], overview: dict[str, Any]) -> None:
        """Answer with these from now on."""
        self.answers["status"] = ControlReply(ok=True, result=status)
        self.answers["detectors"] = ControlReply(ok=True, result=overview)

    def start(self) -> None:
        """Answer."""
        self._end.clear()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be gone."""
        if self._thread is not None:
            self._end.set()
            self._thread.join(5.0)
            self._thread = None

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(f"ipc://{self._path}")
            while not self._end.is_set():
                if not socket.poll(20):
                    continue
                *envelope, body = socket.recv_multipart()
                request = decode(body)
                self.asked.append(request)
                nothing = ControlReply(ok=False, code="unknown", error="No such thing.")
                answer = self.answers.get(request.command, nothing)
                reply = answer(request) if callable(answer) else answer
                socket.send_multipart([*envelope, encode(reply)])
        self._path.unlink(missing_ok=True)


class Site:
    """The page's server in a thread of its own.

    Parameters
    ----------
    address : `str`
        URL of the page.
    """

    def __init__(self, address: str):
        self.address = address
        host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
        self.host, self.port = host, int(port)

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Ask for a path as it is, and return status, headers and text."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10.0)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """Ask for JSON that is there."""
        status, _, text = self.ask(path)
        assert status == 200, text
        return json.loads(text)

    @contextlib.contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Listen as a page does; yields name and data of what is told, but for beats."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10.0)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.status == 200
        try:
            yield _parse(answer)
        finally:
            answer.close()
            connection.close()


def _parse(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    while line := answer.readline():
        key, _, value = line.decode().strip().partition(": ")
        if key == "event":
            name = value
        elif key == "data" and name != "beat":
            yield name, json.loads(value)


def make_setup(plane: FocalPlane, sockets: Path, state: Path, **changes: Any) -> WebSetup:
    """Make what the supervisor tells the page's process; the port is any that is free."""
    shapes = [
        {
            "id": d.id,
            "name": d.name,
            "x": (d.x_min, d.x_max, d.x_max, d.x_min),
            "y": (d.y_min, d.y_min, d.y_max, d.y_max),
        }
        for d in plane.detectors
    ]
    return WebSetup.model_validate(
        {
            "instrument": "LSSTCam",
            "detectors": shapes,
            "host": "127.0.0.1",
            "port": 0,
            "token_file": None,
            "visits": False,
            "socket_dir": str(sockets),
            "state_dir": str(state),
            "log": {"log_level": "INFO", "log_format": "text", "log_levels": {}},
            **changes,
        }
    )


@contextlib.contextmanager
def site(setup: WebSetup, limits: Limits | None = None) -> Iterator[Site]:
    """Serve the page in a thread."""
    loop = asyncio.new_event_loop()
    found: list[str] = []
    ready, end = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(setup, limits) as address:
            found.append(address)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10.0)
    try:
        yield Site(found[0])
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10.0)
        assert not thread.is_alive()
        loop.close()
