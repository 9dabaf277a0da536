"""Importing the demo's tasks, as the nursery does before it forks: no thread, no socket, no file."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys

import ppd.demo.tasks

_IMPORT = """
import importlib, json, os, sys
before = set(os.listdir("/proc/self/fd"))
for name in sys.argv[1:]:
    importlib.import_module(name)
links = []
for fd in set(os.listdir("/proc/self/fd")) - before:
    try:
        links.append(os.readlink(f"/proc/self/fd/{fd}"))
    except FileNotFoundError:
        pass  # that of the listing itself
packets = "lsst.alert.packet" in sys.modules
print(json.dumps({"threads": len(os.listdir("/proc/self/task")), "files": links, "packets": packets}))
"""


def test_what_is_imported_before_the_fork_can_be_forked() -> None:
    names = [f"ppd.demo.tasks.{module.name}" for module in pkgutil.iter_modules(ppd.demo.tasks.__path__)]
    assert "ppd.demo.tasks.alert_stream" in names
    # As the nursery's environment is: numerical libraries would start threads.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, *names],
        env={**os.environ, **single, "JE_ARROW_MALLOC_CONF": "background_thread:false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found == {"threads": 1, "files": [], "packets": True}
