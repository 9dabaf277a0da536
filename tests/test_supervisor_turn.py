"""One turn of the supervisor's loop: what fails in it takes nothing else with it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from ppd.messages import ControlReply, decode
from ppd.sources.directory import Candidate
from ppd.supervisor.counters import Counters
from ppd.supervisor.daemon import Supervisor
from ppd.supervisor.hearing import hear_inbox
from ppd.supervisor.inbox import Inbox
from ppd.supervisor.sockets import Sockets


class _Lifecycle:
    """Takes raws, but not every one."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def raw_seen(self, candidate: Candidate) -> None:
        candidate.uri.encode()
        self.seen.append(candidate.uri)


@pytest.fixture
def supervisor() -> Iterator[Any]:
    """A supervisor with nothing but an inbox, counters and a control socket."""
    found: Any = Supervisor.__new__(Supervisor)
    found.counters, found.inbox, found.lifecycle = Counters(), Inbox(), _Lifecycle()
    found.answers, found.judgements = [], []
    yield found
    found.inbox.close()


def test_one_item_that_fails(supervisor: Any) -> None:
    names = ["a", "\udcff", "b", "\ud800", "c"]
    for name in names:
        supervisor.inbox.put(Candidate(name, None, 0, "0", time.time()))
    hear_inbox(supervisor)
    assert supervisor.lifecycle.seen == ["a", "b", "c"]
    assert supervisor.counters["internal_errors"] == 2


def test_one_answer_that_cant_be_sent(supervisor: Any, tmp_path: Path) -> None:
    """Those behind it are sent, and it is not tried again for ever."""
    context = zmq.Context()
    supervisor.sockets = Sockets(tmp_path)
    try:
        asking = context.socket(zmq.DEALER)
        asking.connect(f"ipc://{tmp_path / 'control.ipc'}")
        asking.send(b"?")
        assert supervisor.sockets.control.poll(10_000)
        ((envelope, body),) = supervisor.sockets.requests()
        assert body == b"?"
        good = ControlReply(ok=True, result={"a": 1})
        for reply in (ControlReply(ok=False, error="\ud800"), good):
            supervisor.answers.append((envelope, reply))
        supervisor._send_answers()
        assert asking.poll(10_000)
        assert decode(asking.recv()) == good
        assert supervisor.answers == []
        assert supervisor.counters["internal_errors"] == 1
    finally:
        context.destroy(linger=0)
        supervisor.sockets.close()
    assert not list(tmp_path.iterdir())


def test_as_many_files_as_may_be() -> None:
    """ZeroMQ aborts the process that can't accept a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import resource\n"
        "from ppd.supervisor.surroundings import allow_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard}))\n"
        "allow_files()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [str(hard), str(hard)]
