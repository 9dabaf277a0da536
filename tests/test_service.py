"""A real ppd under a service manager, as process 1 of a container: what it says, and when."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from notify_support import Manager
from observatory import Observatory, Ppd, wait_for

from ppd.supervisor.notify import ServiceNotifier

pytestmark = pytest.mark.night

_WATCHDOG = 3.0
# Process 1 of a container is the leader of a session.
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "setsid")


def _can_unshare() -> bool:
    try:
        return (
            subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=20, check=False).returncode == 0
        )
    except OSError:
        return False


class Service(Ppd):
    """A ppd that a service manager has started, in a process namespace of its own where that is allowed."""

    manager: Manager
    contained: bool
    main: psutil.Process
    """The supervisor itself."""

    def start(self) -> None:
        """Start it as process 1, and wait until it says that it is ready."""
        self.contained = _can_unshare()
        path = self._sockets / "notify"
        self.manager = Manager(path)
        command = [sys.executable, "-m", "ppd.cli.daemon", "--config", str(self.config)]
        # Process 1 knows itself by that number.
        self.environ |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(_WATCHDOG * 1e6))}
        if self.contained:
            self.environ["WATCHDOG_PID"] = "1"
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*_UNSHARE, *command] if self.contained else command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self.environ,
            )
        top = psutil.Process(self.process.pid)
        self.main = wait_for(top.children, 10.0, "process 1")[0] if self.contained else top
        self.manager.await_word("READY", 90.0)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End the supervisor itself, and return the exit code that it is said to have."""
        assert self.process is not None
        self.main.send_signal(signum)
        return self.process.wait(60.0)

    def close(self) -> None:
        """End what still runs."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, subprocess.TimeoutExpired):
                self.main.send_signal(signal.SIGTERM)
                self.process.wait(60.0)
            self.process.kill()
            self.process.wait(20.0)
        self.client.close()
        self.manager.close()
        shutil.rmtree(self._sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def service(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    ppd = Service(observatory, tmp_path_factory.mktemp("service"), slots=4)
    try:
        ppd.initialize()
        ppd.start()
        yield ppd
    finally:
        ppd.close()


def test_ready_once_visits_can_be_processed(service: Service) -> None:
    (ready,) = service.manager.said("READY")
    status = service.status()
    assert (status["refuses"], status["faults"], status["health"]) == (None, [], "ok")
    before = [w.values for w in service.manager.words if w.time < ready.time]
    assert any("the first nursery is being built" in w.get("STATUS", "") for w in before)
    assert any(w.get("EXTEND_TIMEOUT_USEC") == "60000000" for w in before)
    # All is said by the supervisor itself: with NotifyAccess=main, nobody else is heard.
    assert {w.pid for w in service.manager.words} == {service.main.pid}


def test_status_follows_a_visit(service: Service) -> None:
    since = time.monotonic()
    service.good_visit("seen", 1)
    service.manager.await_word("STATUS", 20.0, lambda t: t.startswith("ok: 1 visits at work"), since)
    service.await_state("seen", exported=1)
    service.manager.await_word(
        "STATUS", 20.0, lambda t: t.startswith("ok: 0 visits at work, 0 children; 0 hand"), since
    )
    times = [w.time for w in service.manager.said("STATUS", since)]
    assert all(b - a > 1.5 for a, b in itertools.pairwise(times))


def test_only_the_supervisor_has_the_socket(service: Service) -> None:
    nursery = [p for p in service.main.children() if "ppd.workers.nursery" in p.cmdline()]
    assert len(nursery) == 1
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & nursery[0].environ().keys()


def test_the_watchdog_is_fed_by_the_loop(service: Service) -> None:
    """As long as the loop turns; one that is stuck is silent."""
    since = time.monotonic()
    time.sleep(_WATCHDOG + 1.0)
    times = [w.time for w in service.manager.said("WATCHDOG", since)]
    assert len(times) >= 3
    assert all(b - a < _WATCHDOG / 2 for a, b in itertools.pairwise(times)), times
    service.main.suspend()
    try:
        time.sleep(0.2)
        stuck = time.monotonic()
        time.sleep(_WATCHDOG)
        assert service.manager.said("WATCHDOG", stuck) == []
    finally:
        service.main.resume()
    service.manager.await_word("WATCHDOG", 10.0, since=stuck)


@pytest.mark.parametrize("slots", [5, "many"])
def test_reloads_are_told(service: Service, slots: object) -> None:
    """Whether the configuration can be used or not: the service goes on."""
    config = yaml.safe_load(service.config.read_text())
    before = service.status()["slots"]["total"]
    since, clock = time.monotonic(), time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    try:
        service.config.write_text(yaml.safe_dump({**config, "slots": slots}))
        service.main.send_signal(signal.SIGHUP)
        word = service.manager.await_word("RELOADING", 20.0, since=since)
        assert int(word.values["MONOTONIC_USEC"]) >= clock
        assert service.manager.await_word("READY", 20.0, since=since).time >= word.time
        assert service.status()["slots"]["total"] == (slots if slots == 5 else before)
    finally:
        service.config.write_text(yaml.safe_dump(config))


@pytest.mark.skipif(shutil.which("nsenter") is None, reason="nsenter is not installed here")
def test_orphans_of_a_container_are_reaped(service: Service) -> None:
    if not service.contained:
        pytest.skip("no process namespace can be made here")
    enter = ["nsenter", "--target", str(service.main.pid), "--pid", "--wd=/"]
    subprocess.run(
        [*enter, "sh", "-c", "sleep 1.25 & exit 0"], timeout=20, check=True, start_new_session=True
    )

    def orphan() -> psutil.Process | None:
        return next((p for p in service.main.children() if "1.25" in p.cmdline()), None)

    process = wait_for(orphan, 10.0, "the orphan to be process 1's")
    wait_for(lambda: not process.is_running(), 20.0, "the orphan to be reaped")
    assert psutil.STATUS_ZOMBIE not in {p.status() for p in service.main.children()}


def test_ppdctl_says_whether_visits_are_taken(service: Service) -> None:
    """What a container's probes ask."""
    assert service.command("ctl", "status", "--accepting").returncode == 0
    assert service.command("ctl", "pause", "--reason", "clouds").returncode == 0
    try:
        done = service.command("ctl", "status", "--accepting")
        assert done.returncode == 1
        assert "no visit would be taken: paused since" in done.stderr
        assert service.command("ctl", "status").returncode == 0
    finally:
        assert service.command("ctl", "resume").returncode == 0


