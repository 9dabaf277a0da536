"""Announcements that can't be used: each refused, named, counted, and the night goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from observatory import Observatory, Ppd, error_of, running, wait_for

from ppd.messages import ControlRequest, encode

pytestmark = pytest.mark.night


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    with running(observatory, tmp_path_factory.mktemp("ppd"), slots=4, image_timeout=2.0) as ppd:
        yield ppd
        # Whatever was sent: it is still the same one, and it still works.
        assert ppd.counts().get("internal_errors", 0) == 0
        ppd.good_visit("after-all-that", 4)
        ppd.await_state("after-all-that", exported=1)
        assert ppd.groups() == [("after-all-that", 4)]


_CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("no filter known", {"filters": "u_99"}, "visits_malformed", "unknown filter 'u_99'"),
    ("another camera", {"instrument": "LSSTCam"}, "visits_malformed", "unknown instrument"),
    ("no such detector", {"detector": 77}, "visits_malformed", "no science detector 77"),
    ("detector of nonsense", {"detector": "x"}, "visits_malformed", "detector"),
    ("NaN", {"position": [float("nan"), 3.0]}, "visits_malformed", "position"),
    ("south of the pole", {"position": [10.0, -91.0]}, "visits_malformed", "outside -90 to 90"),
    ("beyond 360", {"position": [361.0, 0.0]}, "visits_malformed", "outside 0 to 360"),
    ("infinite angle", {"cameraAngle": float("inf")}, "visits_malformed", "cameraAngle"),
    ("no position", {"position": None}, "visits_malformed", "position"),
    ("negative snaps", {"nimages": -1}, "visits_malformed", "nimages"),
    ("too old", {"private_sndStamp": time.time() - 7200.0}, "visits_stale", "expired"),
    ("a path as group", {"groupId": "../../etc"}, "visits_malformed", "groupId"),
    ("no group", {"groupId": ""}, "visits_malformed", "groupId"),
]


@pytest.mark.parametrize("case", _CASES, ids=[c[0] for c in _CASES])
def test_field(ppd: Ppd, case: tuple[str, dict[str, Any], str, str]) -> None:
    _, changes, counted, said = case
    group = changes.get("groupId", "bad-" + case[0].replace(" ", "-"))
    before = ppd.counts().get(counted, 0)
    reply = ppd.submit(**{"groupId": group, **changes})
    assert not reply.ok
    assert reply.code == ("stale" if counted == "visits_stale" else "malformed")
    assert said in reply.error
    status = ppd.status()
    assert status["counts"][counted] == before + 1
    assert reply.error[:200] in error_of(status, counted)
    if group != "":
        assert group in reply.error
    assert not ppd.states(group)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "42", '"text"', "{}", "\x00", "nextVisit", "[" * 5000]
)
def test_not_a_message(ppd: Ppd, text: str) -> None:
    before = ppd.counts().get("visits_malformed", 0)
    reply = ppd.client.submit(text)
    assert (reply.ok, reply.code) == (False, "malformed")
    assert ppd.counts()["visits_malformed"] == before + 1


@pytest.mark.parametrize("field", ["groupId", "instrument", "position", "filters", "private_sndStamp"])
def test_missing_field(ppd: Ppd, field: str) -> None:
    message = ppd.observatory.message(groupId=f"without-{field}")
    del message[field]
    reply = ppd.client.submit(message)
    assert (reply.ok, reply.code) == (False, "malformed")
    assert f"{field}" in reply.error
    assert "missing" in reply.error
    if field != "groupId":
        assert f"without-{field}" in reply.error


def test_same_visit_twice(ppd: Ppd) -> None:
    assert ppd.submit(groupId="twice", detector=1).ok
    again = ppd.submit(groupId="twice", detector=1)
    assert (again.ok, again.code) == (False, "duplicate")
    assert "twice" in error_of(ppd.status(), "visits_duplicate")
    # The rest of its detectors is new.
    rest = ppd.submit(groupId="twice")
    assert rest.result["detectors"] == [0, 2, 3, 4, 5, 6, 7, 8]
    assert sum(ppd.states("twice").values()) == 9


def test_redis_form_is_understood(ppd: Ppd) -> None:
    flat = {k: v if isinstance(v, str) else json.dumps(v) for k, v in ppd.observatory.message().items()}
    reply = ppd.client.submit({**flat, "groupId": "flat", "detector": "3"})
    assert reply.ok, reply.error
    assert reply.result == {"group": "flat", "detectors": [3]}


def test_garbage_on_the_sockets(ppd: Ppd) -> None:
    """Neither socket's owner minds what is no message, whoever sends it."""
    context = zmq.Context()
    try:
        for name, counted in (
            ("control.ipc", "requests_refused"),
            ("children.ipc", "child_messages_refused"),
        ):
            before = ppd.counts().get(counted, 0)
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 1000)
            socket.connect(f"ipc://{ppd.settings.socket_dir / name}")
            wrong = encode(ControlRequest(command="status")).replace(b"status", b"format-disk")
            for data in (b"", b"\xff\xfe", b"{}", b'{"kind": "no such"}', wrong, b"x" * 100_000):
                socket.send(data)
            socket.send_multipart([b"a", b"b", b"c"])
            wait_for(lambda c=counted, b=before: ppd.counts().get(c, 0) >= b + 7, 10.0, counted)
            socket.close()
    finally:
        context.destroy(linger=0)


@pytest.mark.slow
def test_ppdctl_submit_tells_what_is_wrong(ppd: Ppd, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(ppd.observatory.message(groupId="from-a-file", detector=2)))
    bad.write_text("no JSON")
    done = ppd.command("ctl", "submit", str(good), str(bad), str(tmp_path / "absent.json"))
    assert done.returncode == 1
    assert "accepted for 1 detectors" in done.stdout
    assert "the message is not JSON" in done.stderr
    assert "absent.json can't be read" in done.stderr
