"""Visits that are announced by HTTP: CloudEvents in each form, and an answer that says what to do next."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observatory import Observatory, identity, running, wait_for
from page_support import Site, StandIn, make_setup, site
from test_visit import message

from ppd.demo.camera import focal_plane
from ppd.messages import ControlReply, ControlRequest
from ppd.web.door import Limits

DETECTORS = 189
_ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "fan-out", "type": "nextVisit"}
STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


class _Supervisor(StandIn):
    """Answers each announcement with a code that it names as its survey."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.sizes: list[int] = []
        self.visits: list[Any] = []
        self.pause = 0.0
        self.answers["announce"] = self._answer

    def _answer(self, request: ControlRequest) -> ControlReply:
        self.sizes.append(len(request.visits))
        self.visits += request.visits
        time.sleep(self.pause)
        if any(not isinstance(v, dict) for v in request.visits):
            return ControlReply(ok=False, code="malformed", error="what a nonsense")
        judged = [{"code": v.get("survey") or "ok", "error": "a reason"} for v in request.visits]
        return ControlReply(ok=True, result={"judged": judged})


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[_Supervisor]:
    (tmp_path / "s").mkdir()
    stand_in = _Supervisor(tmp_path / "s")
    stand_in.start()
    yield stand_in
    stand_in.stop()


@pytest.fixture
def here(supervisor: _Supervisor, tmp_path: Path) -> Iterator[Site]:
    with site(make_setup(focal_plane(), tmp_path / "s", tmp_path, visits=True)) as found:
        yield found


def _event(**fields: Any) -> dict[str, Any]:
    return {**_ATTRIBUTES, "data": message(**fields)}


def _post(here: Site, body: Any, kind: str = STRUCTURED, **headers: str) -> tuple[int, dict[str, str], str]:
    text = body if isinstance(body, str) else json.dumps(body)
    return here.ask("/next-visit", "POST", text, Content_Type=kind, **headers)


_BINARY = {f"ce_{name}": value for name, value in _ATTRIBUTES.items()}


def test_each_form(supervisor: _Supervisor, here: Site) -> None:
    one = message(detector=4, survey="")
    packed = {**_ATTRIBUTES, "data_base64": base64.b64encode(json.dumps(one).encode()).decode()}
    assert _post(here, _event(detector=4, survey=""))[0] == 200
    assert _post(here, _event(detector=4, survey=""), f"{STRUCTURED}; charset=utf-8")[0] == 200
    assert _post(here, packed)[0] == 200
    assert _post(here, one, "application/json", **_BINARY)[0] == 200
    status, _, text = _post(here, [_event(detector=4, survey=""), packed], BATCH)
    assert status == 200
    assert [a["code"] for a in json.loads(text)["announced"]] == ["ok", "ok"]
    assert supervisor.visits == [one] * 6


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ok", 200),
        ("duplicate", 200),
        ("malformed", 400),
        ("stale", 403),
        ("ignored", 422),
        ("unavailable", 503),
        ("defect", 500),
        ("something new", 500),
    ],
)
def test_answers(here: Site, code: str, status: int) -> None:
    found, headers, text = _post(here, _event(survey=code))
    assert found == status
    assert json.loads(text)["announced"] == [{"code": code, "error": "a reason"}]
    assert ("Retry-After" in headers) == (status == 503)


def test_of_a_batch_the_one_that_may_be_tried_again_counts(here: Site) -> None:
    """What was accepted of it is known when it comes again."""
    some = [_event(survey=code) for code in ("", "stale", "malformed", "unavailable")]
    assert _post(here, some, BATCH)[0] == 503
    assert _post(here, some[:3], BATCH)[0] == 400
    assert _post(here, some[:2], BATCH)[0] == 403
    assert _post(here, [], BATCH)[0] == 200


def test_a_supervisor_that_is_away(supervisor: _Supervisor, here: Site) -> None:
    supervisor.stop()
    status, headers, text = _post(here, _event())
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "No ppd answers" in text


_DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (STRUCTURED, "nonsense"),
        (STRUCTURED, "[]"),
        (STRUCTURED, json.dumps({**_event(), "specversion": "0.3"})),
        (STRUCTURED, json.dumps({**_event(), "id": ""})),
        (STRUCTURED, json.dumps(_ATTRIBUTES)),
        (STRUCTURED, json.dumps({**_ATTRIBUTES, "data_base64": "?"})),
        (STRUCTURED, json.dumps({**_ATTRIBUTES, "data_base64": 7})),
        (STRUCTURED, json.dumps(_event(private_origin="x" * 20_000))),
        (STRUCTURED, "[" * 100_000),
        (STRUCTURED, json.dumps({**_ATTRIBUTES, "data": "text"})),
        (STRUCTURED, f'{{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {_DEEP}}}'),
        (STRUCTURED, json.dumps({**_ATTRIBUTES, "data": {"survey": "\ud800"}})),
        (BATCH, json.dumps(_event())),
        (BATCH, json.dumps([_event(), 1])),
        (BATCH, json.dumps([_event()] * 401)),
        ("application/json", json.dumps(message())),
        ("text/plain", json.dumps(_event())),
    ],
)
def test_what_is_no_announcement(supervisor: _Supervisor, here: Site, kind: str, body: str) -> None:
    assert _post(here, body, kind)[0] == 400
    assert _post(here, _event(survey=""))[0] == 200


