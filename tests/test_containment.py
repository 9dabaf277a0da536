"""Tasks that misbehave in all the ways they can: nothing but their own detector-visit is the worse for it."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from observatory import ISR, Observatory, error_of, running, wait_for
from rude_site import BAD, GOOD, RudeSite, lives, logs, rude_site

pytestmark = pytest.mark.night


def slow(*values: object) -> object:
    """One of many alike."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def site(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RudeSite]:
    """One for all deeds that need no other settings: each shows that the one before was contained."""
    with rude_site(observatory, tmp_path_factory.mktemp("rude"), child_memory="256 MiB") as site:
        yield site


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("exits", "a task called sys.exit(3)"),
        slow("exits_with_a_message", "a task called sys.exit('I have had enough')"),
        slow("exits_at_once", "its child ended by exit code 0 while main, without a last word"),
        slow("interrupts", "KeyboardInterrupt"),
        slow("stops_a_generator", "GeneratorExit"),
        slow("says_never_again", "RepeatableQuantumError: it would be the same again"),
        slow("runs_out", "MemoryError"),
        ("allocates", "MemoryError"),
        ("crashes", "its child ended by SIGSEGV while main"),
        slow("kills_its_group", "its child ended by SIGKILL while main"),
        slow("closes_everything", "its child ended by SIG"),
        ("leaves_segments_and_dies", "its child ended by SIGKILL while main"),
    ],
)
def test_it_fails(site: RudeSite, deed: str, reason: str) -> None:
    group = site.misbehave(deed)
    site.ppd.await_state(group, failed=1)
    error = error_of(site.ppd.status(), "failed")
    assert group in error
    assert reason in error
    site.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "deed",
    [
        "prints",
        slow("changes"),
        slow("closes"),
        slow("leaks_threads"),
        "leaves_files",
        slow("leaves_segments"),
    ],
)
def test_it_succeeds(site: RudeSite, deed: str) -> None:
    group = site.misbehave(deed)
    site.ppd.await_state(group, exported=1)
    assert site.notes("child"), "it was not done"
    if deed == "prints":
        log = site.log(group)
        for text in ("output", "error", "written to descriptor 1", "echoed by a process"):
            assert text in log
        assert "echoed by a process" not in site.ppd.log.read_text()
    elif deed.startswith("leaves"):
        assert len(site.notes("file")) >= 3
    site.check()


@pytest.mark.slow
@pytest.mark.parametrize(("deed", "strays"), [("forks", 3), slow("forks_itself", 1)])
def test_its_processes_are_ended(site: RudeSite, deed: str, strays: int) -> None:
    before = site.ppd.counts().get("strays_killed", 0)
    group = site.misbehave(deed)
    site.ppd.await_state(group, exported=1)
    assert len(site.notes("stray")) == strays
    assert site.ppd.counts()["strays_killed"] == before + strays
    assert f"{group}/{BAD}#1" in error_of(site.ppd.status(), "strays_killed")
    site.check()


@pytest.mark.slow
def test_copy_of_the_child_returns(site: RudeSite) -> None:
    """Both go on after the fork; only the child's outputs count."""
    group = site.misbehave("returns_twice")
    site.ppd.await_state(group, exported=1)
    assert "forked by a task, has returned from it" in site.log(group)
    assert site.output("ground", group)["pid"] == site.notes("child")[0]
    site.check()


def test_everything_is_put_back(site: RudeSite) -> None:
    """What a pre-processing task does to its process does not reach the main pipeline."""
    group = site.misbehave("changes", when="early")
    site.ppd.await_state(group, exported=1)
    before, after = site.output("early", group), site.output("ground", group)
    # Only pre-processing may be cut short, by the last of these signals.
    assert before["handlers"].pop() == "<function _cut"
    assert after["handlers"].pop() == str(int(signal.SIG_IGN))
    assert after == before
    assert before["group"]
    assert before["core"] == 0
    assert before["temporary"].startswith(str(site.ppd.settings.local_repos))
    assert before["output"] == [str(p) for p in logs(site, group) * 2]
    # All that comes after is logged again.
    assert "inputs came from memory" in site.log(group)
    site.check()


