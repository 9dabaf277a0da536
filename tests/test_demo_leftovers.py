"""Leftovers of a night: what is planted is counted, what belongs to others is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppd.cache.place import place_name
from ppd.config import Settings
from ppd.demo.leftovers import count_leftovers

CLEAN = {"processes": 0, "shm_files": 0, "sockets": 0, "local_repos": 0}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("shm", "sockets", "state"):
        (tmp_path / name).mkdir()
    return Settings.from_dict(
        {
            "instrument": "DemoCam",
            "central_repo": str(tmp_path / "central"),
            "main_pipelines": [{"pipelines": None}],
            "state_dir": str(tmp_path / "state"),
            "socket_dir": str(tmp_path / "sockets"),
            "shm_dir": str(tmp_path / "shm"),
            "shm_fallback": str(tmp_path / "fallback"),
            "raw_dirs": [str(tmp_path)],
            "config_path": str(tmp_path / "ppd.yaml"),
        }
    )


def test_nothing_is_left(settings: Settings) -> None:
    assert count_leftovers(settings) == CLEAN


def test_a_cache_in_shared_memory(settings: Settings) -> None:
    (settings.shm_dir / place_name("DemoCam", settings.state_dir)).mkdir()
    # Another supervisor of this machine, and something of nobody's.
    (settings.shm_dir / place_name("DemoCam", settings.state_dir / "other")).mkdir()
    (settings.shm_dir / "sem.something").touch()
    assert count_leftovers(settings) == {**CLEAN, "shm_files": 1}


def test_a_cache_where_it_goes_when_shared_memory_is_short(settings: Settings) -> None:
    assert settings.shm_fallback is not None
    (settings.shm_fallback / place_name("DemoCam", settings.state_dir)).mkdir(parents=True)
    assert count_leftovers(settings) == {**CLEAN, "shm_files": 1}


def test_a_socket(settings: Settings) -> None:
    (settings.socket_dir / "control.ipc").touch()
    (settings.socket_dir / "readme").touch()
    assert count_leftovers(settings) == {**CLEAN, "sockets": 1}


def test_a_childs_repo(settings: Settings) -> None:
    (settings.local_repos / "ppd-DemoCam-g1-4").mkdir(parents=True)
    assert count_leftovers(settings) == {**CLEAN, "local_repos": 1}


@pytest.fixture
def process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Something that looks like a ppd of this configuration."""
    code = "import time; print(flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", code, "ppd.cli.daemon", "--config", str(settings.config_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process(settings: Settings, process: subprocess.Popen[bytes]) -> None:
    assert count_leftovers(settings) == {**CLEAN, "processes": 1}
    process.kill()
    deadline = time.monotonic() + 10.0
    # A zombie that nobody has reaped yet does nothing any more.
    while count_leftovers(settings) != CLEAN and time.monotonic() < deadline:
        time.sleep(0.02)
    assert count_leftovers(settings) == CLEAN


def test_processes_of_other_configurations(
    settings: Settings, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    other = settings.model_copy(
        update={"config_path": tmp_path / "other.yaml", "state_dir": tmp_path / "other"}
    )
    assert count_leftovers(other) == CLEAN
