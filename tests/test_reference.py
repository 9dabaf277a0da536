"""What follows from the definitions of commands: the reference is current, shells can complete them."""

from __future__ import annotations

import re
import shutil
import subprocess
import typing
from pathlib import Path

import pytest

from ppd import messages
from ppd.cli import ctl, message_reference
from ppd.cli.completion_command import write_completion
from ppd.cli.options import EXIT_CODES
from ppd.cli.reference import write_reference
from ppd.visit import parse_visit

_ROOT = Path(__file__).parents[1]
_PAGE = _ROOT / "docs" / "ppdctl.md"
_MESSAGES = _ROOT / "docs" / "messages.md"


def test_the_reference_is_current() -> None:
    assert _PAGE.read_text() == write_reference(), "python -m ppd.cli.reference > docs/ppdctl.md"


def test_the_reference_has_all() -> None:
    text = write_reference()
    for name in ("status", "retry", "dead-letters retry", "cache pin", "config check", "completion"):
        assert f"\n## {name}\n" in text
    assert all(f"| {code} | {meaning} |" in text for code, meaning in EXIT_CODES.items())
    assert "--replay" in text and "--watch" in text


def test_the_reference_of_messages_is_current() -> None:
    made = message_reference.write_reference()
    assert _MESSAGES.read_text() == made, "python -m ppd.cli.message_reference > docs/messages.md"


def test_the_reference_has_all_messages() -> None:
    """Each kind has its place, requests name fields that there are, and codes are those that are given."""
    text = message_reference.write_reference()
    (union, _) = typing.get_args(messages._AnyMessage)
    for message in typing.get_args(union):
        (kind,) = typing.get_args(message.model_fields["kind"].annotation)
        assert f"`{kind}`" in text
    assert set(message_reference._COMMANDS) == set(message_reference._commands())
    for reads, _ in message_reference._COMMANDS.values():
        assert set(re.findall(r"`(\w+)`", reads)) <= messages.ControlRequest.model_fields.keys()
    given = {"ok"}
    for path in (_ROOT / "ppd" / "supervisor").glob("*.py"):
        given.update(re.findall(r'\bcode="(\w+)"', path.read_text()))
        if path.name == "refusals.py":
            given.update(re.findall(r'\(\w+Error, "\w+", "(\w+)"\)', path.read_text()))
    assert given == set(message_reference._CODES)


def test_the_example_is_a_visit() -> None:
    visit = parse_visit(message_reference.EXAMPLE)
    assert visit.pointing == (150.1, 2.2, 90.0)
    assert parse_visit({**message_reference.EXAMPLE, "detector": "94", "position": "[1, 2]"}).ra == 1


_ASK = r"""
source {script}
ppdctl() {{ echo 2026-11-25T04:47:59.000; echo other; }}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="{words}"
_shtab_ppdctl 2>/dev/null; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ppdctl sta", "status"),
        ("ppdctl cache ev", "evict"),
        ("ppdctl retry 2026-11-25T04:4", "2026-11-25T04:47:59.000"),
        ("ppdctl status --wat", "--watch"),
        ("ppdctl completion z", "zsh"),
    ],
)
def test_bash_completes(tmp_path: Path, words: str, found: str) -> None:
    script = tmp_path / "ppdctl"
    script.write_text(write_completion(ctl.make_parser(), "bash"))
    done = subprocess.run(
        ["bash", "--norc", "-c", _ASK.format(script=script, words=words)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == [found], done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed here")
def test_zsh_reads_it(tmp_path: Path) -> None:
    script = tmp_path / "_ppdctl"
    script.write_text(write_completion(ctl.make_parser(), "zsh"))
    done = subprocess.run(["zsh", "-n", str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
