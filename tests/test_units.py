"""The files for systemd: they are understood, and shut ppd in as far as is written."""

from __future__ import annotations

import configparser
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ppd.config import Settings

ROOT = Path(__file__).parent.parent
UNITS = ROOT / "systemd"
# What systemd 252 says; it may get better, and docs/deployment.md has it.
_EXPOSURE = {"ppd.service": 1.7, "ppd-init.service": 1.5}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed here (apt-get install systemd)"
)


def _units() -> list[Path]:
    return sorted(p for p in UNITS.iterdir() if p.suffix in (".service", ".timer", ".target"))


@needs_systemd
def test_units() -> None:
    assert len(_units()) == 4
    command = ["systemd-analyze", "verify", *map(str, _units())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # Its programs are not installed on the machine that runs the tests.
    faults = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert faults == []


@needs_systemd
@pytest.mark.parametrize("name", _EXPOSURE)
def test_exposure(name: str, tmp_path: Path) -> None:
    """It is not more than is written down."""
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    for unit in _units():
        shutil.copy(unit, folder)
    command = ["systemd-analyze", "security", "--offline=yes", f"--root={tmp_path}", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    match = re.search(rf"exposure level for {re.escape(name)}: ([\d.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) <= _EXPOSURE[name]
    assert f"{name}: {_EXPOSURE[name]}" in (ROOT / "docs" / "deployment.md").read_text()


@pytest.mark.skipif(
    not (shutil.which("systemd-sysusers") and shutil.which("systemd-tmpfiles")),
    reason="systemd-sysusers and systemd-tmpfiles are not installed here",
)
def test_user_and_folders(tmp_path: Path) -> None:
    """They are made in an empty root; the secrets' folder is for root alone."""
    (tmp_path / "etc" / "ppd").mkdir(parents=True)
    (tmp_path / "etc" / "ppd" / "ppd.yaml").touch(0o666)
    for command in (
        ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "ppd.sysusers")],
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(UNITS / "ppd.tmpfiles")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    user = next(
        line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("ppd:")
    )
    assert user.split(":")[5:] == ["/var/lib/ppd", "/usr/sbin/nologin"]
    modes = {
        p.name: stat.S_IMODE(p.stat().st_mode)
        for p in (tmp_path / "etc" / "ppd", *(tmp_path / "etc/ppd").iterdir())
    }
    assert modes == {"ppd": 0o750, "ppd.yaml": 0o640, "pipelines": 0o750, "credentials": 0o700}


def test_time_to_stop() -> None:
    """The unit's time is enough for the graces as they are; for longer ones ppd asks itself."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNITS / "ppd.service")
    graces = sum(Settings.model_fields[n].default for n in ("stop_grace", "kill_grace", "drain_grace"))
    assert float(unit["Service"]["TimeoutStopSec"]) >= graces + 40.0
    # Systemd would take a loop that is only busy for one that is stuck.
    assert float(unit["Service"]["WatchdogSec"]) >= 30.0
