"""The gate for other machines: only who has a key comes in, and each does what its role allows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from page_support import StandIn

from ppd._keys import Keys, load_client, make_client, make_server
from ppd.cli.ctl import main
from ppd.control import ControlClient, NoSupervisorError, Remote
from ppd.errors import PpdError
from ppd.messages import ControlReply, ControlRequest
from ppd.web import gate as gate_module
from ppd.web.gate import gate

LOOK, CHANGE = ControlRequest(command="status"), ControlRequest(command="pause", reason="a test")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder of keys, with one that may look and one that may change."""
    folder = tmp_path / "keys"
    assert main(["keys", "server", "--folder", str(folder)]) == 0
    for name, role in (("looker", "look"), ("chief", "change")):
        arguments = [name, "--role", role, "--folder", str(folder), "--out", str(tmp_path / name)]
        assert main(["keys", "client", *arguments]) == 0
    return folder


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[StandIn]:
    """What answers behind the gate."""
    folder = tmp_path / "s"
    folder.mkdir()
    found = StandIn(folder)
    found.answers["pause"] = ControlReply(ok=True, result={"paused": True})
    found.start()
    yield found
    found.stop()


@contextlib.contextmanager
def _opened(keys: Path, sockets: Path) -> Iterator[str]:
    """Run the gate in a thread."""
    loop, end, addresses = asyncio.new_event_loop(), asyncio.Event(), []
    ready = threading.Event()

    async def run() -> None:
        async with gate("127.0.0.1", 0, keys, sockets) as address:
            addresses.append(address)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    try:
        assert ready.wait(10.0)
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10.0)
        assert not thread.is_alive()
        loop.close()


def _ask(address: str, key: Path, request: ControlRequest, seconds: float = 10.0) -> ControlReply:
    with ControlClient(Remote(address, key), seconds) as client:
        return client.request(request)


def test_roles(keys: Path, supervisor: StandIn, tmp_path: Path) -> None:
    looker, chief = (tmp_path / name / f"{name}.key_secret" for name in ("looker", "chief"))
    with _opened(keys, tmp_path / "s") as address:
        assert _ask(address, looker, LOOK).ok
        refused = _ask(address, looker, CHANGE)
        assert (refused.code, refused.error) == ("forbidden", "The key looker is for looking, not to pause.")
        assert not [r for r in supervisor.asked if r.command == "pause"]
        assert _ask(address, chief, LOOK).ok
        assert _ask(address, chief, CHANGE).result == {"paused": True}
        # One that is taken back counts no more, even for a connection that is open.
        with ControlClient(Remote(address, chief)) as client:
            assert client.request(LOOK).ok
            (keys / "change" / "chief.key").unlink()
            deadline = time.monotonic() + 5.0
            while _is_answered(client) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not _is_answered(client)


def _is_answered(client: ControlClient) -> bool:
    try:
        return client.request(LOOK, 1.0).ok
    except NoSupervisorError:
        return False


def test_strangers(keys: Path, supervisor: StandIn, tmp_path: Path) -> None:
    """A key that nobody has given, a wrong server, none at all, and what is no ZeroMQ: nothing comes in."""
    other = tmp_path / "other"
    make_server(other)
    make_client(other, "stranger", "change", tmp_path / "stranger")
    stranger = tmp_path / "stranger" / "stranger.key_secret"
    looker = tmp_path / "looker" / "looker.key_secret"
    with _opened(keys, tmp_path / "s") as address:
        host, port = address.removeprefix("tcp://").split(":")
        # It knows another server by that name: so it is not told anything, nor tells.
        with pytest.raises(NoSupervisorError, match="or it does not know this key"):
            _ask(address, stranger, LOOK, 1.0)
        # It knows the right one, but is not known.
        (tmp_path / "stranger" / "server.key").write_bytes((keys / "server.key").read_bytes())
        with pytest.raises(NoSupervisorError):
            _ask(address, stranger, CHANGE, 1.0)
        context = zmq.Context()
        plain = context.socket(zmq.DEALER)
        plain.connect(address)
        plain.send(CHANGE.model_dump_json().encode())
        assert not plain.poll(1000)
        context.destroy(linger=0)
        with socket.create_connection((host, int(port)), timeout=10.0) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            with contextlib.suppress(ConnectionError):
                while raw.recv(4096):
                    pass
        assert supervisor.asked == []
        assert _ask(address, looker, LOOK).ok


