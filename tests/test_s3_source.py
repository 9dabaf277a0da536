"""The S3 source on a real S3 server, and through everything that a server or a network can do to it."""

from __future__ import annotations

import datetime
import gzip
import io
import itertools
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import astropy.io.fits
import pytest
from observatory import wait_for
from s3_support import (
    BLIND_KEY,
    BLIND_SECRET,
    HOST,
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

from ppd.deployment import day_obs
from ppd.sources.keys import RawKey
from ppd.sources.raws import Candidate, Wanted
from ppd.sources.s3 import S3Source

POLL = (0.1, 0.5)
DETECTORS = {"R22_S11": 94, "R22_S12": 95, "R00_SG0": 189}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "credentials"
    use_credentials(path, monkeypatch)
    return path


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"raws-{uuid.uuid4().hex[:8]}"
    server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def between(server: S3Server) -> Iterator[Proxy]:
    with proxy(server.endpoint) as running:
        yield running


class _Source:
    """A source and what it has reported."""

    def __init__(self, bucket: str, endpoint: str, instrument: str = "GridCam", **options: Any):
        self.seen: list[Candidate] = []
        options = {"poll": POLL, "workers": 4, **options}
        self.source = S3Source(bucket, self.seen.append, instrument, DETECTORS, endpoint=endpoint, **options)
        self.bucket = bucket
        self.instrument = instrument

    def __enter__(self) -> _Source:
        self.source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()

    @property
    def trouble(self) -> str | None:
        return self.source.status().trouble

    def expect(self, group: str = "g", detector: int = 94, snaps: int = 1, begin: float = 0.0) -> None:
        name = next((n for n, d in DETECTORS.items() if d == detector), f"D{detector}")
        now = time.time()
        self.source.expect(Wanted(self.instrument, group, detector, name, snaps, now + begin, now + 600))

    def wait_for(self, count: int = 1, timeout: float = 30.0) -> list[Candidate]:
        wait_for(lambda: len(self.seen) >= count, timeout, f"{count} raws; {self.seen}, {self.trouble}")
        assert len(self.seen) == count
        return self.seen

    def await_trouble(self, text: str, timeout: float = 30.0) -> None:
        wait_for(lambda: text in (self.trouble or ""), timeout, f"{text} in {self.trouble}")

    def await_calm(self, timeout: float = 30.0) -> None:
        wait_for(lambda: self.trouble is None, timeout, f"the end of {self.trouble}")


def _key(group: str = "g", detector: int = 94, snap: int = 0, exposure: int = 17) -> str:
    return f"GridCam/{detector}/{group}/{snap}/{exposure}/r_1/raw-{exposure}.fits"


def _messages(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and text in r.getMessage()]


# The generic layout


def test_what_is_wanted_is_reported_once(server: S3Server, bucket: str, credentials: Path) -> None:
    etag = server.put(bucket, _key(), b"0" * 5000)
    server.put(bucket, _key(detector=95), b"1")
    server.put_json(bucket, _key().replace(".fits", ".json"), {"GROUPID": "g"})
    with _Source(bucket, server.endpoint) as s:
        s.expect(snaps=2)
        (first,) = s.wait_for(1)
        assert first == Candidate(
            f"s3://{bucket}/{_key()}",
            RawKey("GridCam", "g", 94, 0, 17, "r_1"),
            5000,
            etag,
            first.closed,
        )
        begin = time.time()
        server.put(bucket, _key(snap=1, exposure=18), b"2")
        second = s.wait_for(2)[1]
        assert second.key is not None and second.key.snap == 1
        assert second.closed - begin < 5.0
        # Another content is another raw; one that is written again as it was is not.
        server.put(bucket, _key(snap=1, exposure=18), b"2")
        server.put(bucket, _key(), b"another")
        assert s.wait_for(3)[2].stamp != etag
        s.expect(detector=95)
        assert s.wait_for(4)[3].key.detector == 95
        s.source.dismiss("g", 94)
        server.put(bucket, _key(), b"a third")
        s.expect("h")
        server.put(bucket, _key("h"), b"to wait for")
        assert s.wait_for(5)[4].key.group == "h"
        assert s.trouble is None


def test_before_the_source_is_started(server: S3Server, bucket: str, credentials: Path) -> None:
    """Recovery expects first."""
    server.put(bucket, "nights/" + _key(), b"x")
    source = _Source(bucket, server.endpoint, prefix="nights/")
    source.expect()
    with source as s:
        assert s.wait_for()[0].uri == f"s3://{bucket}/nights/{_key()}"


def test_seldom_before_the_exposure_and_not_at_all_without(
    server: S3Server, bucket: str, credentials: Path, between: Proxy
) -> None:
    def of(group: str) -> int:
        return sum(f"/{group}/" in r.query.get("prefix", "") for r in between.of(listing=True))

    with _Source(bucket, between.endpoint, poll=(0.05, 1.0)) as s:
        s.expect("now")
        s.expect("later", begin=300.0)
        wait_for(lambda: of("now") >= 30, 30.0, "many looks")
        assert 1 <= of("later") <= of("now") / 4
        s.source.dismiss("now", 94)
        s.source.dismiss("later", 94)
        time.sleep(0.3)  # what was on its way
        count = of("now") + of("later")
        time.sleep(1.2)
        assert of("now") + of("later") == count


def test_many_detectors(server: S3Server, bucket: str, credentials: Path) -> None:
    for detector in range(60):
        server.put(bucket, _key(detector=detector), b"%d" % detector)
    with _Source(bucket, server.endpoint, workers=8) as s:
        for detector in range(60):
            s.expect(detector=detector)
        s.wait_for(60)
        assert sorted(c.key.detector for c in s.seen if c.key) == list(range(60))


# The LSST cameras' layout


def _day() -> int:
    return day_obs(time.time())


def _folder(number: int, day: int | None = None, prefix: str = "LSSTCam", family: str = "MC_O") -> str:
    day = day or _day()
    return f"{prefix}/{day}/{family}_{day}_{number:06d}/{family}_{day}_{number:06d}"


def _raw(**cards: Any) -> bytes:
    header = astropy.io.fits.Header(list(cards.items()))
    hdus = astropy.io.fits.HDUList([astropy.io.fits.PrimaryHDU(header=header)])
    stream = io.BytesIO()
    hdus.writeto(stream)
    return stream.getvalue()


@pytest.mark.slow
def test_exposures_of_a_day(server: S3Server, bucket: str, credentials: Path, between: Proxy) -> None:
    """The group is in a file beside the raw; of a whole night only the end is listed."""
    for number in range(1, 150):
        stem = _folder(number)
        server.put_json(bucket, f"{stem}_R22_S11.json", {"GROUPID": f"old-{number}", "CURINDEX": 1})
        server.put(bucket, f"{stem}_R22_S11.fits", b"old")
    with _Source(bucket, between.endpoint, "LSSTCam") as s:
        s.expect("g", 94, snaps=2)
        s.expect("g", 95, snaps=2)
        s.expect("old-77", 94)
        first = s.wait_for()[0]
        assert first.key == RawKey("LSSTCam", "old-77", 94, 0, _day() * 100_000 + 77)
        begin = time.time()
        for number, snap in ((150, 1), (151, 2)):
            stem = _folder(number)
            for name in ("R22_S11", "R22_S12", "R00_SG0", "R44_SW0"):
                server.put_json(bucket, f"{stem}_{name}.json", {"GROUPID": "g", "CURINDEX": snap})
                server.put(bucket, f"{stem}_{name}.fits", name.encode())
        s.wait_for(5)
        assert {c.key for c in s.seen[1:]} == {
            RawKey("LSSTCam", "g", detector, snap, _day() * 100_000 + 150 + snap)
            for detector in (94, 95)
            for snap in (0, 1)
        }
        assert max(c.closed for c in s.seen) - begin < 10.0
        # A foreign series of names does not hide what comes after it, and an
        # exposure may be late.
        server.put(bucket, f"{_folder(1, family='MC_S')}_R22_S11.fits", _raw(GROUPID="s", CURINDEX=1))
        server.put(bucket, f"{_folder(153)}_R22_S11.fits", _raw(GROUPID="h", CURINDEX=1))
        s.expect("h", 94)
        assert s.wait_for(6)[5].key == RawKey("LSSTCam", "h", 94, 0, _day() * 100_000 + 153)
        server.put_json(bucket, f"{_folder(152)}_R22_S11.json", {"GROUPID": "i"})
        server.put(bucket, f"{_folder(152)}_R22_S11.fits", b"late")
        s.expect("i", 94)
        assert s.wait_for(7)[6].key == RawKey("LSSTCam", "i", 94, 0, _day() * 100_000 + 152)
        # Nothing is wanted for a while, and then another detector of a group.
        for group, detector in (("g", 94), ("g", 95), ("old-77", 94), ("h", 94), ("i", 94)):
            s.source.dismiss(group, detector)
        time.sleep(1.5)
        s.expect("k", 94)
        s.source.dismiss("k", 94)
        s.expect("k", 95)
        server.put(bucket, f"{_folder(154)}_R22_S12.fits", _raw(GROUPID="k", CURINDEX=1))
        assert s.wait_for(8)[7].key == RawKey("LSSTCam", "k", 95, 0, _day() * 100_000 + 154)
        assert s.trouble is None
    night = [r for r in between.of(listing=True) if r.query["prefix"].endswith(f"{_day()}/")]
    end = [r for r in between.of(listing=True) if r.query.get("start-after")]
    assert len(end) > len(night)
    assert any(r.query["start-after"].endswith(f"MC_O_{_day()}_000129") for r in end)


def test_sidecar_comes_late_or_never(server: S3Server, bucket: str, credentials: Path) -> None:
    with _Source(bucket, server.endpoint, "LSSTCam") as s:
        for group in ("late", "header", "none"):
            s.expect(group, 94)
        server.put(bucket, f"{_folder(1)}_R22_S11.fits", b"not FITS")
        server.put(bucket, f"{_folder(2)}_R22_S11.fits", gzip.compress(_raw(GROUPID="header", CURINDEX=3)))
        server.put(bucket, f"{_folder(3)}_R22_S11.fits", _raw(OBJECT="x"))
        server.put_json(bucket, f"{_folder(4)}_R22_S11.json", ["no", "header"])
        time.sleep(0.7)
        server.put_json(bucket, f"{_folder(1)}_R22_S11.json", {"GROUPID": "late", "CURINDEX": 1})
        s.wait_for(3)
        by_exposure = {c.uri.rpartition("_R22")[0][-1]: c for c in s.seen}
        assert by_exposure["1"].key == RawKey("LSSTCam", "late", 94, 0, _day() * 100_000 + 1)
        assert by_exposure["2"].key == RawKey("LSSTCam", "header", 94, 2, _day() * 100_000 + 2)
        assert by_exposure["3"].key is None and "GROUPID" in by_exposure["3"].fault
        # Told once; and when the group is known at last, it is a raw after all.
        server.put_json(bucket, f"{_folder(3)}_R22_S11.json", {"GROUPID": "none", "CURINDEX": 1})
        assert s.wait_for(4)[3].key == RawKey("LSSTCam", "none", 94, 0, _day() * 100_000 + 3)


@pytest.mark.parametrize(
    ("instrument", "stem"),
    [
        ("LSSTComCam", "ComCam/{day}/CC_O_{day}_000007/CC_O_{day}_000007_R22_S11"),
        ("LSST-TS8", "TS8/{day}/TS_C_{day}_000007/TS_C_{day}_000007_R22_S11"),
        ("LSSTCam-imSim", "LSSTCam-imSim/{day}/{day}00007/{day}00007_r_57_94_R22_S11"),
    ],
)
def test_other_cameras(server: S3Server, bucket: str, credentials: Path, instrument: str, stem: str) -> None:
    stem = stem.format(day=_day())
    server.put_json(bucket, f"{stem}.json", {"GROUPID": "g", "CURINDEX": 1})
    server.put(bucket, f"{stem}.fits.fz", b"raw")
    with _Source(bucket, server.endpoint, instrument) as s:
        s.expect("g", 94)
        key = s.wait_for()[0].key
    exposure = None if "TS8" in instrument else _day() * 100_000 + 7
    assert key is not None
    assert (key.instrument, key.group, key.detector, key.exposure) == (instrument, "g", 94, exposure)


def test_yesterday_near_the_boundary(server: S3Server, bucket: str, credentials: Path) -> None:
    noon = datetime.datetime(2026, 3, 4, 12, tzinfo=datetime.UTC).timestamp()
    server.put(bucket, f"{_folder(9, 20260303)}_R22_S11.fits", _raw(GROUPID="g"))
    with _Source(bucket, server.endpoint, "LSSTCam") as s:
        until = time.time() + 600
        s.source.expect(Wanted("LSSTCam", "g", 94, "R22_S11", 1, noon + 600, until))
        assert s.wait_for()[0].key == RawKey("LSSTCam", "g", 94, 0, 2026030300009)


# What goes wrong


def test_bucket_appears_later(server: S3Server, credentials: Path, caplog: pytest.LogCaptureFixture) -> None:
    bucket = f"late-{uuid.uuid4().hex[:8]}"
    with _Source(bucket, server.endpoint) as s:
        s.await_trouble("NoSuchBucket")  # though nothing is wanted yet
        s.expect()
        time.sleep(2.0)
        server.client.create_bucket(Bucket=bucket)
        server.put(bucket, _key(), b"x")
        s.wait_for()
        s.await_calm()
    assert len(_messages(caplog, "NoSuchBucket")) == 1
    assert len(_messages(caplog, "well again")) == 1


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(503, "SlowDown"), "SlowDown (503)"),
        pytest.param(Fault(500, "InternalError"), "InternalError (500)", marks=pytest.mark.slow),
        pytest.param(Fault(429, "TooManyRequests"), "TooManyRequests (429)", marks=pytest.mark.slow),
        pytest.param(Fault(502, "not from S3"), "502", marks=pytest.mark.slow),
        # A listing that is cut short is an internal error to botocore.
        (Fault(cut_after=200), "500: "),
        pytest.param(Fault(400, "ExpiredToken"), "ExpiredToken (400)", marks=pytest.mark.slow),
    ],
)
def test_server_in_trouble(
    server: S3Server,
    bucket: str,
    credentials: Path,
    between: Proxy,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    text: str,
) -> None:
    server.put(bucket, _key(), b"x")
    between.rule = lambda request: fault
    with _Source(bucket, between.endpoint) as s:
        for detector in (94, 95, 96, 97):
            s.expect(detector=detector)
        s.await_trouble(text)
        time.sleep(1.0)
        assert not s.seen
        # One at a time, with pauses: nobody is helped by haste.
        begin = time.monotonic()
        time.sleep(2.0)
        asked = [r for r in between.requests if r.time > begin]
        assert 2 <= len(asked) <= 12
        between.rule = lambda request: None
        s.wait_for()
        s.await_calm()
    assert len(_messages(caplog, "It is tried again")) == 1
    assert len(_messages(caplog, "well again")) == 1


