"""The clock that tests move under running processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.moved_clock import environment, move

_ASK = "import sys, time\nfor _ in sys.stdin: print(time.time(), flush=True)"


def test_moved_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    move(file, 86400.0)
    with subprocess.Popen(
        [sys.executable, "-c", _ASK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(file, os.environ),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for seconds in (86400.0, -3600.0, 0.0):
            move(file, seconds)
            process.stdin.write("\n")
            process.stdin.flush()
            assert abs(float(process.stdout.readline()) - time.time() - seconds) < 5.0
        process.stdin.close()
        assert process.wait(10.0) == 0