def test_binary_mode_without_an_attribute(here: Site) -> None:
    headers = {name: value for name, value in _BINARY.items() if name != "ce_type"}
    assert _post(here, message(), "application/json", **headers)[0] == 400


def test_what_is_too_large(here: Site) -> None:
    assert _post(here, json.dumps(_event()) + " " * 600_000)[0] == 413


def test_what_does_not_come(here: Site, supervisor: _Supervisor, tmp_path: Path) -> None:
    with site(
        make_setup(focal_plane(), tmp_path / "s", tmp_path, visits=True), Limits(body_seconds=0.3)
    ) as slow:
        status, _, _ = slow.ask("/next-visit", "POST", "{", Content_Type=STRUCTURED, Content_Length="100")
    assert status == 408


def test_not_from_a_browser(here: Site) -> None:
    """Which a page of another site might have led here; services have other names for us than our own."""
    assert _post(here, _event(), Origin="https://elsewhere.example.org")[0] == 403
    assert _post(here, _event(survey=""), Host="ppd.prompt.svc.cluster.local")[0] == 200


def test_off_unless_it_is_wanted(supervisor: _Supervisor, tmp_path: Path) -> None:
    with site(make_setup(focal_plane(), tmp_path / "s", tmp_path)) as here:
        assert _post(here, _event())[0] == 404
    assert supervisor.visits == []


def test_a_whole_camera_at_once(supervisor: _Supervisor, here: Site) -> None:
    """Each detector in a request of its own: those that wait go to the supervisor together."""
    supervisor.pause = 0.1
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        posts = [pool.submit(_post, here, _event(detector=d, survey="")) for d in range(DETECTORS)]
        assert {post.result()[0] for post in posts} == {200}
    assert sorted(v["detector"] for v in supervisor.visits) == list(range(DETECTORS))
    assert max(supervisor.sizes) <= 64
    assert len(supervisor.sizes) < DETECTORS / 4


def test_too_many(supervisor: _Supervisor, tmp_path: Path) -> None:
    """Who announces more than any telescope is told to wait; others, and the page, are not concerned."""
    limits = Limits(visits_rate=0.1, visits_burst=3.0)
    with site(make_setup(focal_plane(), tmp_path / "s", tmp_path, visits=True), limits) as here:
        found = [_post(here, _event(survey="")) for _ in range(5)]
        assert [status for status, _, _ in found] == [200, 200, 200, 503, 503]
        assert "Retry-After" in found[-1][1]
        assert here.ask("/healthz")[0] == 200


@pytest.mark.night
@pytest.mark.slow
def test_a_real_ppd(observatory: Observatory, tmp_path: Path) -> None:
    """200 is said when the journal has it; what comes again is known, what is paused is not taken."""
    with running(observatory, tmp_path, http_listen="127.0.0.1:0", http_visits=True) as ppd:
        address = wait_for(lambda: ppd.status()["web"]["address"], 30.0, "the page")
        here = Site(address)
        events = [
            {**_ATTRIBUTES, "data": {**observatory.message(), "groupId": "by-http", "detector": d}}
            for d in range(3)
        ]
        assert _post(here, events[:2], BATCH)[0] == 200
        assert ppd.states("by-http")
        assert _post(here, events[2])[0] == 200
        assert _post(here, events, BATCH)[0] == 200
        stale = {**_ATTRIBUTES, "data": {**observatory.message(), "groupId": "g", "private_sndStamp": 1e9}}
        assert _post(here, stale)[0] == 403
        assert _post(here, {**_ATTRIBUTES, "data": {**observatory.message(), "instrument": "X"}})[0] == 422
        assert _post(here, {**_ATTRIBUTES, "data": {"nonsense": 1}})[0] == 400
        assert ppd.command("ctl", "pause").returncode == 0
        assert _post(here, stale)[0] == 503
        assert ppd.command("ctl", "resume").returncode == 0
        counts = ppd.counts()
        assert (counts["visits_accepted"], counts["visits_duplicate"]) == (3, 3)
        for detector in range(3):
            ppd.drop(observatory.raw(detector, **identity("by-http")), detector, "by-http")
        ppd.await_state("by-http", exported=3, timeout=200.0)
