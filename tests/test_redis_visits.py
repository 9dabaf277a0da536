"""Visits from a real stream: read, judged, confirmed; and what servers, networks and the dead leave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from observatory import wait_for
from redis_support import RedisServer, Wire, make_certificate, redis_server, wire
from test_visit import message

from ppd.sources import redis_visits
from ppd.sources.redis_visits import RedisOptions, RedisVisits, consumer_name
from ppd.sources.visits import Announcement, Heard, Judgement, Undelivered, Verdict

STREAM, GROUP = "instrument:democam", "ppd"
ME, OTHER = "ppd-here", "ppd-there"

Judge = Callable[[Announcement], Verdict]


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks, and tries again, sooner than is good for a site's server."""
    monkeypatch.setattr(redis_visits, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(redis_visits, "_POSTPONED_SECONDS", 0.1)


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    """A server with nothing in it."""
    running_server.client.flushall()
    return running_server


class Listener:
    """A source with somebody who judges."""

    def __init__(self, url: str, judge: Judge = lambda a: Verdict.DONE, **options: Any):
        self.heard: list[Announcement] = []
        self.batches: list[int] = []
        self.undelivered: list[Undelivered] = []
        self.judge = judge
        values = {"stream": STREAM, "group": GROUP, "consumer": ME, "retry_delay": 0.5, **options}
        self.source = RedisVisits(RedisOptions(url=url, **values), self._report)

    def _report(self, item: Heard | Undelivered) -> None:
        if isinstance(item, Undelivered):
            self.undelivered.append(item)
            return
        self.batches.append(len(item.announcements))
        self.heard += item.announcements
        # As the loop does, in one go.
        item.source.settle(
            [Judgement(a.ticket, self.judge(a), reason="a reason") for a in item.announcements]
        )

    def detectors(self) -> list[int]:
        return [int(a.message["detector"]) for a in self.heard]


@contextlib.contextmanager
def listening(url: str, *arguments: Any, **options: Any) -> Iterator[Listener]:
    listener = Listener(url, *arguments, **options)
    listener.source.hold(None)
    listener.source.start()
    try:
        yield listener
    finally:
        listener.source.stop(10.0)
        assert not listener.source._thread.is_alive()


def _fill(server: RedisServer, count: int, begin: int = 0) -> list[str]:
    return [server.add(STREAM, message(detector=d)) for d in range(begin, begin + count)]


def _settled(server: RedisServer) -> bool:
    groups = server.client.xinfo_groups(STREAM)
    return bool(groups) and groups[0]["pending"] == 0 and groups[0]["lag"] == 0


def _given_to(server: RedisServer, consumer: str, count: int) -> None:
    """Have somebody read and die."""
    server.client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=count)


def _make_group(server: RedisServer) -> None:
    server.client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)


def _rejected(server: RedisServer) -> list[dict[str, str]]:
    return [fields for _, fields in server.client.xrange(f"{STREAM}:ppd-rejected")]


# The usual


def test_all_are_heard_and_confirmed(server: RedisServer) -> None:
    """Also what was there before the group; each once, as it is and with its time."""
    before = time.time()
    _fill(server, 5)
    with listening(server.url) as listener:
        wait_for(lambda: len(listener.heard) == 5, 10.0, "what was there")
        _fill(server, 4, begin=5)
        wait_for(lambda: len(listener.heard) == 9, 10.0, "what came then")
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
        wait_for(lambda: listener.source.status().lag == 0, 10.0, "a look")
        status = listener.source.status()
    assert listener.detectors() == list(range(9))
    first = listener.heard[0]
    assert first.message["position"] == str(message()["position"])
    assert all(isinstance(value, str) for value in first.message.values())
    assert before - 1.0 < first.delivered < time.time() + 1.0
    assert (status.trouble, status.read, status.confirmed, status.set_aside) == (None, 9, 9, 0)
    assert 0.0 <= status.delay < 10.0


def test_old_entries_are_not_for_a_new_group(server: RedisServer) -> None:
    server.client.xadd(STREAM, {"detector": "1"}, id=f"{int((time.time() - 7200) * 1000)}-0")
    _fill(server, 1, begin=2)
    with listening(server.url, expiration=3600.0) as listener:
        wait_for(lambda: listener.heard, 10.0, "the new one")
    assert listener.detectors() == [2]


