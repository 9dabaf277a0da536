"""The presence service before an S3 bucket: asked first, and done without when it fails."""

from __future__ import annotations

import functools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from observatory import wait_for
from s3_support import HOST, Proxy, S3Server, proxy, s3_server, use_credentials

from ppd.deployment import day_obs
from ppd.sources.keys import RawKey
from ppd.sources.presence import PresenceError, PresenceService
from ppd.sources.raws import Candidate, Wanted
from ppd.sources.s3 import S3Source

DETECTORS = {"R22_S11": 94, "R22_S12": 95}
Answer = Callable[[str], Any]


class _Service:
    """A service of that protocol; `answer` is what it knows of a path."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.answer: Answer = lambda path: {"error": False, "message": "", "present": False, "uri": ""}
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer((HOST, 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://{HOST}:{self._server.server_port}/presence"

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10.0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, service: _Service, *arguments: Any):
        self._service = service
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._service.paths.append(self.path)
        answer = self._service.answer(self.path.removeprefix("/presence/"))
        status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(tmp_path / "credentials", monkeypatch)


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"raws-{uuid.uuid4().hex[:8]}"
    server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def between(server: S3Server) -> Iterator[Proxy]:
    with proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def service() -> Iterator[_Service]:
    running = _Service()
    yield running
    running.close()


@pytest.fixture
def client(service: _Service) -> Iterator[PresenceService]:
    client = PresenceService(service.url + "/")
    yield client
    client.close()


def _present(uri: str) -> dict[str, Any]:
    return {"error": False, "message": "", "present": True, "uri": uri}


def test_answers(service: _Service, client: PresenceService) -> None:
    assert client.ask("LSSTCam", "2026-01-01T01:02:03.456", 0, "R22_S11/x") is None
    assert service.paths == ["/presence/LSSTCam/2026-01-01T01:02:03.456/0/R22_S11%2Fx"]
    service.answer = lambda path: _present("s3://rubin:raws/LSSTCam/a#b.fits?x")
    assert client.ask("LSSTCam", "g", 0, "R22_S11") == "LSSTCam/a#b.fits"


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ({"error": True, "message": "no database", "present": False}, "no database"),
        ((500, b"broken"), "500"),
        ((404, b"{}"), "404"),
        ((200, b"not JSON"), "not understood"),
        ((200, b"[]"), "not understood"),
        ((200, b"{}"), "not understood"),
        ((200, b"[" * 100_000), "too long|not understood"),
        ({"error": False, "present": True, "uri": None}, "not understood"),
        ({"error": False, "present": True, "uri": "s3://raws/"}, "no key"),
    ],
)
def test_no_answers(service: _Service, client: PresenceService, answer: Any, match: str) -> None:
    service.answer = lambda path: answer
    with pytest.raises(PresenceError, match=match):
        client.ask("LSSTCam", "g", 0, "R22_S11")


def test_silent(service: _Service, client: PresenceService) -> None:
    def answer(path: str) -> Any:
        service.ended.wait(20.0)
        return {}

    service.answer = answer
    begin = time.monotonic()
    with pytest.raises(PresenceError, match="Timeout"):
        client.ask("LSSTCam", "g", 0, "R22_S11")
    assert 0.9 < time.monotonic() - begin < 5.0
    service.close()
    with pytest.raises(PresenceError, match="ConnectionError"):
        PresenceService(service.url).ask("LSSTCam", "g", 0, "R22_S11")


class _Source:
    """A source with a presence service before it, and what it has reported."""

    def __init__(self, bucket: str, endpoint: str, client: PresenceService, instrument: str):
        self.seen: list[Candidate] = []
        self.instrument = instrument
        self.source = S3Source(
            bucket,
            self.seen.append,
            instrument,
            DETECTORS,
            endpoint=endpoint,
            presence=client,
            poll=(0.1, 0.5),
            workers=4,
        )

    def __enter__(self) -> _Source:
        self.source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()

    def expect(self, group: str, detector: int, snaps: int) -> None:
        now = time.time()
        name = next(n for n, d in DETECTORS.items() if d == detector)
        self.source.expect(Wanted(self.instrument, group, detector, name, snaps, now, now + 600))

    def wait_for(self, count: int) -> list[Candidate]:
        wait_for(lambda: len(self.seen) >= count, 30.0, f"{count} raws; {self.source.status()}")
        assert len(self.seen) == count
        return self.seen


def test_asked_first(
    server: S3Server, bucket: str, between: Proxy, service: _Service, client: PresenceService
) -> None:
    """What it says is there is reported with the size and ETag that it has; nothing is listed for it."""
    there: dict[str, str] = {}

    def answer(path: str) -> Any:
        if path in there:
            return _present(f"s3://{bucket}/{there[path]}")
        return {"error": False, "message": "", "present": False, "uri": ""}

    service.answer = answer
    with _Source(bucket, between.endpoint, client, "LSSTCam") as s:
        s.expect("g", 94, 2)
        s.expect("h", 95, 0)
        wait_for(lambda: len(service.paths) > 10, 30.0, "questions")
        assert {p.removeprefix("/presence/") for p in service.paths} == {
            "LSSTCam/g/0/R22_S11",
            "LSSTCam/g/1/R22_S11",
            "LSSTCam/h/0/R22_S12",
        }
        # In a folder of another day than anybody would list.
        keys = [
            f"LSSTCam/20200101/MC_O_20200101_00000{n}/MC_O_20200101_00000{n}_R22_S11.fits" for n in (1, 2)
        ]
        etags = [server.put(bucket, key, b"%d" % len(key)) for key in keys]
        there["LSSTCam/g/0/R22_S11"], there["LSSTCam/g/1/R22_S11"] = keys
        s.wait_for(2)
        for snap, candidate in enumerate(sorted(s.seen, key=lambda c: c.uri)):
            key = RawKey("LSSTCam", "g", 94, snap, 2020010100001 + snap)
            assert candidate == Candidate(
                f"s3://{bucket}/{keys[snap]}", key, 2, etags[snap], candidate.closed
            )
        # Of how many snaps it is not known: the next one is asked for.
        server.put(bucket, "somewhere/else.fits", b"x")
        there["LSSTCam/h/0/R22_S12"] = "somewhere/else.fits"
        assert s.wait_for(3)[2].key == RawKey("LSSTCam", "h", 95, 0)
        wait_for(lambda: any("/h/1/" in p for p in service.paths), 30.0, "the next snap")
        assert s.source.status().trouble is None
    listed = [r for r in between.of(listing=True) if r.query["prefix"] != "LSSTCam/"]
    assert len(listed) <= 6  # the day and its neighbour, now and then


def test_done_without(
    server: S3Server,
    bucket: str,
    service: _Service,
    client: PresenceService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.answer = lambda path: (503, b"")
    stem = "LSSTCam/{0}/MC_O_{0}_000001/MC_O_{0}_000001_R22_S11".format(day_obs(time.time()))
    with _Source(bucket, server.endpoint, client, "LSSTCam") as s:
        s.expect("g", 94, 1)
        s.expect("g", 95, 1)
        wait_for(lambda: "503" in (s.source.status().trouble or ""), 30.0, "trouble")
        assert "listed instead" in (s.source.status().trouble or "")
        begin = time.time()
        server.put_json(bucket, f"{stem}.json", {"GROUPID": "g", "CURINDEX": 1})
        server.put(bucket, f"{stem}.fits", b"raw")
        assert s.wait_for(1)[0].key == RawKey("LSSTCam", "g", 94, 0, day_obs(time.time()) * 100_000 + 1)
        assert s.seen[0].closed - begin < 10.0
        # And it is asked again when it is well again.
        server.put(bucket, "x.fits", b"raw")
        service.answer = lambda path: _present(f"s3://{bucket}/x.fits")
        assert s.wait_for(2)[1].key == RawKey("LSSTCam", "g", 95, 0)
        wait_for(lambda: s.source.status().trouble is None, 30.0, "no trouble")
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Presence service")]
    assert len(said) == 2, said


def test_object_is_not_there_yet(
    server: S3Server, bucket: str, service: _Service, client: PresenceService
) -> None:
    service.answer = lambda path: _present(f"s3://{bucket}/late.fits")
    with _Source(bucket, server.endpoint, client, "LSSTCam") as s:
        s.expect("g", 94, 1)
        wait_for(lambda: "404" in (s.source.status().trouble or ""), 30.0, "trouble")
        etag = server.put(bucket, "late.fits", b"raw")
        assert s.wait_for(1)[0].stamp == etag
        wait_for(lambda: s.source.status().trouble is None, 30.0, "no trouble")
