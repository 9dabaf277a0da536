"""A child's line to its supervisor, over real sockets: nothing sent is lost, nothing received harms."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from ppd.messages import (
    CancelWork,
    ChildDone,
    ChildHeartbeat,
    DetectorKey,
    NoMoreRaws,
    PermitGrant,
    PhaseEvent,
    RawArrived,
    decode,
    encode,
)
from ppd.workers.link import ChildLink

KEY = DetectorKey(instrument="GridCam", group="g", detector=4, attempt=2)


class _Supervisor:
    """The supervisor's end of the line."""

    def __init__(self, folder: Path):
        self.endpoint = f"ipc://{folder / 'c.ipc'}"
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.endpoint)

    def receive(self, seconds: float = 5.0) -> tuple[bytes, Any] | None:
        if not self.socket.poll(int(seconds * 1000)):
            return None
        identity, data = self.socket.recv_multipart()
        return identity, decode(data)

    def collect(self, kind: type, count: int, seconds: float = 5.0) -> list[Any]:
        found: list[Any] = []
        deadline = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < deadline:
            received = self.receive(deadline - time.monotonic())
            if received is not None and isinstance(received[1], kind):
                found.append(received[1])
        return found


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[_Supervisor]:
    supervisor = _Supervisor(tmp_path)
    yield supervisor
    supervisor.context.destroy(linger=0)


@pytest.fixture
def link(supervisor: _Supervisor) -> Iterator[ChildLink]:
    link = ChildLink(supervisor.endpoint, KEY, 0.1)
    yield link
    link.close()


def test_heartbeats(supervisor: _Supervisor, link: ChildLink) -> None:
    """From the start on, at their interval, with the phase of the moment."""
    begin = time.monotonic()
    received = supervisor.receive()
    assert received is not None
    identity, first = received
    assert identity == b"g/4#2"
    assert first == ChildHeartbeat(key=KEY, phase="starting")
    link.phase = "main"
    beats = supervisor.collect(ChildHeartbeat, 5)
    assert [beat.phase for beat in beats[1:]] == ["main"] * 4
    assert 0.35 < time.monotonic() - begin < 2.0


def test_heart_beats_while_the_child_computes(supervisor: _Supervisor, link: ChildLink) -> None:
    """Tasks keep the main thread busy; Python code in it must not silence the link."""
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        sum(range(10_000))
    assert len(supervisor.collect(ChildHeartbeat, 4, 0.05)) == 4


def test_both_ways(supervisor: _Supervisor, link: ChildLink) -> None:
    event = PhaseEvent(key=KEY, name="main_start", time=1.5, detail={"a": "b\n"})
    link.send(event)
    assert supervisor.collect(PhaseEvent, 1) == [event]
    messages = [RawArrived(uri="/a", snap=0), PermitGrant(), NoMoreRaws(reason="late")]
    for message in messages:
        supervisor.socket.send_multipart([b"g/4#2", encode(message)])
    assert [link.receive(5.0) for _ in messages] == messages
    begin = time.monotonic()
    assert link.receive(0.1) is None
    assert link.receive(-1.0) is None
    assert time.monotonic() - begin < 1.0


def test_sending_does_not_wait_for_the_next_beat(supervisor: _Supervisor) -> None:
    link = ChildLink(supervisor.endpoint, KEY, 60.0)
    try:
        assert supervisor.collect(ChildHeartbeat, 1)
        time.sleep(0.1)
        begin = time.monotonic()
        link.send(ChildDone(key=KEY, success=True))
        assert supervisor.collect(ChildDone, 1)
        assert time.monotonic() - begin < 1.0
    finally:
        link.close()


def test_order(supervisor: _Supervisor, link: ChildLink) -> None:
    for number in range(3000):
        link.send(PhaseEvent(key=KEY, name="ingested", time=number))
    assert [e.time for e in supervisor.collect(PhaseEvent, 3000, 10.0)] == list(range(3000))


def test_requeued(supervisor: _Supervisor, link: ChildLink) -> None:
    link.requeue(PermitGrant())
    assert link.receive(0.0) == PermitGrant()


def test_last_words_arrive(supervisor: _Supervisor) -> None:
    """What is sent just before the end, even of the whole process, is received."""
    threads = threading.active_count()
    link = ChildLink(supervisor.endpoint, KEY, 60.0)
    for number in range(500):
        link.send(PhaseEvent(key=KEY, name="ingested", time=number))
    link.send(ChildDone(key=KEY, success=True))
    link.close()
    assert threading.active_count() == threads
    assert supervisor.collect(ChildDone, 1)