def test_throttled_now_and_then(
    server: S3Server, bucket: str, credentials: Path, between: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that refuses half of all requests is asked less, and is one trouble, not many."""
    counter = itertools.count()
    between.rule = lambda request: Fault(503, "SlowDown") if next(counter) % 2 else None
    with _Source(bucket, between.endpoint) as s:
        for detector in range(30):
            s.expect(detector=detector)
        s.await_trouble("SlowDown")
        time.sleep(2.0)
        for detector in range(30):
            server.put(bucket, _key(detector=detector), b"x")
        s.wait_for(30, timeout=60.0)
        between.rule = lambda request: None
        s.await_calm()
    assert len(_messages(caplog, "It is tried again")) <= 2


def test_no_server_and_one_that_is_silent(
    bucket: str, server: S3Server, credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    server.put(bucket, _key(), b"x")
    with _Source(bucket, f"http://user:pass-word@{HOST}:{port}") as s:
        s.expect()
        s.await_trouble("EndpointConnectionError")
        assert "pass-word" not in (s.trouble or "")
        before = len(_messages(caplog, "EndpointConnectionError"))
        time.sleep(2.0)
        assert len(_messages(caplog, "EndpointConnectionError")) == before == 1
    assert "pass-word" not in caplog.text


def test_time_outs(
    bucket: str, server: S3Server, credentials: Path, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppd.sources.s3._READ_SECONDS", 0.5)
    server.put(bucket, _key(), b"x")
    between.rule = times(4, Fault(silent=True))
    with _Source(bucket, between.endpoint) as s:
        s.expect()
        s.await_trouble("ReadTimeout")
        s.wait_for()
        begin = time.monotonic()
    assert time.monotonic() - begin < 8.0  # the end is bounded


def test_renewed_credentials(
    server: S3Server, bucket: str, credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server does not know the key; then somebody puts the right one into the file."""
    write_credentials(credentials, "AKEXPIRED", "old-secret-word")
    server.put(bucket, _key(), b"x")
    with _Source(bucket, server.endpoint) as s:
        s.expect()
        s.await_trouble("InvalidAccessKeyId")
        time.sleep(1.0)
        write_credentials(credentials)
        s.wait_for()
        s.await_calm()
    assert len(_messages(caplog, "It is tried again")) == 1
    assert "old-secret-word" not in caplog.text


def test_no_credentials(server: S3Server, bucket: str, credentials: Path) -> None:
    credentials.unlink()
    server.put(bucket, _key(), b"x")
    with _Source(bucket, server.endpoint) as s:
        s.expect()
        s.await_trouble("NoCredentials")
        write_credentials(credentials)
        s.wait_for()


def test_not_allowed(
    server: S3Server, bucket: str, credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_credentials(credentials, BLIND_KEY, BLIND_SECRET)
    server.put(bucket, _key(), b"x")
    with _Source(bucket, server.endpoint) as s:
        for detector in (94, 95, 96):
            s.expect(detector=detector)
        s.await_trouble("AccessDenied")
        time.sleep(2.0)
        write_credentials(credentials)
        s.wait_for()
        s.await_calm()
    assert len(_messages(caplog, "It is tried again")) == 1
    assert len(_messages(caplog, "no more AccessDenied")) == 1


def test_one_prefix_is_not_allowed(server: S3Server, bucket: str, credentials: Path, between: Proxy) -> None:
    """It does not keep the others from being looked at."""

    def rule(request: Request) -> Fault | None:
        return Fault(403, "AccessDenied") if "/94/" in request.query.get("prefix", "") else None

    between.rule = rule
    with _Source(bucket, between.endpoint) as s:
        s.expect(detector=94)
        s.await_trouble("AccessDenied")
        server.put(bucket, _key(detector=95), b"x")
        s.expect(detector=95)
        assert s.wait_for()[0].key.detector == 95
        assert "AccessDenied" in (s.trouble or "")
        s.source.dismiss("g", 94)
        assert s.trouble is None


def test_threads_end(server: S3Server, bucket: str, credentials: Path) -> None:
    before = set(threading.enumerate())
    with _Source(bucket, server.endpoint) as s:
        s.expect()
        assert len(threading.enumerate()) > len(before)
    wait_for(lambda: not (set(threading.enumerate()) - before), 10.0, "the threads to end")
