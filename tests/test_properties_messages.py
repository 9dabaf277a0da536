"""Messages between processes: whatever bytes come, they are a message of ours or refused, briefly."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pydantic
import pytest
from fuzzing import Mutator
from hypothesis import HealthCheck, example, given, settings

from ppd.errors import JournalError
from ppd.messages import (
    ChildDone,
    ChildHeartbeat,
    ChildReady,
    ControlReply,
    ControlRequest,
    DetectorKey,
    Exited,
    Forked,
    MessageError,
    PermitRequest,
    PhaseEvent,
    Pointing,
    Retire,
    decode,
    encode,
)
from ppd.supervisor.counters import Counters
from ppd.supervisor.journal import Journal
from ppd.supervisor.nursery_client import NurseryClient

KEY = DetectorKey(instrument="DemoCam", group="g", detector=4)
_SAMPLES = [
    ChildReady(key=KEY, pid=4321, seconds=0.4, opened=0.3),
    ChildHeartbeat(key=KEY, phase="main"),
    ChildDone(key=KEY, success=False, reason="r", failure="final", entry="e", datasets=3),
    PermitRequest(key=KEY, work="main"),
    PhaseEvent(key=KEY, name="raw_refused", time=1.8e9, detail={"reason": "x", "path": "/a"}),
    Forked(key=KEY, pid=4321),
    Exited(key=None, pid=4321, code=-9),
    ControlRequest(command="prefetch", pointings=(Pointing(ra=1.0, dec=2.0, physical_filter="r"),)),
    ControlRequest(command="submit", visit={"groupId": "g", "position": [1.0, 2.0]}),
    ControlReply(ok=True, result={"a": [1]}),
]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(range(len(_SAMPLES))))
def test_mutated(seed: int, index: int) -> None:
    data = Mutator(seed, [encode(message) for message in _SAMPLES]).mutate(encode(_SAMPLES[index]))
    try:
        message = decode(data)
    except MessageError as e:
        assert len(str(e)) < 1100
        str(e).encode()
        return
    # What is taken can be passed on.
    assert isinstance(message, pydantic.BaseModel)
    # Of what is not a number, JSON knows nothing: it is null from then on.
    assert encode(decode(encode(message))) == encode(message)


@pytest.mark.parametrize("pid", [0, -1, 1, -4321, 2**31, 2**70])
def test_no_signal_to_everybody(pid: int) -> None:
    """What names no single process is refused: it would be sent a signal."""
    for message in (Forked(key=KEY, pid=99), Exited(key=KEY, pid=99, code=0), _SAMPLES[0]):
        fields = {**message.model_dump(mode="json"), "pid": pid}
        with pytest.raises(MessageError, match="pid"):
            decode(json.dumps(fields).encode())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_times_are_times(number: str) -> None:
    data = encode(_SAMPLES[4]).replace(b"1800000000.0", number.encode())
    assert number.encode() in data
    with pytest.raises(MessageError):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"kind": "' + b"x" * (4 << 20) + b'"}',
        b'{"kind": "control_request", "command": "' + b"\\u0001" * 600_000 + b'"}',
        b'{"kind": "control_request", "command": "status", "' + b"x" * (4 << 20) + b'": 1}',
        b'{"kind": "control_request", "command": "prefetch", "pointings": [' + b"{}," * 10 + b"[1]]}",
    ],
)
def test_refusals_are_short(data: bytes) -> None:
    """An answer does not repeat megabytes of what was asked."""
    with pytest.raises(MessageError) as e:
        decode(data)
    assert len(str(e.value)) < 1100


_TEXT = st.text(max_size=30) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=5)


@settings(deadline=None)
@given(_TEXT, _TEXT)
@example("x", "\ud800" * 3000)
def test_status_can_always_be_sent(what: str, message: str) -> None:
    """Errors are about files too, whose names may be no UTF-8."""
    counters = Counters()
    counters.error("raws_unrecognised", what, message)
    assert counters["raws_unrecognised"] == 1
    reply = ControlReply(ok=True, result={"errors": counters.errors(), "counts": counters.as_dict()})
    assert decode(encode(reply)) == reply


def test_identity_of_a_line() -> None:
    """It is as short as ZeroMQ wants it, and another one for each attempt."""
    key = DetectorKey(instrument="DemoCam", group="g" * 128, detector=100_000, attempt=3)
    assert len(key.line) <= 255
    assert key.line != key.model_copy(update={"attempt": 4}).line


# What the journal can't take


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


_UNTAKABLE: list[dict[str, Any]] = [
    {"name": "\ud800"},
    {"name": "main_start", "when": float("nan")},
    {"name": None},
    {"name": "main_start", "when": object()},
]


@pytest.mark.parametrize("event", _UNTAKABLE, ids=["surrogate", "NaN", "null", "object"])
def test_journal_goes_on_without_what_it_cant_take(
    journal: Journal, tmp_path: Path, event: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    journal.visit_accepted("DemoCam", "g", [1], {}, "test")
    journal.state("DemoCam", "g", 1, "ready", attempt=1)
    journal.event("DemoCam", "g", 1, **event)
    journal.event("DemoCam", "g", 1, "after")
    journal.commit()
    assert journal.trouble is None
    assert "does not take" in caplog.text
    journal.visit_accepted("DemoCam", "next", [1], {}, "test")
    with sqlite3.connect(tmp_path / "journal.sqlite3") as db:
        assert db.execute("SELECT state FROM detector_visit WHERE group_name='g'").fetchall() == [("ready",)]
        assert [n for (n,) in db.execute("SELECT name FROM event ORDER BY id")] == [
            "accepted",
            "state",
            "after",
            "accepted",
        ]


def test_visit_that_the_journal_cant_take_is_not_accepted(journal: Journal) -> None:
    with pytest.raises(JournalError):
        journal.visit_accepted("DemoCam", "\ud800", [1], {}, "test")
    with pytest.raises(JournalError):
        journal.visit_accepted("DemoCam", "g", [1, 2**70], {}, "test")
    assert journal.known_detectors("DemoCam", "g") == set()
    assert journal.unfinished() == []
    journal.visit_accepted("DemoCam", "g", [1], {}, "test")
    assert journal.known_detectors("DemoCam", "g") == {1}


# The nursery's pipe


class _Pipe(NurseryClient):
    """The supervisor's end of a pipe that has no nursery at its other end."""

    def __init__(self) -> None:
        self._name = "nursery"
        self._buffer = self._outbox = b""
        self._out, self.end = os.pipe()
        os.set_blocking(self._out, False)


