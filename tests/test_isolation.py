"""What a child can reach: its own repo and the cache, and nothing of the central repo."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import psutil
import pytest
from observatory import Observatory, identity, running, sleepers, wait_for, write_sleepy

from ppd import landlock
from ppd.cache.place import place_name

pytestmark = pytest.mark.night


def test_no_child_reaches_central_and_nobody_else_us(
    observatory: Observatory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The environment as prompt_processing has it; the supervisor knows, the children don't.
    secrets = {
        "CENTRAL_REPO": str(tmp_path / "central"),
        "READ_CENTRAL_REPO": str(tmp_path / "central"),
        "PGPASSWORD": "central-password",
        "PPD_CONFIG": str(tmp_path / "ppd.yaml"),
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    main = write_sleepy(tmp_path / "sleepy", 60.0)
    (tmp_path / "pgpass").write_text("*:*:*:*:central-password")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    with running(observatory, tmp_path, main=(main,), image_timeout=200.0) as ppd:
        assert ppd.process is not None
        outside = f"/proc/{ppd.process.pid}"
        not_theirs = [
            tmp_path / "central" / "gen3.sqlite3",
            tmp_path / "central" / "butler.yaml",
            tmp_path / "pgpass",
            ppd.config,
            ppd.settings.state_dir / "journal.sqlite3",
            f"{outside}/mem",
        ]
        trial = [*not_theirs, main, ppd.settings.socket_dir]
        (tmp_path / "sleepy" / "try").write_text("\n".join(map(str, trial)))
        assert stat.S_IMODE(ppd.settings.socket_dir.stat().st_mode) == 0o700
        cache = ppd.settings.shm_dir / place_name("DemoCam", ppd.settings.state_dir)
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
        ppd.good_visit("watched", 2)
        assert ppd.submit(groupId="waiting", detector=3).ok
        (busy,) = wait_for(lambda: sleepers(tmp_path / "sleepy"), 30.0, "a child to sleep")
        wait_for((tmp_path / "sleepy" / "tried").exists, 30.0, "its trial")
        # A task can't open what is not for it, though it is the same user's, nor steer its ppd.
        if landlock.abi():
            tried = json.loads((tmp_path / "sleepy" / "tried").read_text())
            assert tried == {
                **dict.fromkeys(map(str, not_theirs), "PermissionError"),
                main: "read",
                "steer": "forbidden",
            }
        assert ppd.status()["paused"]["all"] is None
        wait_for(lambda: ppd.states("waiting") == {"ready": 1}, 30.0, "a child to wait for its raw")
        pids = {c["pid"] for c in ppd.status()["children"]}
        assert len(pids) == 2
        assert busy in pids
        nursery = psutil.Process(busy).ppid()
        for pid in (*pids, nursery):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert str(ppd.central).encode() not in environment
            assert b"central-password" not in environment
            files = _open_files(pid)
            assert not [f for f in files if f.startswith(str(ppd.central))], files
            memory = Path(f"/proc/{pid}/maps").read_text()
            assert str(ppd.central) not in memory
            assert not psutil.Process(pid).net_connections("inet")
        # It holds what it should: its own registry, and its line to the supervisor.
        assert any(f.endswith("gen3.sqlite3") and "/local/" in f for f in _open_files(busy))
        assert psutil.Process(nursery).num_threads() == 1
        # The test can tell: the supervisor does hold the central registry.
        assert ppd.process is not None
        assert any(f.startswith(str(ppd.central)) for f in _open_files(ppd.process.pid))
        os.kill(busy, 9)
        ppd.await_state("watched", exported=1)
        ppd.drop(observatory.raw(3, **identity("waiting")), 3, "waiting")
        ppd.await_state("waiting", exported=1)


def _open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return found
