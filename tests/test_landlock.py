"""What is hidden can't be opened; all else can."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ppd import landlock
from ppd.config import Settings
from ppd.credentials import take_credentials
from ppd.demo.central import build_apdb
from ppd.supervisor.hidden import Hidden, hidden_from_page, hidden_from_tasks, tell_exposed

needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")

_TRY = """
import json, os, subprocess, sys
from pathlib import Path
from ppd import landlock

def attempt(what):
    try:
        what()
        return "done"
    except OSError as e:
        return type(e).__name__

root = Path(sys.argv[1])
landlock.hide([root / "secrets", root / "open" / "one"])
(root / "open" / "folder" / "new").write_text("x")
found = {
    "hidden file": attempt(lambda: (root / "secrets" / "key").read_text()),
    "hidden, written": attempt(lambda: (root / "secrets" / "key").open("a").close()),
    "by a link": attempt(lambda: (root / "link").read_text()),
    "single": attempt(lambda: (root / "open" / "one").read_text()),
    "its neighbour": attempt(lambda: (root / "open" / "two").read_text()),
    "new in a folder": attempt(lambda: (root / "open" / "folder" / "new").read_text()),
    "linked": attempt(lambda: os.link(root / "open" / "two", root / "open" / "folder" / "linked")),
    "renamed": attempt(lambda: os.rename(root / "open" / "folder" / "new", root / "deep" / "renamed")),
    "linked out": attempt(lambda: os.link(root / "secrets" / "key", root / "deep" / "key")),
    "its own memory": attempt(lambda: open("/proc/self/environ", "rb").read()),
    "a new process": subprocess.run(["cat", str(root / "secrets" / "key")], capture_output=True).returncode,
}
print(json.dumps(found))
"""


@needs_landlock
def test_hide(tmp_path: Path) -> None:
    for folder in ("secrets", "open/folder", "deep"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("secrets/key", "open/one", "open/two"):
        (tmp_path / name).write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "secrets" / "key")
    done = subprocess.run(
        [sys.executable, "-c", _TRY, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    kept, fine = "PermissionError", "done"
    assert json.loads(done.stdout) == {
        "hidden file": kept,
        "hidden, written": kept,
        "by a link": kept,
        "single": kept,
        "its neighbour": fine,
        "new in a folder": fine,
        "linked": fine,
        "renamed": fine,
        # To have it elsewhere would be a way to read it.
        "linked out": "OSError",
        "its own memory": fine,
        "a new process": 1,
    }


_OUTSIDE = """
import ctypes, os, sys, time
from ppd import landlock

def become():
    if os.geteuid() == 0:  # root may read everybody's environment
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as of a process that was begun so

