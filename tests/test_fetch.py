"""Raws fetched from a real S3 server: whole and right, or not at all and with the reason."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from repo_support import needs_root, small_tmpfs
from s3_support import (
    BLIND_KEY,
    BLIND_SECRET,
    Fault,
    Proxy,
    Request,
    S3Server,
    proxy,
    s3_server,
    times,
    use_credentials,
    write_credentials,
)

from ppd.messages import RawArrived
from ppd.workers import fetch
from ppd.workers.fetch import FetchError, fetch_raw

DATA = random.Random(5).randbytes(3_000_000)
KEY = "GridCam/4/g/1/17/r_1/a raw+1.fits"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.client.create_bucket(Bucket="raws")
        yield running


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "credentials"
    use_credentials(path, monkeypatch)
    return path


@pytest.fixture
def between(server: S3Server) -> Iterator[Proxy]:
    with proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after a second or so instead of a minute."""
    monkeypatch.setattr(fetch, "_TRIES", 4)


def _put(server: S3Server, data: bytes = DATA, key: str = KEY) -> RawArrived:
    etag = server.put("raws", key, data)
    return RawArrived(uri=f"s3://raws/{key}", snap=1, exposure=17, size=len(data), stamp=etag)


def _left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_file_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "raw.fits"
    raw = RawArrived(uri=str(path), snap=0, exposure=1, size=3, stamp="")
    assert fetch_raw(raw, tmp_path / "raws") == path
    with pytest.raises(FetchError, match=r"http://x/y .*scheme"):
        fetch_raw(raw.model_copy(update={"uri": "http://x/y"}), tmp_path / "raws")


def test_fetch(server: S3Server, tmp_path: Path) -> None:
    path = fetch_raw(_put(server), tmp_path / "raws", server.endpoint)
    assert path.read_bytes() == DATA
    assert path.name == "a raw+1.fits"
    # Written anew, not over what the repo may have a link to.
    link = tmp_path / "link"
    link.hardlink_to(path)
    assert fetch_raw(_put(server, b"other"), tmp_path / "raws", server.endpoint) == path
    assert path.read_bytes() == b"other"
    assert link.read_bytes() == DATA
    assert _left(tmp_path / "raws") == ["a raw+1.fits"]


def test_parts(server: S3Server, tmp_path: Path) -> None:
    """An object that came in parts: its ETag is no MD5."""
    part = DATA * 2
    begun = server.client.create_multipart_upload(Bucket="raws", Key="parts.fits")
    where = {"Bucket": "raws", "Key": "parts.fits", "UploadId": begun["UploadId"]}
    tags = []
    for number, data in ((1, part), (2, b"rest")):
        tags.append(server.client.upload_part(**where, PartNumber=number, Body=data)["ETag"])
    parts = [{"PartNumber": i + 1, "ETag": tag} for i, tag in enumerate(tags)]
    server.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    etag = server.client.head_object(Bucket="raws", Key="parts.fits")["ETag"].strip('"')
    assert "-" in etag
    raw = RawArrived(uri="s3://raws/parts.fits", snap=0, exposure=1, size=len(part) + 4, stamp=etag)
    assert fetch_raw(raw, tmp_path, server.endpoint).read_bytes() == part + b"rest"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(503, "SlowDown"),
        Fault(500, "InternalError"),
        Fault(400, "ExpiredToken"),
        Fault(cut_after=0),
        Fault(cut_after=900_000),
        Fault(corrupt=True),
    ],
)
def test_tried_again(server: S3Server, between: Proxy, tmp_path: Path, fault: Fault) -> None:
    raw = _put(server)
    between.rule = times(3, fault)
    path = fetch_raw(raw, tmp_path, between.endpoint)
    assert hashlib.md5(path.read_bytes()).hexdigest() == raw.stamp
    assert len(between.of()) == 4
    ranges = [r.headers.get("range") for r in between.of()]
    if fault.cut_after:
        # What has come need not come again.
        assert ranges == [None, "bytes=900000-", "bytes=1800000-", "bytes=2700000-"]
    else:
        assert ranges == [None] * 4


