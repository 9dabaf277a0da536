"""What sources of visits have heard is accepted as from the control socket, many at a time, and judged."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis_support import redis_server
from test_visit import message

from ppd.config import Settings
from ppd.instruments.lsstcam import describe
from ppd.messages import ControlRequest
from ppd.sources.redis_visits import RedisOptions, RedisVisits
from ppd.sources.visits import Announcement, Heard, Judgement, Verdict
from ppd.supervisor.commands import answer
from ppd.supervisor.counters import Counters
from ppd.supervisor.daemon import Supervisor
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.exporter_keeper import ExporterState
from ppd.supervisor.hearing import hear_inbox
from ppd.supervisor.inbox import Inbox
from ppd.supervisor.journal import Journal
from ppd.supervisor.ledger import Ledger
from ppd.supervisor.lifecycle import Lifecycle
from ppd.supervisor.measures import Measures
from ppd.supervisor.pauses import Pauses
from ppd.supervisor.spool_watch import SpoolWatch
from ppd.supervisor.visit_sources import VisitSources
from ppd.visit import TAI_MINUS_UTC

DETECTORS = 189


class _Source:
    """Keeps what it is told."""

    name, kind = "a source", "test"

    def __init__(self) -> None:
        self.judged: list[Judgement] = []
        self.held: str | None = None

    def settle(self, judgements: Any) -> None:
        self.judged += judgements

    def hold(self, reason: str | None) -> None:
        self.held = reason

    def status(self) -> str | None:
        return self.held


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Any]:
    """A supervisor of LSSTCam with all that accepts visits, and nothing that processes them."""
    settings = Settings.model_validate(
        {
            "instrument": "LSSTCam",
            "central_repo": "x",
            "main_pipelines": [{"survey": "", "pipelines": ["x.yaml"]}],
            "state_dir": str(tmp_path),
            "spool_min_free": 0,
        }
    )
    settings.spool_dir.mkdir()
    nothing: Any = SimpleNamespace(
        request=lambda *a: None, expect=lambda *a: None, dismiss=lambda *a: None, turn=lambda *a: None
    )
    found: Any = Supervisor.__new__(Supervisor)
    found.settings, found.deployment = settings, Deployment("deployment", settings)
    found.focal_plane = describe().focal_plane
    found.central = SimpleNamespace(
        detectors=frozenset(d.id for d in found.focal_plane.detectors), filters={"r_57": "r"}
    )
    found.counters, found.inbox, found.answers, found.judgements = Counters(), Inbox(), [], []
    found.draining = found.stopping = False
    found.pauses = Pauses(tmp_path / "paused.json")
    found.journal = Journal(tmp_path / "journal.sqlite3")
    exporter: Any = SimpleNamespace(state=ExporterState(entries=0, bytes=0), trouble=None)
    found.spool_watch = SpoolWatch(settings, found.counters, exporter)
    ledger = Ledger(found.journal, found.counters, Measures(settings))
    found.lifecycle = Lifecycle(
        settings, "", ledger, nothing, lambda *a: True, lambda *a: None, nothing, nothing
    )
    found.visit_sources = VisitSources([_Source()])  # type: ignore[list-item]
    yield found
    found.journal.close()
    found.inbox.close()


def _message(**changes: Any) -> dict[str, Any]:
    fields = message(
        instrument="LSSTCam", filters="r_57", survey="", private_sndStamp=time.time() + TAI_MINUS_UTC
    )
    return {**fields, **changes}


def _announce(supervisor: Any, *messages: Any, source: Any = None) -> dict[str, Judgement]:
    """Have a turn with a batch of announcements; return what was judged, by ticket."""
    source = source or _Source()
    some = tuple(Announcement(str(i), m, time.time()) for i, m in enumerate(messages))
    supervisor.inbox.put(Heard(source, some))
    hear_inbox(supervisor)
    assert source.judged == [], "the journal comes first"
    supervisor.journal.commit()
    supervisor._send_answers()
    assert len(source.judged) == len(some)
    return {j.ticket: j for j in source.judged}


def _verdicts(judged: dict[str, Judgement]) -> list[Verdict]:
    return [judged[ticket].verdict for ticket in sorted(judged, key=int)]


def _known(supervisor: Any, group: str) -> set[int]:
    found: set[int] = supervisor.journal.known_detectors("LSSTCam", group)
    return found


def test_one_visit_is_one_acceptance(supervisor: Any) -> None:
    one = _message()
    judged = _announce(supervisor, *({**one, "detector": str(d)} for d in range(9)))
    assert set(_verdicts(judged)) == {Verdict.DONE}
    (entry,) = supervisor.lifecycle.table.visits.values()
    group = entry.visit.groupId
    assert sorted(entry.detectors) == sorted(_known(supervisor, group)) == list(range(9))
    assert supervisor.counters["visits_accepted"] == 9
    with sqlite3.connect(supervisor.settings.state_dir / "journal.sqlite3") as db:
        ((source,),) = db.execute("SELECT source FROM visit").fetchall()
        ((detail,),) = db.execute("SELECT detail FROM event WHERE name='accepted'").fetchall()
    assert source == "test"
    assert '"delivered": ' in detail


def test_each_is_judged_by_itself(supervisor: Any) -> None:
    """The same twice, too old, nobody's, another's, and what is no message: the good one is accepted."""
    good = _message(detector="4")
    judged = _announce(
        supervisor,
        good,
        good,
        _message(detector="5", groupId="old", private_sndStamp=1e9),
        _message(detector="6", instrument=""),
        _message(detector="7", instrument="LATISS"),
        _message(detector="8", filters="u_24"),
        _message(detector="900"),
        {"groupId": "nonsense"},
        _message(detector="9", position="[1e400, 0]"),
        _message(detector="10", survey="SKY"),
    )
    done, rejected = Verdict.DONE, Verdict.REJECTED
    assert _verdicts(judged) == [done, done, done, done, done, rejected, rejected, rejected, rejected, done]
    assert "salIndex is missing" in judged["7"].reason
    assert _known(supervisor, good["groupId"]) == {4}
    counts = supervisor.counters.as_dict()
    assert counts == {
        "visits_accepted": 1,
        "visits_duplicate": 1,
        "visits_stale": 1,
        "visits_ignored": 3,
        "visits_malformed": 4,
    }
    # One line each for what an operator may have to look at.
    kinds = [e["kind"] for e in supervisor.counters.errors()]
    assert sorted(kinds) == ["visits_malformed", "visits_stale"]
    # Delivered once more, by a restart: it is known.
    assert _verdicts(_announce(supervisor, good)) == [done]
    assert supervisor.counters["visits_duplicate"] == 2


@pytest.mark.parametrize("why", ["stopping", "draining", "paused", "spool", "journal"])
def test_not_now(supervisor: Any, why: str) -> None:
    """It is for later, or for others, and nothing of it is written."""
    if why == "paused":
        supervisor.pauses.pause([], "clouds")
    elif why == "spool":
        supervisor.spool_watch._exporter.state = ExporterState(entries=1, bytes=1 << 60)
    elif why == "journal":
        pages = supervisor.journal._db.execute("PRAGMA page_count").fetchone()[0]
        supervisor.journal._db.execute(f"PRAGMA max_page_count={pages}")
    else:
        setattr(supervisor, why, True)
    judged = _announce(supervisor, *(_message(groupId=f"g{i}", detector="1") for i in range(60)))
    assert set(_verdicts(judged)) == {Verdict.LATER}
    assert all(j.reason for j in judged.values())
    assert supervisor.lifecycle.table.visits == {}
    assert _known(supervisor, "g0") == set()
    if why == "journal":
        assert supervisor.counters["visits_refused_journal"] == 60
        # Nothing more is read for a while.
        supervisor.visit_sources.turn(lambda: None)
        assert "The journal can't be written" in supervisor.visit_sources.status()[0]


def test_paused_detector(supervisor: Any) -> None:
    """The others are taken; that one is accounted for."""
    supervisor.pauses.pause([3], "dead amplifier")
    judged = _announce(supervisor, *(_message(detector=str(d)) for d in (2, 3)))
    assert _verdicts(judged) == [Verdict.DONE, Verdict.DONE]
    assert _known(supervisor, _message()["groupId"]) == {2}
    assert supervisor.counters["visits_ignored"] == 1


def test_a_defect_is_answered_too(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the batch is answered, or its source would wait for ever."""
    admit = supervisor.admit

    def fails(fields: Any, **options: Any) -> Any:
        if fields["detector"] == "1":
            raise LookupError("nobody has foreseen it")
        return admit(fields, **options)

    monkeypatch.setattr(supervisor, "admit", fails)
    judged = _announce(supervisor, *(_message(detector=str(d)) for d in range(3)))
    assert _verdicts(judged) == [Verdict.DONE, Verdict.DEFECT, Verdict.DONE]
    assert judged["1"].reason == "LookupError: nobody has foreseen it"
    monkeypatch.setattr(supervisor.lifecycle, "accept_all", lambda *a, **k: 1 / 0)
    judged = _announce(supervisor, *(_message(groupId="h", detector=str(d)) for d in range(3)))
    assert set(_verdicts(judged)) == {Verdict.DEFECT}
    assert supervisor.counters["internal_errors"] == 3  # he was refused twice


