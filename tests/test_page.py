"""The status page's server: what it tells, and what it does not put up with."""

from __future__ import annotations

import http.client
import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observatory import wait_for
from page_support import Site, StandIn, make_overview, make_setup, make_status, make_visit, site

from ppd.config import Settings
from ppd.instruments.lsstcam import focal_plane
from ppd.messages import ControlReply
from ppd.web import watch
from ppd.web.advice import REMEDIES
from ppd.web.door import Limits
from ppd.web.picture import Past, changes, make_picture
from ppd.web.verdict import judge

_STATIC = Path(watch.__file__).parent / "static"
_TOKEN = "a token of the night"
_A = make_visit("a", {"exported": 9}, 950.0)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[StandIn]:
    """Its answers are what the last test has put there."""
    with tempfile.TemporaryDirectory(prefix="ppd-test-") as folder:
        stand_in = StandIn(Path(folder))
        stand_in.start()
        yield stand_in
        stand_in.stop()


@pytest.fixture(scope="module")
def here(supervisor: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    setup = make_setup(focal_plane(), supervisor._path.parent, tmp_path_factory.mktemp("state"))
    with site(setup, Limits(burst=10_000.0)) as found:
        yield found


def _limited(supervisor: StandIn, tmp_path: Path, limits: Limits, **setup: Any) -> Any:
    return site(make_setup(focal_plane(), supervisor._path.parent, tmp_path, **setup), limits)


def _entry(number: int, **more: Any) -> dict[str, Any]:
    return {"group": "g", "state": "running", "since": 1000.0 + number, "phase": "main", **more}


# What it tells


def test_page_and_files(here: Site) -> None:
    """Each file that the page names is there, and each answer bears what keeps others out."""
    status, headers, text = here.ask("/")
    assert status == 200
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    named = re.findall(r'(?:href|src)="(/[^"]+)"', text)
    assert len(named) >= 4
    for path in named:
        status, headers, _ = here.ask(path)
        assert status == 200, path
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_no_outside_host_and_nothing_inline() -> None:
    """It works where there is no network, and under its own Content-Security-Policy."""
    for path in sorted(_STATIC.iterdir()):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|//cdn", text), path.name
        assert "innerHTML" not in text, path.name
    page = (_STATIC / "index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|<script(?! type=\"module\" src=)", page)


def test_geometry(here: Site) -> None:
    found = here.json("/api/focal-plane")
    assert len(found["detectors"]) == 189
    shape = next(d for d in found["detectors"] if d["name"] == "R22_S11")
    assert (shape["id"], found["steering"]) == (94, False)
    (x0, y0), _, (x1, y1), _ = shape["corners"]
    assert (x0 + x1, y0 + y1) == pytest.approx((0.0, 0.0), abs=1.0)


def test_events(supervisor: StandIn, here: Site) -> None:
    """First all, then what is new; that nobody answers; all again."""
    both = {"3": _entry(3), "4": _entry(4)}
    supervisor.set(make_status(), make_overview(both, [make_visit("g", {"running": 2}, 1000.0)]))
    with here.events() as events:
        name, whole = next(events)
        assert name == "picture"
        assert whole["detectors"] == both
        assert whole["verdict"]["level"] == "trouble"  # its raws are of 1970
        other = {"3": _entry(3), "4": {**_entry(5), "state": "exported"}}
        supervisor.set(make_status(), make_overview(other, [make_visit("g", {"running": 2}, 1000.0)]))
        assert next(events) == ("change", {"detectors": {"4": other["4"]}})
        supervisor.stop()
        name, silence = next(events)
        assert name == "silent"
        assert silence["since"] == pytest.approx(time.time(), abs=10.0)
        assert here.ask("/healthz")[0] == 503
        supervisor.start()
        while (event := next(events))[0] == "silent":
            pass
        assert event[0] == "picture"
    assert here.ask("/healthz")[0] == 200


def test_it_looks_only_while_somebody_listens(supervisor: StandIn, here: Site) -> None:
    with here.events() as events:
        next(events)
        with here.events() as others:
            next(others)
            supervisor.asked.clear()
            time.sleep(3.1)
            looks = sum(r.command == "status" for r in supervisor.asked)
            assert 2 <= looks <= 4  # one a second, for both
    time.sleep(1.5)
    supervisor.asked.clear()
    time.sleep(2.2)
    assert supervisor.asked == []


def test_health_and_readiness(supervisor: StandIn, here: Site) -> None:
    supervisor.set(make_status(), make_overview({}, []))
    time.sleep(1.0)
    assert here.ask("/readyz")[0] == 200
    supervisor.set(make_status(), make_overview({}, [], unready=["ppd is draining"]))
    time.sleep(1.0)
    status, _, text = here.ask("/readyz")
    assert (status, text) == (503, "ppd is draining\n")
    assert here.ask("/healthz")[0] == 200
    assert here.json("/api/status")["pid"] == 4711
    assert here.ask("/metrics")[0] == 503  # this supervisor has none
    supervisor.set(make_status(), make_overview({}, []))


def test_history_that_is_not_there(here: Site) -> None:
    status, _, text = here.ask("/api/detector/94")
    assert status == 404
    assert "no journal" in text
    assert here.ask("/api/visits/g/94")[0] == 404
    assert here.ask("/api/logs/g/94?attempt=1")[0] == 404


# What it does not put up with


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/static/../app.py", 404),
        ("/static/%2e%2e%2fapp.py", 404),
        ("/static/..%2f..%2f..%2f..%2fetc%2fpasswd", 404),
        ("/static/", 404),
        ("/api/detector/189x", 404),
        ("/api/detector/-1", 404),
        ("/api/detector/205", 404),
        ("/api/detector/" + "9" * 400, 404),
        ("/api/detector/%D9%A9%D9%A4", 404),
        ("/api/visits/%00/94", 400),
        ("/api/visits/" + "g" * 300 + "/94", 400),
        ("/api/visits/..%2f..%2fetc/94", 404),
        ("/api/logs/g/94?attempt=x", 400),
        ("/api/logs/g/94?attempt=" + "1" * 50, 400),
        ("/?" + "q" * 5000, 400),
    ],
)
def test_bad_paths(here: Site, path: str, status: int) -> None:
    with socket.create_connection((here.host, here.port), timeout=5.0) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert answer.status == status
        assert b"root:" not in answer.read()


