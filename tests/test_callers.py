"""Who may ask the supervisor for what: files' modes, peer credentials, roles."""

from __future__ import annotations

import grp
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from ppd._sockets import LOOKING
from ppd.control import ControlClient
from ppd.errors import ConfigurationError, PpdError
from ppd.messages import ControlReply, ControlRequest
from ppd.supervisor import hearing
from ppd.supervisor.callers import Caller, Groups, find_groups, refusal
from ppd.supervisor.counters import Counters
from ppd.supervisor.daemon import Supervisor
from ppd.supervisor.sockets import Sockets

STRANGER, OF_CONTROL, OF_READ = 65534, 65001, 65002
CONTROL_GROUP, READ_GROUP = 64001, 64002
# What others had as threads is not used in it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can come to; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="ppd-test-") as name:
        Path(name).chmod(0o755)
        sockets = Path(name) / "sockets"
        sockets.mkdir(mode=0o700)
        yield sockets


class _Served:
    """The supervisor's sockets and its ear; what is asked is done by nobody."""

    def __init__(self, folder: Path, groups: Groups, children: set[int]):
        self.supervisor: Any = Supervisor.__new__(Supervisor)
        self.supervisor.counters, self.supervisor.answers = Counters(), []
        self.supervisor.judgements = []
        self.supervisor.groups = groups
        self.supervisor.draining = False
        self.supervisor.task_pids = lambda: children
        self.supervisor.questions = type("Nobody", (), {"overdue": lambda self: []})()
        self.supervisor.sockets = Sockets(folder, groups)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in self.supervisor.sockets.all():
            poller.register(socket, zmq.POLLIN)
        while not self._end.is_set():
            poller.poll(50)
            hearing.hear_requests(self.supervisor)
            self.supervisor._send_answers()

    def close(self) -> None:
        self._end.set()
        self._thread.join(10.0)
        self.supervisor.sockets.close()


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., _Served]]:
    """Start what hears at the sockets, in this process."""
    monkeypatch.setattr(hearing, "answer", lambda supervisor, request: ControlReply(ok=True))
    started: list[_Served] = []

    def start(groups: Groups | None = None, children: set[int] | None = None) -> _Served:
        started.append(_Served(folder, groups or Groups(), children if children is not None else set()))
        return started[-1]

    yield start
    for one in started:
        one.close()


def _ask(folder: Path, command: str) -> str:
    """Ask as ``ppdctl`` does; return ``done``, or the beginning of why not."""
    try:
        with ControlClient(folder, 10.0) as client:
            reply = client.request(ControlRequest(command=command))  # type: ignore[arg-type]
    except PpdError as e:
        return f"kept out: {e}"
    return "done" if reply.ok else f"{reply.code}: {reply.error}"


class _Other:
    """A process that does things when it is told to, born before we have threads.

    Parameters
    ----------
    become : callable
        Called in it first.
    what : callable
        What it does each time; what it returns is what it says.
    """

    def __init__(self, become: Callable[[], object], what: Callable[[], str]):
        (wait, self._go), (self._hear, say) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            try:
                become()
                while os.read(wait, 1):
                    try:
                        said = what()
                    except BaseException as e:
                        said = repr(e)
                    os.write(say, said.encode())
            finally:
                os._exit(0)
        os.close(wait)
        os.close(say)

    def ask(self) -> str:
        os.write(self._go, b"!")
        return os.read(self._hear, 4096).decode()

    def close(self) -> None:
        # The next one holds our end of its pipe too.
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._go)
        os.close(self._hear)


@pytest.fixture
def other() -> Iterator[Callable[..., _Other]]:
    """Start other processes; before `serve`."""
    started: list[_Other] = []

    def start(become: Callable[[], object], what: Callable[[], str]) -> _Other:
        started.append(_Other(become, what))
        return started[-1]

    yield start
    for one in started:
        one.close()


def _become(uid: int, groups: tuple[int, ...]) -> None:
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def test_alone_it_is_for_its_own_user(folder: Path, serve: Callable[..., _Served]) -> None:
    serve()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {
        "children.ipc": 0o600,
        "control.ipc": 0o600,
        "look.ipc": 0o600,
    }
    assert _ask(folder, "stop") == "done"