_CHILD = """
import os, sys
from ppd.messages import ChildDone, DetectorKey
from ppd.workers.link import ChildLink
key = DetectorKey(instrument="GridCam", group="g", detector=int(sys.argv[2]))
link = ChildLink(sys.argv[1], key, 60.0)
link.send(ChildDone(key=key, success=True))
link.close()
os._exit(0)
"""


def test_last_words_of_a_process(supervisor: _Supervisor) -> None:
    """As a child does it: close, then end without any exit handler."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, supervisor.endpoint, str(n)], cwd=Path(__file__).parents[1]
        )
        for n in range(3)
    ]
    assert [child.wait(30) for child in children] == [0, 0, 0]
    assert sorted(d.key.detector for d in supervisor.collect(ChildDone, 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff\xfe garbage"],
        [b""],
        [b"{}"],
        [b'{"kind": "no_such"}'],
        [b"one", b"two", b"three"],
        [b"x" * 100_000],
    ],
)
def test_garbage_is_logged_and_dropped(
    supervisor: _Supervisor, link: ChildLink, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert supervisor.receive()
    with caplog.at_level(logging.ERROR):
        supervisor.socket.send_multipart([b"g/4#2", *frames])
        supervisor.socket.send_multipart([b"g/4#2", encode(CancelWork(reason="enough"))])
        assert link.receive(5.0) == CancelWork(reason="enough")
    assert "no message" in caplog.text
    assert supervisor.collect(ChildHeartbeat, 2)


@pytest.mark.parametrize("messages", [1, 5000])
def test_nobody_listens(tmp_path: Path, messages: int) -> None:
    """The end is bounded, and heartbeats go on, however much could not be sent."""
    link = ChildLink(f"ipc://{tmp_path / 'nobody.ipc'}", KEY, 0.05)
    for number in range(messages):
        link.send(PhaseEvent(key=KEY, name="ingested", time=number))
    time.sleep(0.2)
    begin = time.monotonic()
    link.close()
    assert time.monotonic() - begin < 4.0


def test_supervisor_that_comes_late(tmp_path: Path) -> None:
    """More than a socket's usual limit is kept for it, and the thread is not stuck meanwhile."""
    link = ChildLink(f"ipc://{tmp_path / 'c.ipc'}", KEY, 0.1)
    for number in range(2500):
        link.send(PhaseEvent(key=KEY, name="ingested", time=number))
    time.sleep(0.3)
    supervisor = _Supervisor(tmp_path)
    try:
        assert len(supervisor.collect(PhaseEvent, 2500, 10.0)) == 2500
        assert supervisor.collect(ChildHeartbeat, 2)
    finally:
        link.close()
        supervisor.context.destroy(linger=0)


def test_long_group(supervisor: _Supervisor) -> None:
    """An identity has 255 bytes; groups of other alphabets may have more."""
    keys = [KEY.model_copy(update={"group": "a" + "ü" * 127, "detector": d}) for d in (1, 2)]
    links = [ChildLink(supervisor.endpoint, key, 60.0) for key in keys]
    try:
        beats = supervisor.collect(ChildHeartbeat, 2)
        assert sorted(beat.key.detector for beat in beats) == [1, 2]
    finally:
        for link in links:
            link.close()


def test_supervisor_that_stopped(supervisor: _Supervisor) -> None:
    """A process that is alive and does not read must not hold the child's end up."""
    link = ChildLink(supervisor.endpoint, KEY, 0.1)
    assert supervisor.receive()
    for number in range(200):
        link.send(PhaseEvent(key=KEY, name="ingested", time=number, detail={"fill": "x" * 50_000}))
    begin = time.monotonic()
    link.close()
    assert time.monotonic() - begin < 4.0


def test_killed_child_is_silent(supervisor: _Supervisor) -> None:
    """SIGKILL ends the heartbeats: their absence is how the supervisor knows."""
    program = _CHILD.replace("60.0", "0.05").replace(
        "link.close()\nos._exit(0)", "import time; time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, supervisor.endpoint, "1"], cwd=Path(__file__).parents[1]
    )
    try:
        assert len(supervisor.collect(ChildHeartbeat, 3, 20.0)) == 3
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    while supervisor.receive(0.3) is not None:
        pass
    assert supervisor.receive(0.3) is None
