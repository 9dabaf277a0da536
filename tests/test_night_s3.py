"""A real ppd whose raws come into a bucket: late, cut, twice, and refused for a while."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from observatory import Observatory, Ppd, error_of, exposure_of, identity, running, wait_for
from s3_support import Fault, Proxy, Request, S3Server, proxy, s3_server, times, use_credentials

pytestmark = pytest.mark.night

BUCKET = "night-raws"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def between(server: S3Server) -> Iterator[Proxy]:
    with proxy(server.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory, between: Proxy) -> Iterator[Ppd]:
    folder = tmp_path_factory.mktemp("ppd")
    changes = {"raw_bucket": BUCKET, "s3_endpoint": between.endpoint, "image_timeout": 15.0}
    with pytest.MonkeyPatch.context() as patch:
        use_credentials(folder / "credentials", patch)
        with running(observatory, folder, slots=10, **changes) as ppd:
            yield ppd
            assert ppd.counts().get("internal_errors", 0) == 0


def _key(detector: int, group: str, exposure: int | None = None) -> str:
    exposure = exposure or identity(group)["EXPID"]
    return f"DemoCam/{detector}/{group}/0/{exposure}/demo-r/raw.fits"


def _events(ppd: Ppd, group: str) -> dict[int, dict[str, tuple[float, dict[str, Any]]]]:
    """Return the last event of each name, by detector."""
    found: dict[int, dict[str, tuple[float, dict[str, Any]]]] = {}
    with closing(sqlite3.connect(f"file:{ppd.settings.state_dir}/journal.sqlite3?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT detector, name, t, detail FROM event WHERE group_name=? ORDER BY id", [group]
        )
        for detector, name, t, detail in rows:
            found.setdefault(detector, {})[name] = t, json.loads(detail)
    return found


def _child_log(ppd: Ppd, group: str, detector: int) -> str:
    name = group.replace(":", "_")
    (path,) = Path(ppd.settings.state_dir, "logs").rglob(f"*{name}-{detector}-1*")
    return path.read_text()


@pytest.mark.slow
def test_bucket_comes_after_the_visit(
    ppd: Ppd, observatory: Observatory, server: S3Server, between: Proxy
) -> None:
    """All detectors are processed once, one of them though its raw's first transfer was cut."""
    message = observatory.message(0)
    group = message["groupId"]
    exposure = exposure_of(observatory.raw(0))
    detectors = range(len(observatory.plan.visits[0].raws))
    wait_for(lambda: "NoSuchBucket" in str(ppd.status()["faults"]), 30.0, "the bucket's fault")
    status = ppd.status()
    assert status["health"] == "trouble"
    assert status["raw_sources"][1]["name"] == f"s3://{BUCKET}"
    assert ppd.submit(0).ok
    wait_for(lambda: _events(ppd, group).get(8, {}).get("ready"), 60.0, "a child to be ready")

    def is_five(request: Request) -> bool:
        return request.method == "GET" and request.path.endswith(_key(5, group, exposure))

    between.rule = times(1, Fault(cut_after=100_000), is_five)
    server.client.create_bucket(Bucket=BUCKET)
    for detector in detectors:
        data = observatory.raw(detector)
        if detector == 3:
            ppd.drop(data, detector, group)
        server.put(BUCKET, _key(detector, group, exposure), data)
    ppd.await_state(group, exported=9, timeout=120.0)
    assert ppd.groups() == [(group, detector) for detector in detectors]
    five = [r.headers.get("range") for r in between.of() if is_five(r)]
    assert five == [None, "bytes=100000-"]
    assert "it is tried again" in _child_log(ppd, group, 5)
    events = _events(ppd, group)
    assert events[5]["ingested"][1]["uri"] == f"s3://{BUCKET}/{_key(5, group, exposure)}"
    for detector in detectors:
        assert "first_task" in events[detector], events[detector].keys()
    counts = ppd.counts()
    assert not {"raws_repeated", "raws_too_late", "raws_unmatched", "retried"} & counts.keys(), counts
    wait_for(lambda: not ppd.status()["faults"], 30.0, "no fault")
    log = ppd.log.read_text()
    assert log.count("NoSuchBucket") == 1
    assert log.count(": well again after") == 1
    assert "forks are not safe" not in log


@pytest.mark.slow
def test_in_both_places_with_snaps_to_come(ppd: Ppd, observatory: Observatory, server: S3Server) -> None:
    """The copy is no second snap, and no mistake."""
    group = "both"
    data = observatory.raw(2, **identity(group))
    assert ppd.submit(groupId=group, detector=2, nimages=2).ok
    ppd.drop(data, 2, group)
    wait_for(lambda: "ingested" in _events(ppd, group).get(2, {}), 60.0, "the first")
    server.put(BUCKET, _key(2, group), data)
    wait_for(lambda: "another copy" in _child_log(ppd, group, 2), 60.0, "the copy")
    second = identity(f"{group}2")
    data = observatory.raw(2, **{**second, "GROUPID": group})
    server.put(BUCKET, _key(2, group, second["EXPID"]), data)
    ppd.await_state(group, exported=1)
    assert "raws_repeated" not in ppd.counts()


@pytest.mark.slow
def test_bad_copy_in_the_directory(ppd: Ppd, observatory: Observatory, server: S3Server) -> None:
    group = "bad-copy"
    assert ppd.submit(groupId=group, detector=4).ok
    ppd.drop(b"nonsense", 4, group, exposure=identity(group)["EXPID"])
    wait_for(lambda: "raw_refused" in _events(ppd, group).get(4, {}), 60.0, "the bad one")
    server.put(BUCKET, _key(4, group), observatory.raw(4, **identity(group)))
    ppd.await_state(group, exported=1)


@pytest.mark.slow
def test_not_to_be_had_for_a_while(
    ppd: Ppd, observatory: Observatory, server: S3Server, between: Proxy
) -> None:
    """It is listed, but may not be read: the next attempt is luckier."""
    group = "denied"
    denied = times(
        1, Fault(403, "AccessDenied"), lambda r: r.method == "GET" and r.path.endswith(_key(6, group))
    )
    between.rule = denied
    assert ppd.submit(groupId=group, detector=6).ok
    server.put(BUCKET, _key(6, group), observatory.raw(6, **identity(group)))
    ppd.await_state(group, exported=1)
    said = error_of(ppd.status(), "raws_not_fetched")
    assert f"s3://{BUCKET}/{_key(6, group)} can't be fetched from {between.endpoint}: AccessDenied" in said
    assert ppd.counts()["retried"] == 1


@pytest.mark.slow
def test_replaced_before_it_is_fetched(
    ppd: Ppd, observatory: Observatory, server: S3Server, between: Proxy
) -> None:
    """What was announced is there no more; what is there now is processed."""
    group = "replaced"
    data = observatory.raw(7, **identity(group))

    def rule(request: Request) -> Fault | None:
        if request.method == "GET" and request.path.endswith(_key(7, group)):
            between.rule = lambda request: None
            server.put(BUCKET, _key(7, group), data)
        return None

    between.rule = rule
    assert ppd.submit(groupId=group, detector=7).ok
    server.put(BUCKET, _key(7, group), data + b" " * 2880)
    ppd.await_state(group, exported=1)
    assert "another one by now" in error_of(ppd.status(), "raws_not_fetched")
    assert (group, 7) in ppd.groups()
