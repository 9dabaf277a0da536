"""What is written down is so: links lead somewhere, counts and exit codes are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ppd.supervisor.metric_names import COUNTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# How the supervisor counts, whatever object it does it through.
_COUNTED = re.compile(r"""counters\.(?:add|error)\(\s*"(\w+)"|\.fault\(\s*d,\s*"(\w+)\"""")
_TABLES = re.compile(r'\(\w+Error, "(\w+)",|"\w+": "(\w+)",')


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_decisions_are_listed() -> None:
    listed = set(re.findall(r"\((\d{4}[\w-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text()))
    assert listed == {p.name for p in (ROOT / "docs/decisions").glob("0*.md")}


def test_every_count_is_explained() -> None:
    used: set[str] = set()
    for path in (ROOT / "ppd" / "supervisor").glob("*.py"):
        text = path.read_text()
        used.update(a or b for a, b in _COUNTED.findall(text))
        if path.name in ("refusals.py", "lifecycle.py"):
            used.update(name for pair in _TABLES.findall(text) for name in pair if name)
    explained = set(re.findall(r"`(\w+)`", (ROOT / "docs/commands.md").read_text().partition("counts\n")[2]))
    assert len(used) > 20
    assert used == explained, used ^ explained
    assert used == {name for family in COUNTS for name in family.counts}, "each is among the metrics too"


def test_every_failure_is_proved() -> None:
    """Each row of each table names the tests that prove it, and they are there."""
    lines = (ROOT / "docs" / "failures.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| what happened")]
    named = [re.findall(r"`(test_\w+)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 40
    assert [row for row, tests in zip(rows, named) if not tests] == []
    for module, test in {pair for tests in named for pair in tests}:
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(), f"{module}::{test}"


def test_every_promise_is_proved() -> None:
    """What durability rests on: each row names its tests, and they are there."""
    text = (ROOT / "docs" / "durability.md").read_text().partition("## What it rests on")[2]
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 12
    assert [row for row, tests in zip(rows, named) if not tests] == []
    for module, test in {pair for tests in named for pair in tests}:
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(), f"{module}::{test}"


def test_the_site(tmp_path: Path) -> None:
    """It is built without a warning, all pages are in it, and nothing of it comes from another host."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120.0,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("index.html"))
    assert len(pages) == len(list((ROOT / "docs").rglob("*.md")))
    for page in pages:
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)|<link[^>]* href=\"([^\"]+)", page.read_text()
        )
        assert fetched
        assert not [a or b for a, b in fetched if "//" in (a or b)], page


def test_every_threat_is_met() -> None:
    """Each row of the threats names its tests, and they are there."""
    text = (ROOT / "docs" / "security.md").read_text().partition("## Threats")[2]
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 15
    assert [row for row, tests in zip(rows, named) if not tests] == []
    for module, test in {pair for tests in named for pair in tests}:
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(), f"{module}::{test}"