def test_what_is_no_request(keys: Path, supervisor: StandIn, tmp_path: Path) -> None:
    public, secret, server = load_client(tmp_path / "chief" / "chief.key_secret")
    context = zmq.Context()
    try:
        with _opened(keys, tmp_path / "s") as address:
            for body in (b"", b"\xff\x00", b"{}", b'{"kind": "shut_down"}', b"[" * 10_000):
                asking = context.socket(zmq.DEALER)
                asking.curve_publickey, asking.curve_secretkey = public, secret
                asking.curve_serverkey = server
                asking.connect(address)
                asking.send(body)
                assert asking.poll(10_000)
                answer = json.loads(asking.recv())
                assert (answer["ok"], answer["code"]) == (False, "malformed")
                asking.close(linger=0)
    finally:
        context.destroy(linger=0)
    assert supervisor.asked == []


def test_too_many(keys: Path, supervisor: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_BURST", 3.0)
    monkeypatch.setattr(gate_module, "_RATE", 0.001)
    with _opened(keys, tmp_path / "s") as address:
        looker, chief = (tmp_path / name / f"{name}.key_secret" for name in ("looker", "chief"))
        assert [_ask(address, looker, LOOK).ok for _ in range(4)] == [True] * 3 + [False]
        # Another's requests are not the worse for it.
        assert _ask(address, chief, LOOK).ok


def test_nobody_behind_it(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_LINE_SECONDS", 0.5)
    (tmp_path / "s").mkdir()
    with _opened(keys, tmp_path / "s") as address:
        reply = _ask(address, tmp_path / "chief" / "chief.key_secret", LOOK)
    assert (reply.ok, reply.code) == (False, "unavailable")
    assert "No ppd answers" in str(reply.error)


def test_keys_are_files(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = [*keys.rglob("*.key_secret"), *tmp_path.glob("*/*.key_secret")]
    assert {p.name for p in secrets} == {"server.key_secret", "looker.key_secret", "chief.key_secret"}
    assert not [p for p in secrets if stat.S_IMODE(p.stat().st_mode) & 0o077]
    # The server keeps no secret of its clients.
    assert [p.name for p in keys.rglob("*.key_secret")] == ["server.key_secret"]
    (keys / "look" / "broken.key").write_text("no key")
    found = Keys(keys)
    public, _, _ = load_client(tmp_path / "looker" / "looker.key_secret")
    assert found.find(public) == ("look", "looker")
    assert found.find(b"x" * 40) is None
    assert "broken.key" in str(found.trouble)
    capsys.readouterr()
    for arguments, why in (
        (["client", "looker", "--out", str(tmp_path / "again")], "There is a key 'looker'"),
        (["client", "../up", "--out", str(tmp_path / "up")], "'../up': a name has letters"),
        (["server"], "is there already"),
    ):
        assert main(["keys", *arguments, "--folder", str(keys)]) == 1
        assert why in capsys.readouterr().err
    loose = tmp_path / "looker" / "looker.key_secret"
    loose.chmod(0o644)
    with pytest.raises(PpdError, match="others can read"):
        load_client(loose)


def test_ppdctl_from_another_machine(
    keys: Path, supervisor: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _opened(keys, tmp_path / "s") as address:
        chief = ["--connect", address, "--key", str(tmp_path / "chief" / "chief.key_secret")]
        looker = ["--connect", address, "--key", str(tmp_path / "looker" / "looker.key_secret")]
        capsys.readouterr()
        assert main(["status", "--json", *looker]) == 0
        assert json.loads(capsys.readouterr().out)["pid"] == 4711
        assert main(["pause", "--reason", "x", "--json", *looker]) == 1
        assert "for looking, not to pause" in capsys.readouterr().err
        assert main(["pause", "--reason", "x", "--json", *chief]) == 0
    for wrong, why in (
        (["history", *chief], "run it there"),
        (["status", "--connect", address], "given together"),
        (["status", "--connect", "host:1", *chief[2:]], "tcp://HOST:PORT"),
    ):
        assert main(wrong) == 2
        assert why in capsys.readouterr().err


def test_the_authenticator_outlives_an_error(
    keys: Path, supervisor: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody else's loop, which an exception would end: nobody could come in any more."""
    broken = {"is": True}
    find = Keys.find

    def sometimes(self: Keys, key: bytes) -> Any:
        if broken["is"]:
            raise RuntimeError("a disk that is gone")
        return find(self, key)

    monkeypatch.setattr(Keys, "find", sometimes)
    with _opened(keys, tmp_path / "s") as address:
        looker = tmp_path / "looker" / "looker.key_secret"
        with pytest.raises(NoSupervisorError):
            _ask(address, looker, LOOK, 0.5)
        broken["is"] = False
        assert _ask(address, looker, LOOK).ok
