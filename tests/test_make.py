"""What the README's commands rest on: finding a Python, and a package with all its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FINDER = ROOT / "tools" / "find-python"


def _path_with(folder: Path, **programs: str) -> str:
    """Make a PATH that has only what the script needs, and some programs."""
    folder.mkdir()
    for name in ("cat", "dirname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, text in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return str(folder)


def _find(tmp_path: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": _path_with(tmp_path / "bin", **programs), "HOME": str(tmp_path)}
    return subprocess.run(
        ["/bin/sh", str(FINDER)], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_only_an_old_python(tmp_path: Path) -> None:
    done = _find(tmp_path, python3="exit 1")
    assert done.returncode == 1
    assert "needs Python 3.12 or newer" in done.stderr
    assert "uv python install" in done.stderr
    assert done.stdout == ""


def test_a_shim_that_fails_is_passed_over(tmp_path: Path) -> None:
    good = f'exec {sys.executable} "$@"'
    done = _find(tmp_path, **{"python3.13": "echo pyenv: not installed >&2; exit 127", "python3.12": good})
    assert done.stdout.strip() == str(tmp_path / "bin" / "python3.12")


def test_uv_is_asked_last(tmp_path: Path) -> None:
    done = _find(tmp_path, python3="exit 1", uv=f"echo {sys.executable}")
    assert done.stdout.strip() == sys.executable


def test_the_wheel_has_all_files(tmp_path: Path) -> None:
    """What is installed without the checkout can still run the demo."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "ppd", source / "ppd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "ppd").rglob("*")
        if p.is_file() and p.suffix != ".pyc" and "__pycache__" not in p.parts
    }
    assert wanted <= packed, wanted - packed


@pytest.mark.parametrize(
    "name", [".ci/run", "bin/ppd", "bin/ppd-init", "bin/ppdctl", "tools/find-python", "tools/run-dockerfile"]
)
def test_scripts_are_executable(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!")