def test_nothing_is_read_while_it_is_held(server: RedisServer) -> None:
    """As while ppd is paused; how much waits is known all the same, and others may have it."""
    with listening(server.url) as listener:
        _fill(server, 1)
        wait_for(lambda: listener.heard, 10.0, "the first")
        listener.source.hold("ppd is paused")
        time.sleep(0.6)  # a read may be under way
        _fill(server, 3, begin=1)
        wait_for(lambda: listener.source.status().lag == 3, 10.0, "a look")
        assert listener.detectors() == [0]
        assert (listener.source.status().held, listener.source.status().trouble) == ("ppd is paused", None)
        listener.source.hold(None)
        wait_for(lambda: len(listener.heard) == 4, 10.0, "the others")


def test_it_is_the_same_consumer_after_a_restart(tmp_path: Path) -> None:
    assert consumer_name(tmp_path) == consumer_name(tmp_path)
    assert consumer_name(tmp_path) != consumer_name(tmp_path / "another")


# What was not confirmed


def test_what_is_not_judged_is_left_for_the_restart(server: RedisServer) -> None:
    """It stops with a batch in hand: nothing of it is confirmed, and the next life has it first."""
    taken: list[Any] = []
    source = RedisVisits(RedisOptions(server.url, STREAM, GROUP, ME), taken.append)
    _fill(server, 3)
    source.hold(None)
    source.start()
    wait_for(lambda: taken, 10.0, "the batch")
    (heard,) = taken
    source.settle([Judgement(heard.announcements[0].ticket, Verdict.DONE)])
    source.stop(10.0)
    # What was judged just before the end is confirmed, and no more.
    assert server.pending(STREAM) == 2
    _fill(server, 1, begin=3)
    with listening(server.url) as again:
        wait_for(lambda: len(again.heard) == 3, 10.0, "the rest")
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
    assert again.detectors() == [1, 2, 3]


def test_what_can_not_be_taken_now_is_tried_again(server: RedisServer) -> None:
    """Others are heard meanwhile, and that it takes many tries is not its fault."""
    refused = 0

    def judge(announcement: Announcement) -> Verdict:
        nonlocal refused
        if announcement.message["detector"] == "1" and refused < 3:
            refused += 1
            return Verdict.LATER
        return Verdict.DONE

    with listening(server.url, judge, deliveries=2) as listener:
        _fill(server, 3)
        wait_for(lambda: _settled(server), 20.0, "all to be confirmed")
    assert refused == 3
    assert listener.detectors() == [0, 1, 2, 1, 1, 1]
    assert listener.source.status().postponed == 3
    assert _rejected(server) == []


def test_what_a_dead_consumer_left_is_taken_over(server: RedisServer) -> None:
    _make_group(server)
    _fill(server, 4)
    _given_to(server, OTHER, 3)
    time.sleep(0.3)
    with listening(server.url, claim_idle=0.2) as listener:
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
    assert sorted(listener.detectors()) == [0, 1, 2, 3]
    assert listener.source.status().claimed == 3


def test_what_another_has_just_got_is_left_to_him(server: RedisServer) -> None:
    _make_group(server)
    _fill(server, 2)
    _given_to(server, OTHER, 1)
    with listening(server.url, claim_idle=60.0) as listener:
        wait_for(lambda: listener.heard, 10.0, "the second")
        time.sleep(0.3)
    assert listener.detectors() == [1]
    assert server.pending(STREAM) == 1


@pytest.mark.parametrize("consumer", [ME, OTHER])
def test_body_is_gone(server: RedisServer, consumer: str) -> None:
    """The stream was trimmed meanwhile: of ours, and of what is taken over."""
    _make_group(server)
    names = _fill(server, 3)
    _given_to(server, consumer, 3)
    server.client.xdel(STREAM, names[1])
    time.sleep(0.3)
    with listening(server.url, claim_idle=0.2) as listener:
        wait_for(lambda: server.pending(STREAM) == 0, 10.0, "all to be confirmed")
        wait_for(lambda: len(listener.heard) == 2, 10.0, "the others")
    assert listener.detectors() == [0, 2]
    (lost,) = listener.undelivered
    assert (lost.ticket, lost.gone) == (names[1], True)
    assert listener.source.status().gone == 1


# Poison


def test_what_can_never_be_taken_is_set_aside_at_once(server: RedisServer) -> None:
    with listening(server.url, lambda a: Verdict.DONE if "detector" in a.message else Verdict.REJECTED) as it:
        _fill(server, 1)
        name = server.client.xadd(STREAM, {b"nonsense": b"\xff"})
        _fill(server, 1, begin=1)
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
        assert it.source.status().set_aside == 1
    with contextlib.closing(redis.Redis.from_url(server.url, protocol=2)) as client:
        found: Any = client.xrange(f"{STREAM}:ppd-rejected")
    ((_, rejected),) = found
    assert rejected == {
        b"nonsense": b"\xff",
        b"ppd_id": name.encode(),
        b"ppd_consumer": ME.encode(),
        b"ppd_reason": b"a reason",
    }