def test_by_http(supervisor: Any) -> None:
    """What the page's process passes on: one answer for each, and the good ones are in the journal."""
    good = _message(detector=4)
    request = ControlRequest(command="announce", visits=(good, "text", {}, {**good, "groupId": "old"}, good))
    reply = answer(supervisor, request)
    assert reply is not None and reply.ok
    codes = [judged["code"] for judged in reply.result["judged"]]
    assert codes == ["ok", "malformed", "malformed", "ok", "duplicate"]
    supervisor.draining = True
    reply = answer(supervisor, request)
    assert reply is not None
    assert {judged["code"] for judged in reply.result["judged"]} == {"unavailable"}
    assert _known(supervisor, good["groupId"]) == {4}


def test_a_whole_camera_in_a_second(supervisor: Any, tmp_path: Path) -> None:
    """189 entries of one visit, from a real stream to a real journal, and confirmed."""
    with redis_server(tmp_path) as server:
        one = _message()
        for detector in sorted(supervisor.central.detectors):
            server.add("s", {**one, "detector": detector})
        source = RedisVisits(RedisOptions(server.url, "s", "g", "c"), supervisor.inbox.put)
        begin, processor = time.monotonic(), time.process_time()
        source.hold(None)
        source.start()
        while source.status().confirmed < DETECTORS and time.monotonic() < begin + 20.0:
            hear_inbox(supervisor)
            supervisor.journal.commit()
            supervisor._send_answers()
            time.sleep(0.001)
        seconds, processor = time.monotonic() - begin, time.process_time() - processor
        source.stop(5.0)
        assert server.pending("s", "g") == 0
    assert len(_known(supervisor, _message()["groupId"])) == DETECTORS
    print(f"{seconds:.2f} s, {processor:.2f} s of a processor")
    # The others on this machine don't change that.
    assert processor < 1.0
