"""Ten thousand broken messages and a thousand lying headers: nothing that arrives can stop the supervisor.

`make test` sends a tenth of it; `make fuzz` (``PPD_FUZZ=full``) sends all.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from fuzzing import HeaderMutator, Mutator
from observatory import ISR, Observatory, Ppd, error_of, identity, running, wait_for

from ppd.errors import InvalidRawError
from ppd.messages import (
    ChildDone,
    ChildHeartbeat,
    ChildReady,
    ControlReply,
    ControlRequest,
    DetectorKey,
    MessageError,
    PermitRequest,
    PermitReturn,
    PhaseEvent,
    Pointing,
    RawArrived,
    decode,
    encode,
)
from ppd.workers.ingest import load_translators, read_raw

_FIRST_EXPOSURE = 2_026_000_500_000
_FULL = os.environ.get("PPD_FUZZ") == "full"
_MESSAGES = 10_000 if _FULL else 600
_HEADERS = 1000 if _FULL else 60
_LIVE_HEADERS = 150 if _FULL else 25
# Allocators keep some of what they had; a leak of a kilobyte a message would be seen.
_MAX_GROWTH = 48 << 20
_WINDOW = 50
_SURVEY = "fuzz"

pytestmark = [
    pytest.mark.night,
    pytest.mark.timeout(3000 if _FULL else 400),
    # Damaged files make readers warn; here it is known.
    pytest.mark.filterwarnings(
        "ignore::astropy.utils.exceptions.AstropyWarning", "ignore::DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    nodes = [{"survey": _SURVEY, "pipelines": None}, {"pipelines": [ISR]}]
    changes = {"slots": 8, "image_timeout": 2.0, "heartbeat_timeout": 6.0, "main_pipelines": nodes}
    with running(observatory, tmp_path_factory.mktemp("ppd"), **changes) as ppd:
        assert ppd.process is not None
        pid = ppd.process.pid
        yield ppd
        status = ppd.status()
        assert status["pid"] == pid
        assert status["counts"].get("internal_errors", 0) == 0, ppd.log
        assert status["health"] == "ok", status["faults"]
        ppd.good_visit("after-all-that", 4)
        ppd.await_state("after-all-that", exported=1)
        assert ("after-all-that", 4) in ppd.groups()
        # All that was accepted has come to its end.
        wait_for(lambda: ppd.status()["idle"], 120.0, "everything accepted to be over")


def _memory(ppd: Ppd) -> int:
    assert ppd.process is not None
    return int(psutil.Process(ppd.process.pid).memory_info().rss)


@contextlib.contextmanager
def _socket(ppd: Ppd, name: str, kind: int = zmq.DEALER, line: bytes | None = None) -> Iterator[Any]:
    context = zmq.Context()
    try:
        found = context.socket(kind)
        found.setsockopt(zmq.LINGER, 5000)
        found.setsockopt(zmq.SNDTIMEO, 30_000)
        if line is not None:
            found.setsockopt(zmq.IDENTITY, line)
        found.connect(f"ipc://{ppd.settings.socket_dir / name}")
        yield found
    finally:
        context.destroy()


def _with_frames(rng: random.Random, body: bytes) -> list[bytes]:
    """Frames before the one that counts, sometimes."""
    way = rng.random()
    if way < 0.8:
        return [body]
    if way < 0.9:
        return [b"", body]
    return [*(rng.randbytes(rng.choice([0, 1, 300])) for _ in range(rng.choice([2, 10, 500]))), body]


# control.ipc


def _requests(observatory: Observatory) -> list[bytes]:
    def submit(**changes: Any) -> bytes:
        return encode(ControlRequest(command="submit", visit=observatory.message(survey=_SURVEY, **changes)))

    flat = {k: v if isinstance(v, str) else json.dumps(v) for k, v in observatory.message().items()}
    text = json.dumps(observatory.message(groupId="text", detector=1, survey=_SURVEY))
    return [
        submit(groupId="bare"),
        *(submit(groupId=f"one-{d}", detector=d) for d in range(3)),
        encode(ControlRequest(command="submit", visit={**flat, "detector": "5", "survey": _SURVEY})),
        encode(ControlRequest(command="submit", visit=text)),
        encode(ControlRequest(command="status")),
        encode(ControlRequest(command="inputs", group="bare", detector=3)),
        encode(ControlRequest(command="prefetch", pointings=(Pointing(ra=1.0, dec=2.0),))),
        encode(ControlReply(ok=True)),
    ]


def _broken(mutator: Mutator, requests: Sequence[bytes], observatory: Observatory, number: int) -> bytes:
    """Break a request, or only the visit in it."""
    if mutator.rng.random() < 0.5:
        return mutator.mutate(mutator.rng.choice(requests))
    # Few groups: most are repetitions.
    changes = {"groupId": f"fuzz-{number % 7}", "survey": mutator.rng.choice([_SURVEY, _SURVEY, "other"])}
    visit = observatory.message(detector=number % 9, **changes)
    data = mutator.change_json(json.dumps(visit).encode())
    if mutator.rng.random() < 0.5:
        text = mutator.mutate(data, 1) if mutator.rng.random() < 0.5 else data
        return encode(ControlRequest(command="submit", visit=text.decode("utf-8", "replace")))
    return b'{"kind": "control_request", "command": "submit", "visit": ' + data + b"}"


def _is_allowed(body: bytes) -> bool:
    """Whether it may be sent: to stop is no mistake, and ZeroMQ cuts the line of who sends too much."""
    if len(body) > 2 << 20:
        return False
    try:
        message = decode(body)
    except MessageError:
        return True
    return not (isinstance(message, ControlRequest) and message.command in ("stop", "drain"))


def test_control(ppd: Ppd) -> None:
    """Each gets its answer, each refusal is counted as what it was answered, and what is accepted ends."""
    requests = _requests(ppd.observatory)
    mutator = Mutator(1, requests)
    before = collections.Counter(ppd.counts())
    answers: collections.Counter[str] = collections.Counter()
    accepted: dict[str, int] = {}
    memory = 0
    with _socket(ppd, "control.ipc") as control:
        for start in range(0, _MESSAGES, _WINDOW):
            for number in range(start, start + _WINDOW):
                body = _broken(mutator, requests, ppd.observatory, number)
                while not _is_allowed(body):
                    body = mutator.mutate(mutator.rng.choice(requests))
                control.send_multipart(_with_frames(mutator.rng, body))
            for _ in range(_WINDOW):
                assert control.poll(60_000), f"no answer; {answers}; {ppd.log}"
                reply = decode(control.recv_multipart()[-1])
                assert isinstance(reply, ControlReply)
                taken = set(reply.result) == {"group", "detectors"}
                answers["accepted" if taken else reply.code] += 1
                if taken:
                    group = reply.result["group"]
                    accepted[group] = accepted.get(group, 0) + len(reply.result["detectors"])
            if start + _WINDOW == _MESSAGES // 2:
                memory = _memory(ppd)
    growth = _memory(ppd) - memory
    counts = collections.Counter(ppd.counts())
    counts.subtract(before)
    print(dict(answers), f"{growth / 1e6:+.1f} MB", f"{sum(accepted.values())} detector-visits")
    assert answers.total() == _MESSAGES
    assert counts["internal_errors"] == 0
    assert answers["accepted"] == counts["visits_accepted"] > 0
    assert answers["malformed"] == counts["requests_refused"] + counts["visits_malformed"]
    for code in ("duplicate", "stale", "ignored"):
        assert answers[code] == counts[f"visits_{code}"]
    assert answers["unavailable"] == 0
    assert min(answers["malformed"], answers["ignored"]) > _MESSAGES // 50
    assert growth < _MAX_GROWTH
    timeout = 120.0 + 2.0 * sum(accepted.values())
    for group, detectors in accepted.items():
        wait_for(lambda g=group: _is_over(ppd, g), timeout, f"{group} of {detectors} detectors to be over")


def _is_over(ppd: Ppd, group: str) -> bool:
    """Whether a visit is over; of long ago nothing is known."""
    return not set(ppd.states(group)) - {"exported", "failed"}


# children.ipc


def _said(key: DetectorKey) -> list[bytes]:
    """What a child says in its life."""
    return [
        encode(message)
        for message in (
            ChildHeartbeat(key=key, phase="main"),
            ChildReady(key=key, pid=4321, seconds=0.4, opened=0.3),
            PermitRequest(key=key, work="main"),
            PermitReturn(key=key),
            PhaseEvent(key=key, name="main_start", time=time.time()),
            PhaseEvent(key=key, name="preprocess_end", time=1.8e9, detail={"success": False, "reason": "r"}),
            PhaseEvent(key=key, name="raw_refused", time=1.8e9, detail={"reason": "r", "path": "/a"}),
            ChildDone(key=key, success=True),
            ChildDone(key=key, success=False, reason="r", failure="retriable"),
            RawArrived(uri="/a", snap=0),
        )
    ]


def test_children(ppd: Ppd) -> None:
    """Nobody speaks for a child but that child: two at work, and ever so many who say they were they."""
    group = "at-work"
    for detector in (1, 2):
        assert ppd.submit(groupId=group, detector=detector, duration=600.0).ok
    ppd.await_state(group, ready=2)
    keys = [DetectorKey(instrument="DemoCam", group=group, detector=d) for d in (1, 2)]
    said = [body for key in keys for body in _said(key)]
    mutator = Mutator(2, said)
    before = ppd.counts().get("child_messages_refused", 0)
    sent = memory = 0

    def refused() -> int:
        return ppd.counts().get("child_messages_refused", 0) - before

    # One who claims to be the first: ZeroMQ hears of two only who came first.
    with _socket(ppd, "children.ipc") as stranger, _socket(ppd, "children.ipc", line=keys[0].line) as double:
        for number in range(_MESSAGES):
            body = mutator.rng.choice(said)
            if number % 5:
                body = mutator.mutate(body)
            if len(body) > 2 << 20:
                continue
            stranger.send_multipart(_with_frames(mutator.rng, body))
            sent += 1
            with contextlib.suppress(zmq.Again):
                double.send(body, zmq.NOBLOCK)
            if number % 200 == 199:
                # Not more than the supervisor has heard: its memory is what we look at.
                wait_for(lambda n=sent: refused() == n, 60.0, "all to be heard")
            if number == _MESSAGES // 2:
                memory = _memory(ppd)
        wait_for(lambda: refused() == sent, 60.0, "all to be heard")
        growth = _memory(ppd) - memory
        assert ppd.states(group) == {"ready": 2}
        for detector in (1, 2):
            ppd.drop(ppd.observatory.raw(detector, **identity(group)), detector, group)
        ppd.await_state(group, exported=2)
    print(f"{sent} messages, {growth / 1e6:+.1f} MB")
    assert ppd.counts().get("internal_errors", 0) == 0
    assert growth < _MAX_GROWTH
    assert [d for g, d in ppd.groups() if g == group] == [1, 2]


@pytest.mark.slow
def test_changeling(ppd: Ppd) -> None:
    """One who has a child's line before the child has: it spoils that child's work, and no other's."""
    forged, other = "changeling", "honest"
    key = DetectorKey(instrument="DemoCam", group=forged, detector=3)
    said = _said(key)
    mutator = Mutator(3, said)
    assert ppd.submit(groupId=other, detector=2, duration=600.0).ok
    ppd.await_state(other, ready=1)
    heard = 0
    refused = ppd.counts().get("child_messages_refused", 0)
    with _socket(ppd, "children.ipc", line=key.line) as changeling:
        changeling.send(b"first")
        wait_for(lambda: ppd.counts().get("child_messages_refused", 0) > refused, 10.0, "it to be heard")
        assert ppd.submit(groupId=forged, detector=3).ok
        wait_for(lambda: set(ppd.states(forged)) & {"forked", "ready"}, 30.0, "the child")
        for number in range(_MESSAGES // 5):
            body = (
                mutator.mutate(mutator.rng.choice(said[:7]), 1)
                if number % 3
                else mutator.rng.choice(said[:7])
            )
            heard += 1
            changeling.send_multipart(_with_frames(mutator.rng, body))
        for body in (*(mutator.mutate(said[7], 1) for _ in range(20)), said[8]):
            with contextlib.suppress(MessageError):
                # What names outputs that are not there: see test_endings.py.
                if getattr(decode(body), "entry", None):
                    continue
            changeling.send(body)
        ppd.drop(ppd.observatory.raw(2, **identity(other)), 2, other)
        ppd.await_state(other, exported=1)
    wait_for(lambda: _is_over(ppd, forged), 120.0, "the changeling's visit to end")
    assert ppd.counts().get("internal_errors", 0) == 0
    assert (other, 2) in ppd.groups()
    print(f"{heard} messages on a child's line; its end: {ppd.states(forged)}")


# What is no message at all

_GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL" + bytes(16) + b"\0" + bytes(31)
_KINDS = (zmq.PUSH, zmq.PULL, zmq.PUB, zmq.SUB, zmq.PAIR, zmq.REQ, zmq.REP, zmq.ROUTER, zmq.XPUB, zmq.STREAM)


@pytest.mark.parametrize("name", ["control.ipc", "children.ipc"])
def test_no_peers(ppd: Ppd, name: str) -> None:
    """Half a greeting, noise, and sockets of other kinds; some stay and say nothing more."""
    rng = random.Random(4)
    path = str(ppd.settings.socket_dir / name)
    files = psutil.Process(ppd.status()["pid"]).num_fds()
    staying: list[socket.socket] = []
    for _ in range(_MESSAGES):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(30.0)
        # Those who are not let in yet wait.
        wait_for(lambda p=plain: p.connect_ex(path) == 0, 30.0, "room in the queue of connections")
        noise = rng.choice(
            [b"", _GREETING[: rng.randrange(64)], _GREETING + rng.randbytes(50), rng.randbytes(200)]
        )
        with contextlib.suppress(OSError):  # ZeroMQ may have had enough
            plain.sendall(noise)
        if len(staying) < 100:
            staying.append(plain)
        else:
            plain.close()
    for kind in _KINDS:
        if kind == zmq.STREAM:
            continue  # it has no ipc
        with _socket(ppd, name, kind) as other:
            other.setsockopt(zmq.LINGER, 0)
            if kind == zmq.SUB:
                other.subscribe(b"")
            for frames in ([b""], [b"x", b"", b"y"], [b""] * 300):
                with contextlib.suppress(zmq.ZMQError):
                    other.send_multipart(frames, zmq.NOBLOCK)
            other.poll(50)
        assert ppd.status()["health"]
    for plain in staying:
        plain.close()
    ppd.good_visit(f"after-{name}", 6)
    ppd.await_state(f"after-{name}", exported=1)
    # Their connections are gone with them.
    wait_for(lambda: psutil.Process(ppd.status()["pid"]).num_fds() < files + 20, 60.0, "files to be closed")


# Raws


def _read_apart(folder: Path, raws: Sequence[tuple[str, bytes]], group: str) -> list[str]:
    """Read raws in a process of their own; return what came of each, and fail if it is no refusal."""
    result = folder / "result.json"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            size = psutil.Process().memory_info().vms + (1 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            found = []
            for number, (said, data) in enumerate(raws):
                path = folder / f"{number}.fits"
                path.write_bytes(data)
                signal.alarm(30)  # kills
                result.write_text(json.dumps([*found, f"did not end: {said}"]))
                try:
                    raw = read_raw(path, "DemoCam", group, 1)
                    found.append(f"taken: {raw.exposure}")
                except InvalidRawError as e:
                    found.append(f"refused: {e}")
                except BaseException as e:
                    found.append(f"{type(e).__name__}: {e}; {said}")
                path.unlink()
            result.write_text(json.dumps(found))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    found = json.loads(result.read_text())
    assert status == 0, found[-1]
    return [str(text) for text in found]


@pytest.fixture(scope="module")
def mutated(ppd: Ppd) -> list[tuple[str, bytes]]:
    """Raws with lying headers, each of an exposure of its own."""
    raws = []
    base: dict[int, bytes] = {}
    for number in range(_HEADERS):
        exposure = _FIRST_EXPOSURE + number % 100
        if exposure not in base:
            base[exposure] = ppd.observatory.raw(1, **identity("lies", exposure))
        raws.append(HeaderMutator(number, base[exposure]).mutate())
    return raws


def test_headers(ppd: Ppd, mutated: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """Read apart from ppd: taken or refused with the reason, within seconds and a gigabyte."""
    load_translators()
    found: list[str] = []
    for start in range(0, len(mutated), 20):
        found += _read_apart(tmp_path, mutated[start : start + 20], "lies")
    wrong = [text for text in found if not text.startswith(("taken: ", "refused: Raw "))]
    assert not wrong, "\n".join(wrong)
    taken = sum(text.startswith("taken") for text in found)
    print(f"{len(found)} headers, {taken} taken")
    assert len(found) // 10 < taken < len(found) - len(found) // 10


@pytest.mark.slow
def test_headers_in_children(ppd: Ppd, mutated: list[tuple[str, bytes]]) -> None:
    """A sample of them goes to a real child, which goes on to process what it could take."""
    group = "lies"
    assert ppd.submit(groupId=group, detector=1, nimages=0, duration=_LIVE_HEADERS * 0.4).ok
    ppd.await_state(group, ready=1)
    child = psutil.Process(next(c["pid"] for c in ppd.status()["children"] if c["group"] == group))
    before = collections.Counter(ppd.counts())
    most = 0

    def counted() -> collections.Counter[str]:
        counts = collections.Counter(ppd.counts())
        counts.subtract(before)
        return counts

    for number, (said, data) in enumerate(mutated[:_LIVE_HEADERS]):
        ppd.drop(data, 1, group, exposure=_FIRST_EXPOSURE + number % 100, name=f"{number}.fits")
        wait_for(lambda n=number: counted()["raws_seen"] == n + 1, 30.0, f"a raw to be seen: {said}")
        most = max(most, child.memory_info().rss)
        assert counted()["retried"] == 0, said
    # The child looks at one after the other: the last is a bad one, whose refusal is heard of.
    refused = counted()["raws_refused"]
    ppd.drop(b"the last", 1, group, exposure=9999)
    wait_for(lambda: counted()["raws_seen"] == _LIVE_HEADERS + 1, 30.0, "the last to be seen")
    wait_for(
        lambda: any("/9999/" in e["message"] for e in ppd.status()["errors"]), 60.0, "the last to be refused"
    )
    most = max(most, child.memory_info().rss)
    counts = counted()
    print({k: v for k, v in counts.items() if v}, f"{most / 1e6:.0f} MB", f"{refused} refused")
    assert counts["retried"] == counts["failed"] == counts["internal_errors"] == 0
    assert counts["raws_refused"] > _LIVE_HEADERS // 10
    assert most < 1 << 30
    # When no more come, the main pipeline runs on those that were taken; whether it can, is its affair.
    wait_for(lambda: _is_over(ppd, group), 240.0, "the visit to end")
    print(ppd.states(group))
    if ppd.states(group) != {"exported": 1}:
        assert f"{group}/1#2: pipeline " in error_of(ppd.status(), "failed")
    assert not child.is_running()