def test_stalled(server: S3Server, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppd.workers.s3_object._READ_SECONDS", 0.5)
    raw = _put(server)
    between.rule = times(2, Fault(stall_after=400_000))
    assert fetch_raw(raw, tmp_path, between.endpoint).read_bytes() == DATA
    assert [r.headers.get("range") for r in between.of()] == [None, "bytes=400000-", "bytes=800000-"]


def test_trickle(server: S3Server, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, all of them never would."""
    monkeypatch.setattr(fetch, "_SECONDS", 2.0)
    raw = _put(server)
    between.rule = lambda request: Fault(trickle=0.05)
    begin = time.monotonic()
    with pytest.raises(FetchError, match=r"too slow: only \d+ of 3000000 bytes"):
        fetch_raw(raw, tmp_path, between.endpoint)
    assert time.monotonic() - begin < 10.0
    assert not _left(tmp_path / "1")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (Fault(503, "SlowDown"), r"from http://\S+, after 4 tries: SlowDown \(503\)"),
        (Fault(corrupt=True), "after 4 tries: what came is not what is there: (MD5|CRC32)"),
        (Fault(cut_after=0), "after 4 tries: the connection ended after 0 of 3000000 bytes"),
        (Fault(403, "AccessDenied"), r"from http://\S+: AccessDenied \(403\)"),
    ],
)
def test_in_vain(server: S3Server, between: Proxy, tmp_path: Path, fault: Fault, match: str) -> None:
    raw = _put(server)
    between.rule = lambda request: fault
    with pytest.raises(FetchError, match=match) as e:
        fetch_raw(raw, tmp_path, between.endpoint)
    assert raw.uri in str(e.value)
    assert not _left(tmp_path / "1")


def test_gone_or_another(server: S3Server, tmp_path: Path) -> None:
    raw = _put(server)
    server.put("raws", KEY, b"another")
    with pytest.raises(FetchError, match=r"is another one by now \(PreconditionFailed \(412\)"):
        fetch_raw(raw, tmp_path, server.endpoint)
    with pytest.raises(FetchError, match="another one by now: it has 7 bytes, not 3000000"):
        fetch_raw(raw.model_copy(update={"stamp": ""}), tmp_path, server.endpoint)
    server.client.delete_object(Bucket="raws", Key=KEY)
    with pytest.raises(FetchError, match=r"the object is gone \(NoSuchKey \(404\)"):
        fetch_raw(raw, tmp_path, server.endpoint)
    with pytest.raises(FetchError, match=r"NoSuch(Bucket|Key) \(404\)"):
        fetch_raw(raw.model_copy(update={"uri": "s3://nowhere/x"}), tmp_path, server.endpoint)


def test_replaced_while_it_is_fetched(server: S3Server, between: Proxy, tmp_path: Path) -> None:
    """Half of one and half of another is no raw."""
    raw = _put(server)

    def rule(request: Request) -> Fault | None:
        if len(between.of()) == 1:
            return Fault(cut_after=1_000_000)
        server.put("raws", KEY, DATA[::-1])
        return None

    between.rule = rule
    with pytest.raises(FetchError, match="another one by now"):
        fetch_raw(raw, tmp_path, between.endpoint)


def test_renewed_credentials(
    server: S3Server, tmp_path: Path, credentials: Path, between: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    raw = _put(server)
    write_credentials(credentials, "AKOLD", "old-secret-word")

    def rule(request: Request) -> None:
        if len(between.of()) == 2:
            write_credentials(credentials)

    between.rule = rule
    assert fetch_raw(raw, tmp_path, between.endpoint).read_bytes() == DATA
    assert {r.credential for r in between.of()} == {"AKOLD", "AKOBSERVATORY"}
    assert "InvalidAccessKeyId" in caplog.text
    assert "old-secret-word" not in caplog.text


def test_not_allowed(server: S3Server, tmp_path: Path, credentials: Path) -> None:
    raw = _put(server)
    write_credentials(credentials, BLIND_KEY, BLIND_SECRET)
    endpoint = server.endpoint.replace("http://", "http://user:pass-word@")
    with pytest.raises(FetchError, match="AccessDenied") as e:
        fetch_raw(raw, tmp_path, endpoint)
    assert "pass-word" not in str(e.value)
    assert BLIND_SECRET not in str(e.value)


@needs_root
def test_full_disk(server: S3Server, tmp_path: Path) -> None:
    raw = _put(server)
    with small_tmpfs(tmp_path / "full", "size=1M") as folder, pytest.raises(FetchError) as e:
        fetch_raw(raw, folder, server.endpoint)
    assert os.strerror(errno.ENOSPC) in str(e.value)


def test_warmed_before_the_fork(server: S3Server, tmp_path: Path) -> None:
    """The nursery stays single and without a socket, and children are quicker for it."""
    raw = _put(server)
    program = f"""
import os, sys, time
from pathlib import Path
from ppd.messages import RawArrived
import ppd.s3
warm = sys.argv[1] == "warm"
if warm:
    ppd.s3.warm({server.endpoint!r})
sockets = [f for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{f}}")
           and os.readlink(f"/proc/self/fd/{{f}}").startswith("socket:")]
threads = len(os.listdir("/proc/self/task"))
pid = os.fork()
if not pid:
    begin = time.perf_counter()
    ppd.s3.make_client({server.endpoint!r})
    made = time.perf_counter() - begin
    from ppd.workers.fetch import fetch_raw
    raw = RawArrived.model_validate_json({raw.model_dump_json()!r})
    path = fetch_raw(raw, Path(sys.argv[2]), {server.endpoint!r})
    assert path.stat().st_size == {len(DATA)}
    print(made, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(len(sockets), threads)
"""
    seconds = {}
    for how in ("cold", "warm"):
        done = subprocess.run(
            [sys.executable, "-c", program, how, str(tmp_path / how)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        made, nothing = done.stdout.splitlines()
        assert nothing == "0 1"
        seconds[how] = float(made)
    assert seconds["warm"] < seconds["cold"]