def test_entry_that_is_too_large_is_not_looked_at(server: RedisServer) -> None:
    with listening(server.url) as listener:
        server.add(STREAM, message(detector=1, private_origin="1" * (1 << 20)))
        wait_for(lambda: listener.heard, 10.0, "it")
    assert listener.heard[0].message == {}
    assert "is no nextVisit" in (listener.heard[0].fault or "")


def test_what_fails_again_and_again_is_set_aside(server: RedisServer) -> None:
    with listening(
        server.url, lambda a: Verdict.DEFECT if a.message["detector"] == "1" else Verdict.DONE, deliveries=2
    ) as listener:
        names = _fill(server, 3)
        wait_for(lambda: _settled(server), 20.0, "all to be confirmed")
        wait_for(lambda: listener.undelivered, 10.0, "it to be told")
    assert listener.detectors() == [0, 1, 2, 1]
    (rejected,) = _rejected(server)
    assert rejected["detector"] == "1"
    assert "delivered 2 times" in rejected["ppd_reason"]
    assert rejected["ppd_reason"].endswith("a reason")
    assert (listener.undelivered[0].ticket, listener.undelivered[0].gone) == (names[1], False)


def test_what_ppd_dies_of_goes_alone(server: RedisServer) -> None:
    """Nobody says what killed it: what was there twice is given one by one, and at last set aside."""
    _make_group(server)
    _fill(server, 4)
    for _ in range(2):  # two lives of ours that ended without a word
        server.client.xreadgroup(GROUP, ME, {STREAM: ">"}, count=4)
        server.client.xreadgroup(GROUP, ME, {STREAM: "0"}, count=4)
    names = [row["message_id"] for row in server.client.xpending_range(STREAM, GROUP, "-", "+", 10)]
    for _ in range(2):  # and two more of the third one
        server.client.xclaim(STREAM, GROUP, ME, 0, [names[2]])
    with listening(server.url, deliveries=5) as listener:
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
    assert listener.batches == [1, 1, 1]
    assert listener.detectors() == [0, 1, 3]
    (rejected,) = _rejected(server)
    assert rejected["detector"] == "2"


def test_no_room_to_set_aside(server: RedisServer) -> None:
    """It is confirmed all the same, or all others would wait behind it; the log has it."""
    server.client.set(f"{STREAM}:ppd-rejected", "not a stream")
    with listening(server.url, lambda a: Verdict.REJECTED if a.message["detector"] == "0" else Verdict.DONE):
        _fill(server, 2)
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")


# Trouble


def test_group_that_is_gone_is_made_again(server: RedisServer) -> None:
    """The server was flushed, or another one has taken over that knows nothing of it."""
    with listening(server.url) as listener:
        _fill(server, 1)
        wait_for(lambda: listener.heard, 10.0, "the first")
        server.client.flushall()
        _fill(server, 1, begin=1)
        wait_for(lambda: len(listener.heard) == 2, 10.0, "the second")
        wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
        wait_for(lambda: listener.source.status().trouble is None, 10.0, "it to be well")


def test_cut_again_and_again(server: RedisServer) -> None:
    with wire(server.port) as between, listening(_through(between)) as listener:
        for number in range(10):
            _fill(server, 20, begin=20 * number)
            between.cut()
            time.sleep(0.05)
        wait_for(lambda: len(set(listener.detectors())) == 200, 20.0, "all to be heard")
        wait_for(lambda: _settled(server), 20.0, "all to be confirmed")
        wait_for(lambda: listener.source.status().trouble is None, 10.0, "it to be well")
        assert between.connections > 2


def test_cut_between_judgement_and_confirmation(server: RedisServer) -> None:
    """What was judged is not given to the loop again in the same life."""
    with wire(server.port) as between:

        def judge(announcement: Announcement) -> Verdict:
            between.refusing = True
            between.cut()
            return Verdict.DONE

        with listening(_through(between), judge) as listener:
            _fill(server, 3)
            wait_for(lambda: listener.heard, 10.0, "them")
            wait_for(lambda: listener.source.status().trouble, 10.0, "trouble")
            assert server.pending(STREAM) == 3
            between.refusing = False
            wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
    assert listener.detectors() == [0, 1, 2]