def test_the_end_is_told(service: Service) -> None:
    since = time.monotonic()
    assert service.stop() == 0
    stopping = service.manager.await_word("STOPPING", 5.0, since=since)
    assert stopping.time - since < 2.0
    assert service.manager.words[-1].time >= stopping.time
    assert len(service.manager.said("STOPPING")) == 1
    assert not any(service.leftovers().values())


def test_a_watchdog_that_is_not_ours(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    other = ServiceNotifier(environ)
    assert (other.interval, environ) == (0.0, {})
    other.close()  # nobody listens: that is no matter
    environ = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert ServiceNotifier(environ).interval == 1.0


def test_what_the_watchdog_sends_shows_where_it_is_stuck(tmp_path: Path) -> None:
    """The configuration is a pipe that nobody writes to: ppd hangs before it has begun."""
    os.mkfifo(tmp_path / "ppd.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "ppd.cli.daemon", "--config", str(tmp_path / "ppd.yaml")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_no_core,
    )
    try:
        waiting = psutil.Process(process.pid)
        # It catches the signal once its handler is there: bit 5 of the mask of signals caught.
        wait_for(lambda: _catches(process.pid, signal.SIGABRT), 60.0, "ppd to begin")
        wait_for(lambda: waiting.status() == psutil.STATUS_SLEEPING, 20.0, "ppd to hang")
        time.sleep(1.0)
        process.send_signal(signal.SIGABRT)
        _, text = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in text
    assert "_settings_sources.py" in text


def test_process_1_can_be_stopped_before_it_has_begun(tmp_path: Path) -> None:
    if not _can_unshare():
        pytest.skip("no process namespace can be made here")
    os.mkfifo(tmp_path / "ppd.yaml")
    command = [*_UNSHARE, sys.executable, "-m", "ppd.cli.daemon", "--config", str(tmp_path / "ppd.yaml")]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        (first,) = wait_for(psutil.Process(process.pid).children, 10.0, "process 1")
        wait_for(lambda: _catches(first.pid, signal.SIGTERM), 60.0, "ppd to begin")
        first.terminate()
        assert process.wait(20.0) == 130
    finally:
        process.kill()
        process.wait(10.0)


def _catches(pid: int, signum: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signum - 1) & 1)


def _no_core() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