def look(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as stream:
            stream.read(1)
        return "read"
    except PermissionError:
        return "kept"
    except OSError:  # nothing is at address 0, but it was opened
        return "read"

go, ready = os.pipe()
outside = os.fork()
if outside == 0:
    become()
    os.write(ready, b"!")
    time.sleep(20)
    os._exit(0)
become()
os.read(go, 1)
before = [look(outside, name) for name in ("environ", "mem")]
landlock.hide([])
print(*before, *(look(outside, name) for name in ("environ", "mem")), look(os.getpid(), "environ"))
os.kill(outside, 9)
"""


@needs_landlock
def test_memory_of_other_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OUTSIDE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["read", "read", "kept", "kept", "read"]


def test_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(OSError, match="no Landlock") as e:
        landlock.hide([Path("/etc")])
    assert e.value.errno == errno.EOPNOTSUPP


_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.lists(st.lists(_NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts)), max_size=6)


@examples(max_examples=40, deadline=None)
@given(_PATHS, _PATHS)
def test_all_but_what_is_hidden(
    tmp_path_factory: pytest.TempPathFactory, there: list[str], hidden: list[str]
) -> None:
    """Each file that is there is allowed, by itself or a folder above it, if and only if it is not hidden."""
    root = tmp_path_factory.mktemp("tree")
    for path in there:
        (root / path / "folder").mkdir(parents=True, exist_ok=True)
        (root / path / "file").touch()
    away = [root / path for path in hidden if (root / path).exists()]
    allowed = set(map(Path, landlock.not_hidden(away)))
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder) / file
            is_hidden = any(path.is_relative_to(one) for one in away)
            assert is_hidden != any(path.is_relative_to(one) for one in allowed)


def _settings(folder: Path, **changes: Any) -> Settings:
    config = {
        "instrument": "DemoCam",
        "central_repo": str(folder / "central"),
        "main_pipelines": [{"pipelines": ["/p/A.yaml"]}],
        "state_dir": str(folder / "state"),
        "config_path": folder / "ppd.yaml",
        **changes,
    }
    settings = Settings.model_validate(config)
    for path in (settings.local_repos, settings.spool_dir, settings.state_dir / "logs"):
        path.mkdir(parents=True, exist_ok=True)  # as the supervisor does before
    return settings


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's files."""
    for name in (
        "central/butler.yaml",
        "central/gen3.sqlite3",
        "central/apdb/apdb.yaml",
        "central/raws/a",
        "ppd.yaml",
        "token",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (
        "home/.pgpass",
        "home/.lsst/db-auth.yaml",
        "apdb-auth.yaml",
        "creds/PGPASSFILE",
        "keys/server.key",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal.sqlite3").touch()
    return tmp_path


JOURNAL = {f"state/journal.sqlite3{end}" for end in ("", "-shm", "-wal")}


def _names(found: Hidden | None, folder: Path) -> set[str]:
    assert found is not None
    return {str(path.relative_to(folder)) for path in found.paths}


def test_what_is_not_for_tasks(site: Path) -> None:
    environ = {
        "HOME": str(site / "home"),
        "CREDENTIALS_DIRECTORY": str(site / "creds"),
        "PGPASSWORD_FILE": str(site / "token"),
        "PPD_TASKS_LSST_DB_AUTH": str(site / "apdb-auth.yaml"),
        "LSST_DB_AUTH": str(site / "apdb-auth.yaml"),
    }
    take_credentials(environ)  # forgets where it was, but for this
    settings = _settings(site, control_keys=site / "keys")
    of_central = {"ppd.yaml", "home/.pgpass", "home/.lsst/db-auth.yaml", "creds", "token", "central"}
    of_central.add("creds/PGPASSFILE")
    # What the site has for its tasks stays theirs.
    assert _names(hidden_from_tasks(settings, environ), site) == of_central | {
        "keys",
        *JOURNAL,
    }
    # The page reads journal and keys.
    assert _names(hidden_from_page(settings, environ), site) == of_central | {"apdb-auth.yaml"}
    assert hidden_from_tasks(_settings(site, landlock="off"), environ) is None


def test_a_central_repo_with_things_that_tasks_need(site: Path) -> None:
    """It can't be opened as a repo all the same."""
    for changes in (
        {"apdb_config": str(site / "central" / "apdb" / "apdb.yaml")},
        {"raw_dirs": (site / "central" / "raws",)},
        {"main_pipelines": [{"pipelines": [str(site / "central" / "p" / "A.yaml")]}]},
    ):
        found = _names(hidden_from_tasks(_settings(site, **changes), {}), site)
        assert found == {"ppd.yaml", "central/butler.yaml", "central/gen3.sqlite3", *JOURNAL}
    found = _names(hidden_from_tasks(_settings(site, central_repo="s3://bucket/repo"), {}), site)
    assert found == {"ppd.yaml", *JOURNAL}
    extra = _settings(site, central_repo="label", hidden_from_tasks=(site / "home", site / "not-there"))
    assert _names(hidden_from_tasks(extra, {}), site) == {"ppd.yaml", *JOURNAL, "home"}


def test_where_tasks_make_files(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is new beside something hidden can't be opened: there, nothing is hidden, and that is said."""
    build_apdb(site)
    for changes in (
        {"apdb_config": str(site / "apdb.yaml")},
        {"raw_dirs": (site / "raws-to-come",)},
        {"pipeline_parameters": {"alert_dir": str(site / "alerts")}},
    ):
        settings = _settings(site, **changes)
        found = hidden_from_tasks(settings, {})
        assert found is not None
        assert {p.name for p in found.exposed} >= {"ppd.yaml", "central"}
        caplog.clear()
        tell_exposed(settings)
        assert f"Tasks can open {site}/ppd.yaml" in caplog.text
    # A database elsewhere, and folders that are there, are in nobody's way.
    (site / "apdb.yaml").write_text(f"db_url: sqlite:///{site}/home/apdb.db\n")
    (site / "raws").mkdir()
    settings = _settings(site, apdb_config=str(site / "apdb.yaml"), raw_dirs=(site / "raws",))
    found = hidden_from_tasks(settings, {"HOME": str(site / "home")})
    assert found is not None
    assert {str(p.relative_to(site)) for p in found.exposed} == {"home/.pgpass", "home/.lsst/db-auth.yaml"}
    assert _names(found, site) == {"ppd.yaml", "central", *JOURNAL}