@pytest.mark.parametrize("host", ["evil.example.org", "evil.example.org:8642", "localhost.evil.org", ""])
def test_other_names(here: Site, host: str) -> None:
    """A page of another site whose name was made to lead here gets nothing."""
    assert here.ask("/api/status", Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8642", "[::1]:8642", "10.0.0.7"])
def test_own_names(here: Site, host: str) -> None:
    assert here.ask("/api/focal-plane", Host=host)[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_no_http(here: Site, data: bytes) -> None:
    with socket.create_connection((here.host, here.port), timeout=5.0) as line:
        line.sendall(data)
        assert line.recv(100).startswith(b"HTTP/1.0 400") or line.recv(1) == b""
    assert here.ask("/")[0] == 200


def test_too_many_requests(supervisor: StandIn, tmp_path: Path) -> None:
    with _limited(supervisor, tmp_path, Limits(burst=3.0, rate=2.0)) as there:
        assert [there.ask("/")[0] for _ in range(4)] == [200, 200, 200, 429]
        assert there.ask("/")[1]["Retry-After"] == "2"
        wait_for(lambda: there.ask("/")[0] == 200, 5.0, "to be let in again")


def test_who_sends_nothing_is_closed(supervisor: StandIn, tmp_path: Path) -> None:
    """Nor who sends a header for ever; a page that listens stays."""
    with _limited(supervisor, tmp_path, Limits(idle_seconds=0.6)) as there, there.events() as events:
        with (
            socket.create_connection((there.host, there.port), timeout=5.0) as silent,
            socket.create_connection((there.host, there.port), timeout=5.0) as slow,
        ):
            begin = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() < begin + 5.0:
                    slow.sendall(b"G" if time.monotonic() < begin + 0.1 else b"x")
                    time.sleep(0.05)
            assert _gone(silent)
            assert time.monotonic() - begin < 4.0
        assert next(events)[0] == "picture"
        time.sleep(1.5)
        supervisor.set(make_status(pid=1), make_overview({}, []))
        assert next(events)[0] == "change"


def _gone(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except ConnectionError:
        return True


def test_too_many_connections(supervisor: StandIn, tmp_path: Path) -> None:
    with _limited(supervisor, tmp_path, Limits(connections=5, streams=2)) as there:
        lines = [socket.create_connection((there.host, there.port), timeout=5.0) for _ in range(5)]
        with pytest.raises((http.client.HTTPException, OSError)):
            there.ask("/")
        for line in lines:
            line.close()
        wait_for(lambda: _answers(there), 5.0, "to be let in again")
        with there.events(), there.events():
            assert there.ask("/events")[0] == 503
            assert there.ask("/")[0] == 200


def _answers(there: Site) -> bool:
    try:
        return there.ask("/")[0] == 200
    except (http.client.HTTPException, OSError):
        return False


def test_who_does_not_listen_is_cut(
    supervisor: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a page does not take is not kept for it."""
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.02)
    with _limited(supervisor, tmp_path, Limits()) as there:
        with socket.create_connection((there.host, there.port), timeout=5.0) as deaf:
            supervisor.asked.clear()
            deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: supervisor.asked, 5.0, "a look")
            end = time.monotonic() + 30.0
            while supervisor.asked and time.monotonic() < end:
                # With nobody who listens there is no look.
                supervisor.asked.clear()
                message = f"{time.monotonic()} " * 40
                big = {str(n): _entry(n, reason=message) for n in range(2000)}
                supervisor.set(make_status(), make_overview(big, []))
                time.sleep(0.5)
            assert not supervisor.asked
        assert there.ask("/")[0] == 200
    supervisor.set(make_status(), make_overview({}, []))


# Steering


def _steer(there: Site, what: str, body: Any, token: str | None = _TOKEN, **headers: str) -> tuple[int, str]:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    headers = {"Content_Type": "application/json", **headers}
    text = body if isinstance(body, str) else json.dumps(body)
    status, _, said = there.ask(f"/api/{what}", "POST", text, **headers)
    return status, said


def test_without_a_token_it_only_shows(supervisor: StandIn, here: Site) -> None:
    supervisor.asked.clear()
    for what in ("pause", "resume", "cancel"):
        assert _steer(here, what, {"detectors": [94]})[0] == 403
        assert here.ask(f"/api/{what}")[0] == 405
    assert [r.command for r in supervisor.asked if r.command not in ("status", "detectors")] == []


def test_with_a_token(supervisor: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "token"
    limits = Limits(body_seconds=0.5, burst=1000.0)
    supervisor.answers["pause"] = ControlReply(ok=True, result={"all": None})
    with _limited(supervisor, tmp_path, limits, token_file=str(file)) as there:
        body = {"detectors": [94], "reason": "its bias jumps"}
        assert _steer(there, "pause", body)[0] == 503  # no file
        file.write_text("short\n")
        assert _steer(there, "pause", body, "short")[0] == 403
        file.write_text(f"{_TOKEN}\n")
        supervisor.asked.clear()
        for wrong in (None, "", "another", _TOKEN + "x"):
            assert _steer(there, "pause", body, wrong)[0] == 401
        assert _steer(there, "pause", body, None, Cookie=f"token={_TOKEN}")[0] == 401
        assert _steer(there, "pause", body, Content_Type="text/plain")[0] == 415
        for bad in ("{", "[]", {}, {"detectors": []}, {"detectors": ["x"]}, {"now": True, "detectors": [1]}):
            assert _steer(there, "pause", bad)[0] == 400, bad
        assert _steer(there, "cancel", {"detectors": [94]})[0] == 400
        assert _steer(there, "stop", body)[0] == 404
        assert _steer(there, "pause", {**body, "reason": "x" * 8000})[0] == 413
        assert supervisor.asked == []
        assert _steer(there, "pause", body) == (200, '{"ok": true, "error": null, "result": {"all": null}}')
        (asked,) = supervisor.asked
        assert (asked.command, asked.detectors, asked.reason) == ("pause", (94,), "its bias jumps")
        assert _steer(there, "resume", body)[0] == 409
        with socket.create_connection((there.host, there.port), timeout=5.0) as line:
            line.sendall(
                f"POST /api/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {_TOKEN}\r\n"
                "Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{".encode()
            )
            assert line.recv(100).startswith(b"HTTP/1.1 408")


# What it makes of it


@pytest.mark.parametrize(
    ("visits", "faults", "unready", "level", "detail"),
    [
        ([], [], [], "idle", "no visit has come"),
        ([], ["nursery: it is starting"], [], "warning", "no visit is over"),
        ([make_visit("a", {"running": 9}, 950.0)], [], [], "ok", "none is over"),
        ([_A], [], [], "ok", "9 of 9 detectors of visit a exported"),
        ([make_visit("a", {"exported": 9}, 100.0)], [], [], "idle", "long over"),
        ([make_visit("a", {"exported": 8, "failed": 1}, 950.0)], [], [], "warning", "1 failed"),
        ([make_visit("a", {"exported": 9}, 950.0, alerts={"late": 2})], [], [], "warning", "2 late"),
        (
            [_A, make_visit("b", {"running": 8, "failed": 1}, 980.0)],
            [],
            [],
            "warning",
            "1 of the visit at work",
        ),
        ([make_visit("a", {"failed": 9}, 950.0)], [], [], "trouble", "all 9 detectors"),
        ([make_visit("a", {"handed_over": 9}, 800.0)], [], [], "trouble", "9 detectors of visit a had"),
        ([_A], ["replica: away"], [], "warning", "9 of 9"),
        ([_A], [], ["the file system of the spool is full"], "trouble", "spool is full"),
    ],
)
def test_verdict(visits: list[Any], faults: list[str], unready: list[str], level: str, detail: str) -> None:
    found = judge(visits, faults, unready, False, False, 60.0, 1000.0)
    assert found["level"] == level
    assert detail in found["detail"]


def test_a_remedy_goes_by_the_component() -> None:
    """Whatever the text begins with, and has in it."""
    fault = {"component": "journal", "text": "raws from export: dead letters: nursery:"}
    picture = make_picture(make_status(), make_overview({}, [], faults=[fault]), Past(), 3.0)
    (shown,) = picture["faults"]
    assert shown["text"] == fault["text"]
    assert (shown["meaning"], shown["command"]) == REMEDIES["journal"]
    assert picture["verdict"]["level"] == "warning"


def test_a_pause_is_no_trouble() -> None:
    found = judge([], [], ["paused since 22:00: clouds"], True, False, 60.0, 1000.0)
    assert (found["level"], "clouds" in found["detail"]) == ("paused", True)
    found = judge([_A], [], ["ppd is draining"], False, True, 60.0, 1000.0)
    assert (found["level"], "9 of 9" in found["detail"]) == ("paused", True)


def test_what_was_before_is_shown_until_there_is_something_new() -> None:
    past = Past((make_visit("old", {"exported": 1}, 1.0),), {"3": _entry(3), "4": _entry(4)})
    overview = make_overview({"4": _entry(9)}, [make_visit("new", {"running": 1}, 2.0)])
    picture = make_picture(make_status(), overview, past, 3.0)
    assert [v["group"] for v in picture["visits"]] == ["old", "new"]
    assert picture["detectors"] == {"3": _entry(3), "4": _entry(9)}
    other = make_picture(make_status(), make_overview({"5": _entry(5)}, []), Past(), 3.0)
    changed = changes(picture, other)
    assert changed["detectors"] == {"3": None, "4": None, "5": _entry(5)}
    assert "gauges" not in changed
    assert changes(picture, picture) == {}


@pytest.mark.parametrize(
    ("given", "found"),
    [("", None), (None, None), ("off", None), (" [::1]:80 ", "[::1]:80"), ("host:0", "host:0")],
)
def test_where_to_listen(given: str | None, found: str | None) -> None:
    assert _settings(given).http_listen == found


@pytest.mark.parametrize("given", ["8642", "host", "host:", "host:65536", "::1:80", "a b:80", ":80", 8642])
def test_nowhere_to_listen(given: object) -> None:
    with pytest.raises(ValueError, match=r"http_listen"):
        _settings(given)


def _settings(listen: object) -> Settings:
    needed = {"instrument": "Cam", "central_repo": "/r", "main_pipelines": [{"pipelines": ["/a/Isr.yaml"]}]}
    return Settings.model_validate({**needed, "http_listen": listen})