@pytest.fixture
def pipe() -> Iterator[_Pipe]:
    pipe = _Pipe()
    yield pipe
    for descriptor in (pipe._out, pipe.end):
        os.close(descriptor)


_GOOD = Forked(key=KEY, pid=4321)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.lists(st.booleans(), max_size=6), st.integers(1, 500))
def test_garbage_on_the_pipe(pipe: _Pipe, seed: int, order: list[bool], size: int) -> None:
    """Good lines are taken, whatever is between them and however they are cut."""
    mutator = Mutator(seed, [encode(message) for message in _SAMPLES])
    lines = [
        encode(_GOOD) if good else mutator.mutate(encode(Retire())).replace(b"\n", b" ")[:5000]
        for good in order
    ]
    data = b"".join(line + b"\n" for line in lines)
    received: list[Any] = []
    for start in range(0, len(data), size):
        os.write(pipe.end, data[start : start + size])
        received += pipe.receive()
    assert received.count(_GOOD) >= sum(order)
    assert len(received) <= len(order)
    assert pipe._buffer == b""


def test_endless_line_on_the_pipe(pipe: _Pipe, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """It is dropped, and what comes after its end is understood."""
    monkeypatch.setattr("ppd.supervisor.line_process._MAX_LINE_BYTES", 200_000)
    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            os.write(pipe.end, b"x" * 60_000)
            assert pipe.receive() == []
            assert len(pipe._buffer) <= 200_000
    assert "without a line break" in caplog.text
    os.write(pipe.end, b"\n" + encode(_GOOD) + b"\n")
    assert pipe.receive() == [_GOOD]


def test_endless_writing_does_not_keep_the_loop(pipe: _Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there is always more to read, `receive` comes back."""
    monkeypatch.setattr("ppd.supervisor.line_process._CHUNK_BYTES", 100)
    read = os.read

    def read_and_refill(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        if descriptor == pipe._out:
            os.write(pipe.end, b"y" * len(data))
        return data

    monkeypatch.setattr(os, "read", read_and_refill)
    os.write(pipe.end, b"y" * 100)
    begin = time.monotonic()
    assert pipe.receive() == []
    assert time.monotonic() - begin < 10.0
    assert 100 <= len(pipe._buffer) <= 10_000
