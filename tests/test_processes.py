"""What /proc tells of processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from ppd.supervisor import processes
from ppd.supervisor.processes import age_of_this_process


def test_age_of_this_process() -> None:
    """As others count it; and it grows."""
    age = age_of_this_process()
    assert abs(age - (time.time() - psutil.Process().create_time())) < 1.5
    time.sleep(0.2)
    assert 0.15 < age_of_this_process() - age < 5.0


def test_a_child_is_younger() -> None:
    time.sleep(0.3)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, repr(age_of_this_process()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    age = float(os.read(read, 100))
    os.close(read)
    os.close(write)
    assert 0.0 <= age < age_of_this_process() - 0.25


def test_no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel tells nothing, all of the grace is given."""
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert age_of_this_process() == 0.0