def test_silence_is_noticed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that passes nothing on, and does not say so."""
    make = redis_visits.make_client
    monkeypatch.setattr(redis_visits, "make_client", lambda *a, **k: make(*a, **{**k, "timeout": 1.0}))
    with wire(server.port) as between, listening(_through(between)) as listener:
        _fill(server, 1)
        wait_for(lambda: _settled(server), 10.0, "the first")
        between.be_silent()
        wait_for(lambda: listener.source.status().trouble, 10.0, "trouble")
        assert "Timeout" in (listener.source.status().trouble or "")
        between.speak()
        _fill(server, 1, begin=1)
        wait_for(lambda: len(listener.heard) == 2, 10.0, "the second")


def test_server_is_away_and_comes_back_empty(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, listening(server.url) as listener:
        _fill(server, 1)
        wait_for(lambda: listener.heard, 10.0, "the first")
        server.stop()
        wait_for(lambda: listener.source.status().trouble, 10.0, "trouble")
        assert listener.source.status().lag is None
        server.start()
        _fill(server, 1, begin=1)
        wait_for(lambda: len(listener.heard) == 2, 10.0, "the second")
        wait_for(lambda: listener.source.status().trouble is None, 10.0, "it to be well")


def test_server_that_became_a_replica(tmp_path: Path) -> None:
    """After a fail-over, the one that was the primary takes no writes: READONLY."""
    with redis_server(tmp_path) as server, listening(server.url) as listener:
        _fill(server, 1)
        wait_for(lambda: _settled(server), 10.0, "the first")
        server.client.replicaof("127.0.0.1", "1")
        wait_for(lambda: "ReadOnlyError" in (listener.source.status().trouble or ""), 10.0, "trouble")
        server.client.replicaof("NO", "ONE")
        _fill(server, 1, begin=1)
        wait_for(lambda: len(listener.heard) == 2, 10.0, "the second")


@pytest.mark.parametrize(
    "answer",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-MOVED 1234 10.0.0.1:6379\r\n",
        b"-CLUSTERDOWN Hash slot not served\r\n",
        b"-NOPERM this user has no permissions\r\n",
        b"-OOM command not allowed\r\n",
        b"?what\r\n",
    ],
    ids=lambda answer: answer.decode().strip("-\r\n").partition(" ")[0],
)
def test_errors_that_pass(server: RedisServer, answer: bytes) -> None:
    with wire(server.port) as between:
        between.answer = answer
        with listening(_through(between)) as listener:
            wait_for(lambda: listener.source.status().trouble, 10.0, "trouble")
            between.answer = None
            between.cut()
            _fill(server, 1)
            wait_for(lambda: _settled(server), 10.0, "all to be confirmed")
            wait_for(lambda: listener.source.status().trouble is None, 10.0, "it to be well")
    assert listener.detectors() == [0]


def test_connection_is_made_anew_after_a_long_silence(server: RedisServer) -> None:
    """A name may lead to another server by then."""
    with wire(server.port) as between, listening(_through(between), listen_timeout=0.5) as listener:
        wait_for(lambda: between.connections >= 2, 10.0, "another connection")
        _fill(server, 1)
        wait_for(lambda: listener.heard, 10.0, "it")
        assert listener.source.status().trouble is None


def test_password_over_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is not certified is not trusted, who does not know the password hears nothing; no log has it."""
    context, certificate = make_certificate(tmp_path)
    with (
        redis_server(tmp_path, "pass-word") as server,
        wire(server.port, context) as between,
    ):
        url = f"rediss://127.0.0.1:{between.port}"
        monkeypatch.setenv("REDIS_PASSWORD", "pass-word")
        with listening(url) as listener:
            wait_for(lambda: listener.source.status().trouble, 10.0, "a certificate of nobody to be refused")
            assert "certificate verify failed" in (listener.source.status().trouble or "")
        monkeypatch.setenv("REDIS_PASSWORD", "wrong-word")
        with listening(url, ca_file=certificate) as listener:
            wait_for(lambda: listener.source.status().trouble, 10.0, "a wrong password to be refused")
            assert "Authentication" in (listener.source.status().trouble or "")
        monkeypatch.setenv("REDIS_PASSWORD", "pass-word")
        with listening(url, ca_file=certificate) as listener:
            _fill(server, 1)
            wait_for(lambda: listener.heard, 10.0, "it")
        with listening(f"redis://:pass-word@127.0.0.1:{server.port}") as listener:
            assert "word" not in listener.source.name
    assert "-word" not in caplog.text


def _through(between: Wire) -> str:
    return f"redis://127.0.0.1:{between.port}"
