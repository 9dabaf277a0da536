"""Control groups: a group of its own for each child, where this machine lets a test have one to divide."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from observatory import Observatory, error_of, wait_for
from rude_site import rude_site

from ppd.supervisor.cgroups import Cgroups


def _mount() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.partition(" - ")[2].startswith("cgroup2 "):
            return Path(line.split()[4])
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    """A group that this test may divide."""
    mount = _mount()
    if mount is None:
        pytest.skip("cgroup v2 is not mounted here")
    own = next(x[3:] for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::"))
    group = mount / own.lstrip("/") / f"ppd-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"no group can be made here: {e}")
    try:
        if not (group / "cgroup.kill").exists():
            pytest.skip("the kernel is older than 5.14")
        yield group
    finally:
        for folder in (*group.glob("*/"), group):
            with contextlib.suppress(OSError):
                (folder / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 10.0
        while group.exists() and time.monotonic() < deadline:
            for folder in (*group.glob("*/"), group):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            time.sleep(0.05)
        assert not group.exists()


def _run_in(group: Path, code: str) -> str:
    """Run a program that has a group for itself; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_FAMILY = """
import os, time
open("GROUP/cgroup.procs", "w").write("0")
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
time.sleep(600)
"""
_DIVIDE = """
import subprocess, sys, time
from pathlib import Path
from ppd.supervisor.cgroups import Cgroups
groups = Cgroups(64 << 20)
group = groups.make("DemoCam-g-4-1")
process = subprocess.Popen([sys.executable, "-c", FAMILY.replace("GROUP", str(group))])
deadline = time.monotonic() + 30
while len(groups.processes(group)) < 8 and time.monotonic() < deadline:
    time.sleep(0.02)
print(len(groups.processes(group)), groups.remove(group), groups.exceeded(group))
groups.kill(group)
process.wait(10)
while groups.processes(group) and time.monotonic() < deadline:
    time.sleep(0.02)
print(len(groups.processes(group)), groups.remove(group), group.exists())
left = groups.make("left-by-another")
groups.close()
print(left.exists())
"""


def test_a_family_is_killed_at_once(group: Path) -> None:
    lines = _run_in(group, f"FAMILY = {_FAMILY!r}{_DIVIDE}").splitlines()
    assert lines == ["8 False None", "0 True False", "False"]
    assert not list(group.glob("*/"))


def test_group_with_other_processes_is_left_alone(group: Path) -> None:
    """Those might be anybody's."""
    other = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: (group / "cgroup.procs").write_text("0"))
    try:
        code = "from ppd.supervisor.cgroups import Cgroups; print(Cgroups(None).make('x'))"
        assert _run_in(group, code).strip() == "None"
        assert not list(group.glob("*/"))
    finally:
        other.kill()
        other.wait(10.0)


def test_no_group_to_divide(caplog: pytest.LogCaptureFixture) -> None:
    """The tests' own group has others' processes, or is not theirs: one line says what follows."""
    caplog.set_level("INFO", "ppd.supervisor.cgroups")
    groups = Cgroups(1 << 30)
    assert groups.make("x") is None
    assert not groups.memory
    (record,) = caplog.records
    assert "ppd looks at it itself" in record.getMessage()
    groups.close()


@pytest.mark.slow
@pytest.mark.night
def test_daemon_in_a_group_of_its_own(observatory: Observatory, tmp_path: Path, group: Path) -> None:
    """Its children have groups of their own, in which all is that they start, and which go with them."""
    with rude_site(observatory, tmp_path, cgroup=group, kill_grace=1.0, worker_timeout=12.0) as site:
        name = site.misbehave("ignores_sigterm")
        (stray,) = wait_for(lambda: site.notes("stray"), 30.0, "a process to be left")
        (child,) = group.glob("ppd-child-*")
        pids = set(map(int, (child / "cgroup.procs").read_text().split()))
        assert {stray, *site.notes("child")} <= pids
        assert site.nursery not in pids
        site.ppd.await_state(name, failed=1)
        assert not psutil.pid_exists(stray)
        site.check()
        assert not list(group.glob("ppd-child-*"))


@pytest.mark.night
def test_kernel_limits_memory(observatory: Observatory, tmp_path: Path, group: Path) -> None:
    if "memory" not in (group / "cgroup.controllers").read_text().split():
        pytest.skip("the memory controller of cgroup v2 is not to be had here")
    with rude_site(observatory, tmp_path, cgroup=group, child_memory="100 MiB", retries=3) as site:
        name = site.misbehave("allocates_in_processes")
        site.ppd.await_state(name, failed=1)
        error = error_of(site.ppd.status(), "failed")
        assert "MB of memory, more than its limit of 105 MB" in error
        assert "retried" not in site.ppd.counts()
        site.check()
        assert not list(group.glob("ppd-child-*"))
