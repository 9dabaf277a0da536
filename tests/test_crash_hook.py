"""The hook of the crash points: nothing where it is not asked for, one death where it is."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from ppd import crash_points
from ppd.crash_points import CRASH_POINTS, FOLDER_VARIABLE, HIT_FOLDER

PPD = Path(crash_points.__file__).parent


def _calls() -> dict[str, list[str]]:
    """Modules with a call of ``here``, by its first argument as it is written."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PPD.rglob("*.py")):
        if path.name == "crash_points.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "here":
                found[ast.unparse(node.args[0])].append(str(path.relative_to(PPD)))
    return found


def test_each_is_in_the_code_once() -> None:
    calls = _calls()
    assert sorted(calls) == sorted(repr(name) for name in CRASH_POINTS)
    assert {name: where for name, where in calls.items() if len(where) > 1} == {}


def test_each_is_of_the_process_that_its_name_says() -> None:
    rooms = {
        "supervisor": ("supervisor/", "cache/", "sources/"),
        "nursery": ("workers/nursery.py",),
        "child": ("workers/",),
        "exporter": ("supervisor/export", "supervisor/spool.py", "supervisor/dead_letters.py"),
    }
    for name, modules in _calls().items():
        process, _, rest = ast.literal_eval(name).partition(".")
        assert modules[0].startswith(rooms[process]), name
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rest), name


def test_each_says_which_moment_it_is() -> None:
    for name, point in CRASH_POINTS.items():
        assert name.startswith(f"{point.process}.")
        assert len(point.moment) > 10
        assert not point.moment.endswith(".")
    assert len({point.moment for point in CRASH_POINTS.values()}) == len(CRASH_POINTS)


def test_there_are_enough() -> None:
    assert len(CRASH_POINTS) >= 40


def _run(program: str, folder: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != FOLDER_VARIABLE}
    if folder is not None:
        environment[FOLDER_VARIABLE] = str(folder)
    return subprocess.run(
        [sys.executable, "-c", f"from ppd.crash_points import *\n{program}\nprint('alive')"],
        env=environment,
        cwd=PPD.parent,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / HIT_FOLDER).mkdir()
    return tmp_path


def test_nothing_is_looked_for_without_a_folder(folder: Path) -> None:
    (folder / "a.b").write_text("")
    assert _run("import os; os.open = None; here('a.b')", None).stdout == "alive\n"
    assert (folder / "a.b").exists()


def test_one_file_is_one_death(folder: Path) -> None:
    (folder / "a.b").write_text("")
    assert _run("here('c.d')\nhere('a.b')", folder).returncode == -9
    (hit,) = (folder / HIT_FOLDER).iterdir()
    assert re.fullmatch(r"a\.b-\d+", hit.name)
    assert not (folder / "a.b").exists()
    assert _run("here('c.d')\nhere('a.b')", folder).stdout == "alive\n"


def test_one_of_many_processes_dies(folder: Path) -> None:
    (folder / "a.b").write_text("")
    program = (
        "import os\n"
        "pids = []\n"
        "for _ in range(20):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        here('a.b')\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "print(sorted(os.waitpid(pid, 0)[1] for pid in pids)[-2:])"
    )
    assert _run(program, folder).stdout == "[0, 9]\nalive\n"


def test_it_may_be_said_who(folder: Path) -> None:
    cases = {
        ("", "", "x"): True,
        ("x", "", "x"): True,
        ("x", "", ""): False,
        ("x", "", "y"): False,
        ("g/3", "g/3", ""): True,
        ("g/3", "g/4", ""): False,
        ("g/3 x", "g/3", "x"): True,
        ("g/3 x", "g/3", "y"): False,
    }
    program = (
        "import os\n"
        f"for number, (words, subject, what) in enumerate({list(cases)}):\n"
        f"    with open(os.path.join({str(folder)!r}, f'a.b{{number}}'), 'w') as stream:\n"
        "        stream.write(words)\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        about(subject)\n"
        "        here(f'a.b{number}', what)\n"
        "        os._exit(0)\n"
        "    print(os.waitpid(pid, 0)[1])"
    )
    done = _run(program, folder).stdout.split()
    assert [word == "9" for word in done[:-1]] == list(cases.values())
    left = {path.name for path in folder.iterdir()} - {HIT_FOLDER}
    assert left == {f"a.b{number}" for number, dies in enumerate(cases.values()) if not dies}


def test_folder_that_is_not_there_harms_nobody(tmp_path: Path) -> None:
    assert _run("here('a.b')", tmp_path / "nowhere").stdout == "alive\n"


def test_it_costs_nothing() -> None:
    """Where there is no folder: less than a microsecond, in fact some 50 ns."""
    program = "import timeit; print(min(timeit.repeat(lambda: here('a.b'), number=20000, repeat=20)) / 20000)"
    seconds = float(_run(program, None).stdout.split()[0])
    print(f"{seconds * 1e9:.0f} ns")
    assert seconds < 1e-6
