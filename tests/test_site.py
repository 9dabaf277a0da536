"""The site of compose.yaml, as its services do it: each a process, with real servers beside them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from observatory import wait_for
from postgres_support import primary, replica
from s3_support import s3_server, use_credentials

from ppd.config import load_settings
from ppd.control import ControlClient, NoSupervisorError
from ppd.demo.leftovers import count_leftovers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent


def _run(module: str, *arguments: str | Path, timeout: float = 300.0) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def _answers(config: Path) -> bool:
    try:
        with ControlClient(load_settings(config, {}).socket_dir, 1.0) as client:
            return client.status()["refuses"] is None
    except NoSupervisorError:
        return False


def test_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registry in PostgreSQL, inputs read through the replica, raws in the bucket, outputs in central."""
    sockets = Path(tempfile.mkdtemp(prefix="ppd-test-"))
    use_credentials(tmp_path / "credentials", monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    for folder in ("repo", "state", "bucket"):
        (tmp_path / folder).mkdir()
    config = tmp_path / "ppd.yaml"
    try:
        with (
            primary(tmp_path) as first,
            replica(first, tmp_path) as second,
            s3_server(tmp_path / "bucket") as s3,
        ):
            first.create_database("central")
            text = yaml.safe_load((ROOT / "compose.yaml").read_text())["configs"]["ppd"]["content"]
            for there, here in (
                ("/opt/ppd/lib/python3.13/site-packages", ROOT),
                ("/run/ppd", sockets),
                ("/var/lib/ppd", tmp_path / "state"),
                ("/repo/", f"{tmp_path / 'repo'}/"),
                ("http://s3:8333", s3.endpoint),
            ):
                assert there in text
                text = text.replace(there, str(here))
            config.write_text(text)
            urls = [f"--registry={first.url('central')}", f"--replica={second.url('central')}"]
            prepare = ("prepare", tmp_path / "repo", *urls, "--visits", "1")
            assert "1 visits are ready" in _run("ppd.demo.site", *prepare)
            assert "has a night already" in _run("ppd.demo.site", *prepare)
            second.wait_until_caught_up()
            assert "Prepared" in _run("ppd.cli.init", "--config", config)
            with (tmp_path / "ppd.log").open("wb") as log:
                ppd = subprocess.Popen(
                    [sys.executable, "-m", "ppd.cli.daemon", "--config", str(config)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                wait_for(lambda: _answers(config), 120.0, f"ppd; its log is {tmp_path / 'ppd.log'}")
                told = _run("ppd.demo.site", "play", tmp_path / "repo", "--config", config, timeout=400)
                assert "9 raws have come; 9 detector-visits are exported, 0 failed" in told
            finally:
                ppd.send_signal(signal.SIGTERM)
                try:
                    code = ppd.wait(60.0)
                finally:
                    ppd.kill()
                    ppd.wait()
            assert code == 0
        assert not any(count_leftovers(load_settings(config, {})).values())
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