@pytest.mark.slow
def test_modes_of_outputs(observatory: Observatory, tmp_path: Path) -> None:
    """A umask that would lock everybody out locks nobody out of the outputs."""
    # The export comes late: what was handed over can be looked at.
    with rude_site(observatory, tmp_path, export_age=5.0) as site:
        group = site.misbehave("changes")
        ready = site.ppd.settings.spool_dir / "ready"
        wait_for(lambda: list(ready.glob("*")), 60.0, "a hand-over")
        files = [p for entry in ready.iterdir() for p in (entry, *entry.iterdir())]
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in files}
        assert len(modes) > 3
        assert all(mode & 0o600 == 0o600 for mode in modes.values()), modes
        site.ppd.await_state(group, exported=1)
        site.check()


@pytest.mark.slow
def test_what_is_tried_again(observatory: Observatory, tmp_path: Path) -> None:
    """A task that exits may do better another time; one that says it would not is believed."""
    with rude_site(observatory, tmp_path, retries=1) as site:
        site.ppd.await_state(site.misbehave("says_never_again"), failed=1)
        assert "retried" not in site.ppd.counts()
        group = site.misbehave("exits")
        site.ppd.await_state(group, failed=1)
        assert site.ppd.counts()["retried"] == 1
        assert f"{group}/{BAD}#2: pipeline " in error_of(site.ppd.status(), "failed")
        site.check()


@pytest.mark.slow
def test_preprocessing_that_exits(site: RudeSite) -> None:
    """The main pipeline goes on without it."""
    before = site.ppd.counts().get("preprocess_failed", 0)
    group = site.misbehave("exits", when="early")
    site.ppd.await_state(group, exported=1)
    assert site.ppd.counts()["preprocess_failed"] == before + 1
    site.check()


@pytest.mark.slow
def test_task_that_does_not_end(observatory: Observatory, tmp_path: Path) -> None:
    """It ignores SIGTERM: SIGKILL follows, for what it has started too."""
    with rude_site(observatory, tmp_path, worker_timeout=8.0, kill_grace=1.0) as site:
        group = site.misbehave("ignores_sigterm")
        site.ppd.await_state(group, failed=1)
        error = error_of(site.ppd.status(), "failed")
        assert "it took longer than 8 s; its child ended by SIGKILL while main" in error
        assert len(site.notes("stray")) == 1
        site.check()


@pytest.mark.slow
def test_memory_of_a_family(observatory: Observatory, tmp_path: Path) -> None:
    """Each process is within the limit, all together are not."""
    with rude_site(observatory, tmp_path, child_memory="100 MiB", retries=3) as site:
        group = site.misbehave("allocates_in_processes")
        site.ppd.await_state(group, failed=1)
        error = error_of(site.ppd.status(), "failed")
        assert "MB of memory, more than its limit of 105 MB" in error
        assert "retried" not in site.ppd.counts(), "it would take as much again"
        # It need not have come to all of them.
        assert 2 <= len(site.notes("stray")) <= 8
        site.check()


@pytest.mark.slow
def test_supervisor_killed(observatory: Observatory, tmp_path: Path) -> None:
    """What tasks had left is ended by the next start, which finishes their work."""
    with rude_site(observatory, tmp_path) as site:
        group = site.misbehave("ignores_sigterm")
        (stray,) = wait_for(lambda: site.notes("stray"), 30.0, "a process to be left")
        for path in site.folder.glob(f"*-{BAD}"):
            path.unlink()
        assert site.ppd.process is not None
        site.ppd.process.kill()
        site.ppd.process.wait(10.0)
        assert lives(stray)
        site.ppd.start()
        assert not lives(stray)
        assert not any(lives(pid) for pid in site.notes("child"))
        site.ppd.await_state(group, exported=1)


@pytest.mark.slow
def test_nursery_killed(observatory: Observatory, tmp_path: Path) -> None:
    with rude_site(observatory, tmp_path, retries=1) as site:
        group = site.misbehave("forks_itself_and_waits")
        (stray,) = wait_for(lambda: site.notes("stray"), 30.0, "a process to be left")
        for path in site.folder.glob(f"*-{BAD}"):
            path.unlink()
        os.kill(site.nursery, signal.SIGKILL)
        wait_for(lambda: not lives(stray), 20.0, "what its child left to be ended")
        site.ppd.await_state(group, exported=1)


@pytest.mark.slow
def test_a_good_pipeline_leaves_nothing_to_end(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path, main=(ISR,)) as ppd:
        ppd.good_visit("good", GOOD)
        ppd.await_state("good", exported=1)
        assert "strays_killed" not in ppd.counts()
