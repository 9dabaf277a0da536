"""The status page's process: it is kept, it is poor in rights, and it never outlives its supervisor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from observatory import wait_for
from page_support import Site

from ppd._keys import make_server
from ppd.config import Settings
from ppd.demo.camera import focal_plane
from ppd.supervisor.web_keeper import WebKeeper


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="ppd-test-") as sockets:
        yield _settings(tmp_path, Path(sockets))


def _settings(folder: Path, sockets: Path, **changes: Any) -> Settings:
    return Settings.model_validate(
        {
            "instrument": "DemoCam",
            "central_repo": "nowhere",
            "main_pipelines": [{"pipelines": ["x.yaml"]}],
            "state_dir": str(folder),
            "socket_dir": str(sockets),
            "http_listen": "127.0.0.1:0",
            **changes,
        }
    )


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Settings], WebKeeper]]:
    """Make keepers, and end them; a secret is in the supervisor's environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    kept: list[WebKeeper] = []

    def make(settings: Settings) -> WebKeeper:
        kept.append(WebKeeper(settings, focal_plane()))
        return kept[-1]

    yield make
    for keeper in kept:
        pids = keeper.pids
        keeper.stop(5.0)
        assert not any(psutil.pid_exists(pid) for pid in pids)


def _await(keeper: WebKeeper, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    def turn() -> Any:
        keeper.turn()
        return condition()

    return wait_for(turn, seconds, "the status page")


def test_start_and_rights(settings: Settings, keep: Callable[[Settings], WebKeeper]) -> None:
    keeper = keep(settings)
    address = _await(keeper, lambda: keeper.state.address)
    assert keeper.fault() is None
    assert keeper.describe() == {"address": address, "gate": None, "trouble": None}
    assert len(Site(address).json("/api/focal-plane")["detectors"]) == 9
    (pid,) = keeper.pids
    process = psutil.Process(pid)
    assert process.nice() >= 10
    assert os.getsid(pid) == pid
    assert "AWS_SECRET_ACCESS_KEY" not in process.environ()
    assert "lsst" not in Path(f"/proc/{pid}/maps").read_text()
    with Site(address).events():
        begin = time.monotonic()
        keeper.stop(20.0)
        assert time.monotonic() < begin + 10.0
    assert not psutil.pid_exists(pid)


def test_an_end_unasked_is_a_fault_and_it_begins_anew(
    settings: Settings, keep: Callable[[Settings], WebKeeper]
) -> None:
    keeper = keep(settings)
    _await(keeper, lambda: keeper.state.address)
    (pid,) = keeper.pids
    os.kill(pid, signal.SIGKILL)
    assert "ended unasked (-9)" in _await(keeper, keeper.fault)
    _await(keeper, lambda: keeper.state.address)
    assert keeper.fault() is None
    assert keeper.pids != {pid}


def test_gate_without_a_page(
    settings: Settings, keep: Callable[[Settings], WebKeeper], tmp_path: Path
) -> None:
    """It is served alone; what is wrong with it is said, and mended without a restart."""
    keys = tmp_path / "keys"
    changes = {"http_listen": None, "control_listen": "127.0.0.1:0", "control_keys": keys}
    keeper = keep(settings.model_copy(update=changes))
    fault = _await(keeper, keeper.fault)
    assert fault.startswith(f"web: control_listen: {keys}/server.key_secret has no key")
    make_server(keys)
    assert _await(keeper, lambda: keeper.state.gate).startswith("tcp://127.0.0.1:")
    assert (keeper.fault(), keeper.state.address) == (None, None)


def test_a_port_in_use(settings: Settings, keep: Callable[[Settings], WebKeeper]) -> None:
    """It is said, and it is there once the port is free; another setting counts at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        keeper = keep(settings.model_copy(update={"http_listen": f"127.0.0.1:{port}"}))
        fault = _await(keeper, keeper.fault)
        assert fault.startswith(f"web: 127.0.0.1:{port} is used by another program; set http_listen")
    assert _await(keeper, lambda: keeper.state.address) == f"http://127.0.0.1:{port}/"
    before = keeper.pids
    keeper.reconfigure(settings)
    keeper.reconfigure(settings)
    _await(keeper, lambda: keeper.state.address and keeper.pids != before)
    assert keeper.fault() is None
    assert not keeper.state.address.endswith(f":{port}/")
    keeper.reconfigure(settings.model_copy(update={"http_listen": None}))
    _await(keeper, lambda: not keeper.pids)
    assert (keeper.fault(), keeper.fileno()) == (None, -1)


def test_it_ends_with_a_killed_supervisor(settings: Settings) -> None:
    """At once, whatever it was at."""
    program = (
        "import sys, time; from pathlib import Path; from ppd.config import Settings;"
        "from ppd.demo.camera import focal_plane; from ppd.supervisor.web_keeper import WebKeeper;"
        "keeper = WebKeeper(Settings.model_validate_json(sys.stdin.read()), focal_plane());\n"
        "end = time.monotonic() + 60.0\n"
        "while time.monotonic() < end and not keeper.fault():\n keeper.turn(); time.sleep(0.05)\n"
        " if keeper.state.address: print(*keeper.pids, flush=True)\n"
        "print(keeper.fault())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(settings.model_dump_json())
        parent.stdin.close()
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    begin = time.monotonic()
    wait_for(lambda: not psutil.pid_exists(pid), 5.0, "the page's process to end")
    assert time.monotonic() < begin + 2.0
