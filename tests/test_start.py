"""Starting ppd: what it refuses to start without, and what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from observatory import ISR, Observatory, Ppd, running

pytestmark = pytest.mark.night


@pytest.fixture
def ppd(observatory: Observatory, tmp_path: Path) -> Iterator[Ppd]:
    ppd = Ppd(observatory, tmp_path)
    yield ppd
    ppd.close()
    assert not any(ppd.leftovers().values())


def _change(ppd: Ppd, **changes: object) -> None:
    config = yaml.safe_load(ppd.config.read_text())
    ppd.config.write_text(yaml.safe_dump({**config, **changes}))


def test_without_ppd_init(ppd: Ppd) -> None:
    done = ppd.command("daemon")
    assert done.returncode == 4
    assert "is not prepared for deployment" in done.stderr
    # What it says to do is what helps.
    command = done.stderr.rpartition("Run: ppd-init ")[2].split()
    assert ppd.command("init", *command[2:]).returncode == 0
    ppd.start()
    assert ppd.status()["health"] == "ok"


def test_configuration_with_mistakes(ppd: Ppd) -> None:
    """All at once, with their places."""
    ppd.config.write_text("instrument: ''\ncentral_repo: x\nslots: many\nraw_dir: [here]\n")
    for command in ("daemon", "init", "ctl"):
        done = ppd.command(command, *(["status"] if command == "ctl" else []))
        assert done.returncode == 2
        for mistake in ("instrument", "slots", "raw_dir", "main_pipelines"):
            assert mistake in done.stderr, (command, done.stderr)
        assert f"{ppd.config}:3" in done.stderr


def test_configuration_that_is_not_there(ppd: Ppd) -> None:
    ppd.config.unlink()
    done = ppd.command("daemon")
    assert done.returncode == 2
    assert str(ppd.config) in done.stderr


def test_task_that_does_not_exist(ppd: Ppd, tmp_path: Path) -> None:
    """ppd-init refuses it, and writes nothing."""
    wrong = tmp_path / "Wrong.yaml"
    wrong.write_text(Path(ISR).read_text().replace("IsrTask", "NoSuchTask"))
    _change(ppd, main_pipelines=[{"pipelines": [ISR, str(wrong)]}])
    registry = ppd.central / "gen3.sqlite3"
    before = registry.read_bytes()
    done = ppd.command("init")
    assert done.returncode == 2
    assert "nothing was written" in done.stderr
    assert "ppd.demo.tasks.isr.NoSuchTask" in done.stderr
    assert str(wrong) in done.stderr
    assert registry.read_bytes() == before


def test_no_central_repo(ppd: Ppd) -> None:
    shutil.rmtree(ppd.central)
    done = ppd.command("daemon")
    assert done.returncode == 2
    assert f"no Butler repo at {ppd.central}" in done.stderr


@pytest.mark.slow
def test_two_on_one_state_directory(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path) as ppd:
        assert ppd.process is not None
        done = ppd.command("daemon")
        assert done.returncode == 2
        assert f"Another ppd (pid {ppd.process.pid}) runs on" in done.stderr
        assert ppd.status()["health"] == "ok"


@pytest.mark.slow
def test_no_shared_memory_falls_back(observatory: Observatory, tmp_path: Path) -> None:
    changes = {"shm_dir": str(tmp_path / "absent"), "shm_fallback": str(tmp_path / "fallback")}
    with running(observatory, tmp_path, **changes) as ppd:
        assert list((tmp_path / "fallback").glob("ppd-DemoCam-*"))
        assert f"{tmp_path / 'absent'} does not exist" in ppd.log.read_text()
        ppd.good_visit("on-disk", 1)
        ppd.await_state("on-disk", exported=1)
    assert not list((tmp_path / "fallback").iterdir())


@pytest.mark.slow
def test_no_shared_memory_and_no_fall_back(ppd: Ppd) -> None:
    _change(ppd, shm_min_free="1000 TiB")
    ppd.initialize()
    done = ppd.command("daemon")
    assert done.returncode == 5
    assert "No place for the cache" in done.stderr
    assert "MiB are needed" in done.stderr
    assert "no fall-back directory is configured" in done.stderr


def test_folder_that_can_not_be_made(ppd: Ppd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    _change(ppd, state_dir=str(tmp_path / "file" / "state"))
    done = ppd.command("daemon")
    assert done.returncode == 2
    assert "can't be made" in done.stderr


@pytest.mark.slow
def test_interrupted_while_it_starts(ppd: Ppd) -> None:
    """A SIGTERM in the middle of the set-up ends it, and nothing stays."""
    ppd.initialize()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppd.cli.daemon", "--config", str(ppd.config)], stderr=subprocess.DEVNULL
    )
    try:
        while not psutil.Process(process.pid).children():  # the nursery
            assert process.poll() is None
        process.terminate()
        assert process.wait(30.0) == 130
    finally:
        process.kill()
        process.wait()


def test_ppdctl_without_ppd(ppd: Ppd) -> None:
    done = ppd.command("ctl", "status", "--timeout", "0.5")
    assert done.returncode == 3
    assert "No ppd answers" in done.stderr


@pytest.mark.parametrize("name", ["ppd", "ppd-init", "ppdctl"])
def test_commands_of_the_checkout(name: str, tmp_path: Path) -> None:
    """bin/ works from anywhere, also through a symbolic link."""
    link = tmp_path / name
    link.symlink_to(Path(__file__).parent.parent / "bin" / name)
    done = subprocess.run(
        [str(link), "--help"], capture_output=True, text=True, timeout=60.0, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