@needs_root
@pytest.mark.parametrize(
    ("uid", "groups", "look", "change"),
    [
        (STRANGER, (), "kept out: You may not talk to this ppd", "kept out: You may not talk to this ppd"),
        (OF_READ, (READ_GROUP,), "done", "kept out: You may look at this ppd, not change anything"),
        (OF_CONTROL, (CONTROL_GROUP,), "done", "done"),
        (0, (), "done", "done"),
    ],
)
def test_groups(
    folder: Path,
    other: Callable[..., _Other],
    serve: Callable[..., _Served],
    uid: int,
    groups: tuple[int, ...],
    look: str,
    change: str,
) -> None:
    commands = iter(["status", "pause"])
    somebody = other(lambda: _become(uid, groups), lambda: _ask(folder, next(commands)))
    served = serve(Groups(CONTROL_GROUP, READ_GROUP))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711
    assert somebody.ask().startswith(look)
    assert somebody.ask().startswith(change)
    # The kernel kept them out: nothing came to us.
    assert served.supervisor.counters["requests_forbidden"] == 0
    assert stat.S_IMODE((folder / "children.ipc").stat().st_mode) == 0o600


@needs_root
def test_a_mode_that_somebody_has_changed(
    folder: Path, other: Callable[..., _Other], serve: Callable[..., _Served]
) -> None:
    """Who can connect must still be one who may."""
    somebody = other(lambda: _become(STRANGER, ()), lambda: _ask(folder, "stop"))
    served = serve()
    folder.chmod(0o755)
    (folder / "control.ipc").chmod(0o777)
    assert somebody.ask() == f"forbidden: User {STRANGER} may not: control_group is not set."
    assert served.supervisor.counters["requests_forbidden"] == 1


def test_the_socket_for_looking_changes_nothing(folder: Path, serve: Callable[..., _Served]) -> None:
    served = serve(Groups())
    (folder / "control.ipc").unlink()
    (folder / "look.ipc").rename(folder / "control.ipc")  # as one who does not use ppdctl would
    assert _ask(folder, "status") == "done"
    assert _ask(folder, "stop") == "forbidden: Who comes by this socket may look, not stop."
    assert served.supervisor.counters["requests_forbidden"] == 1


def test_no_task_steers(folder: Path, other: Callable[..., _Other], serve: Callable[..., _Served]) -> None:
    """Neither a child nor what it has started, though they are of the same user."""

    def what_it_starts() -> str:
        pid = os.fork()
        if pid == 0:
            (folder.parent / "said").write_text(_ask(folder, "status"))
            os._exit(0)
        os.waitpid(pid, 0)
        return (folder.parent / "said").read_text()

    child = other(os.setsid, lambda: _ask(folder, "status"))
    another = other(os.setsid, what_it_starts)
    serve(children={child.pid, another.pid})
    refused = "forbidden: Children and what they start may ask for nothing here."
    assert child.ask() == refused
    assert another.ask() == refused
    assert _ask(folder, "status") == "done"


def test_what_only_looks_is_told_apart() -> None:
    """Each command is one or the other; a new one changes things until it is said to be harmless."""
    commands = set(ControlRequest.model_fields["command"].annotation.__args__)  # type: ignore[union-attr]
    assert commands >= LOOKING
    for command in commands:
        asks: Any = Caller(None, (), True, f"localhost:{os.geteuid()}:0:1")  # type: ignore[arg-type]
        assert (refusal(asks, command, Groups(), ()) is None) == (command in LOOKING)


@pytest.mark.parametrize("peer", ["", "localhost", "localhost:x:y:z", "127.0.0.1"])
def test_nobody_unknown(peer: str) -> None:
    caller = Caller(None, (), False, peer)  # type: ignore[arg-type]
    assert refusal(caller, "status", Groups(), ()) == "The kernel does not say who asks."


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    settings: Any = type("S", (), {"control_group": "no-such-group-ppd", "read_group": None})()
    with pytest.raises(ConfigurationError, match="control_group: there is no group 'no-such-group-ppd'"):
        find_groups(settings)
    settings.control_group = grp.getgrgid(os.getegid()).gr_name
    assert find_groups(settings) == Groups(os.getegid(), None)
