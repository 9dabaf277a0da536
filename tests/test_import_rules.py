"""The arrows between the rooms: what may import what, and what no module imports when it is loaded."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The compiled stack: sites have it, ppd itself does without.
_COMPILED = re.compile(r"lsst\.(afw|obs|ap|meas|ip)(\b|_)")


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts in setup.cfg against the package in a folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", "setup.cfg"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_all_contracts_are_kept() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 6 kept, 0 broken." in done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "ppd", folder / "ppd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "setup.cfg", folder / "setup.cfg")
    return folder


@pytest.mark.parametrize(
    ("module", "statement", "broken"),
    [
        ("supervisor/raws.py", "from ..cli import ctl", "cli, supervisor"),
        ("cache/place.py", "import ppd.supervisor.raws", "cli, supervisor"),
        ("cache/place.py", "from ..sources import keys", "cli, supervisor"),
        ("sources/keys.py", "from ppd.cache.place import remove_place", "cli, supervisor"),
        ("messages.py", "from .sources import keys", "cli, supervisor"),
        ("visit.py", "from . import pipelines", "cli, supervisor"),
        ("workers/link.py", "from ..supervisor import permits", "workers know nothing"),
        ("workers/link.py", "def later():\n    from ..cache import place", "workers know nothing"),
        ("workers/ingest.py", "from ppd.sources.keys import RawKey", "workers know nothing"),
        ("web/watch.py", "from ..supervisor.status import describe", "by messages and reads the journal"),
        ("web/app.py", "from ..cli import options", "by messages and reads the journal"),
        ("supervisor/spool.py", "from ..workers.handover import HandOver", "by messages alone"),
        ("config.py", "import ppd.demo.camera", "nothing imports the demo"),
        ("workers/child.py", "from ..demo import sky", "nothing imports the demo"),
        ("demo/sky.py", "from ..supervisor import permits", "from outside"),
    ],
)
def test_wrong_import_is_caught(copy: Path, module: str, statement: str, broken: str) -> None:
    path = copy / "ppd" / module
    text = path.read_text()
    try:
        path.write_text(f"{text}\n{statement}\n")
        done = _lint(copy)
    finally:
        path.write_text(text)
    assert done.returncode == 1, done.stderr
    assert re.search(rf"{broken}.* BROKEN", done.stdout)


def test_copy_is_clean(copy: Path) -> None:
    """What is caught above is the statement, not the copying."""
    assert _lint(copy).returncode == 0


def _when_loaded(tree: ast.Module) -> Iterator[str]:
    """Names of the modules that a module imports when it is loaded: not within functions or for types."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def test_no_compiled_stack() -> None:
    """Nothing of it is installed here; a site's tasks bring it."""
    modules = sorted((ROOT / "ppd").rglob("*.py"))
    assert len(modules) > 80
    found = {
        str(path.relative_to(ROOT)): name
        for path in modules
        for name in _when_loaded(ast.parse(path.read_text()))
        if _COMPILED.match(name)
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import lsst.afw.image", True),
        ("from lsst.afw import image", True),
        ("from lsst import afw", True),
        ("from lsst.obs.lsst import LsstCam", True),
        ("import lsst.ap.association as a", True),
        ("try:\n    import lsst.obs.base\nexcept ImportError:\n    pass", True),
        ("class A:\n    import lsst.afw.geom", True),
        ("def f():\n    import lsst.afw.image", False),
        ("if TYPE_CHECKING:\n    import lsst.afw.image", False),
        ("from lsst.daf.butler import Butler\nimport lsst.alert.packet", False),
        ("name = 'lsst.obs.lsst.rawFormatter'", False),
    ],
)
def test_how_it_is_looked_for(source: str, caught: bool) -> None:
    assert any(_COMPILED.match(name) for name in _when_loaded(ast.parse(source))) == caught


def test_nursery_loads_nothing_of_the_supervisor() -> None:
    """In fact, not only on paper: what the process that forks has loaded, and whether it is single."""
    program = (
        "import sys, threading, ppd.workers.nursery;"
        "print(*sorted(m for m in sys.modules if m.startswith(('ppd.', 'zmq'))), threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    *modules, threads = done.stdout.split()
    assert threads == "1"
    assert "ppd.workers.child" in modules
    for room in ("supervisor", "sources", "cache", "cli", "demo"):
        assert not [m for m in modules if m.startswith(f"ppd.{room}")]


@pytest.mark.parametrize("module", ["ppd.cli.ctl, ppd.control, ppd.cli.screen", "ppd.web.process"])
def test_commands_load_no_middleware(module: str) -> None:
    """An operator who looks every second must not wait for it: it takes two."""
    program = f"import sys, {module}; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "zmq" in loaded
    assert not loaded & {"lsst", "astropy", "numpy", "sqlalchemy"}


def test_commands_are_defined_without_all_that_they_use() -> None:
    """Help and completion come at once: what takes a while is imported by who needs it."""
    program = "import sys, ppd.cli.ctl as c; c.make_parser(); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert not set(done.stdout.split()) & {"pydantic", "rich", "zmq", "yaml", "sqlite3", "shtab"}
