"""What the docs tell people to type: it is typed here, or what can be checked of it is.

Each command of each block has a rule; one without a rule fails.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from doc_blocks import PAGES, ROOT, SHELLS, Block, Shell, blocks, spans, words_of
from test_migration import _DEFAULTS, _SITE

from ppd.cli.ctl import make_parser
from ppd.cli.daemon import main as ppd
from ppd.cli.init import _parser as init_parser
from ppd.config import Settings, load_settings
from ppd.crash_points import CRASH_POINTS, FOLDER_VARIABLE, HIT_FOLDER
from ppd.demo.leftovers import count_leftovers
from ppd.demo.night import load_plan
from ppd.demo.player import next_visit

TUTORIAL = "docs/tutorial.md"
_REQUIRED = {"instrument": "X", "central_repo": "X", "main_pipelines": [{"pipelines": []}]}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is done with the commands that a pattern fits as a whole."""

    pattern: str
    check: Callable[[str], None] | None = None
    """`None`: it is run, and ends with 0."""


# What can't be done here, and what the page of what is thin says of it.
_NOT_HERE = {
    "docker": "no engine has built the image",
    "kubectl": "no cluster has run them",
    "systemctl": "no running systemd was at hand",
    "systemd-sysusers": "no running systemd was at hand",
    "systemd-tmpfiles": "no running systemd was at hand",
}


def _is_target(command: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words_of(command)[1] in targets


def _is_thin(command: str) -> None:
    thin = " ".join((ROOT / "docs/thin.md").read_text().split())
    for part in command.split("&&"):
        assert _NOT_HERE[words_of(part)[0]] in thin
        _has_files(part)


def _has_files(command: str) -> None:
    """What it names of the checkout is there."""
    for word in words_of(command):
        name = word.partition("=")[2] or word
        named = "/" in name or name.endswith((".txt", ".cfg"))
        if named and not name.startswith(("/", "-")) and ":" not in name:
            assert list(ROOT.glob(name)), name


def _is_parsed(command: str) -> None:
    """A command of ``ppdctl`` that runs within another."""
    words = words_of(command)
    (at,) = (i for i, word in enumerate(words) if word.endswith("ppdctl"))
    make_parser().parse_args(words[at + 1 :])


def _is_a_python_of_ours(command: str) -> None:
    version = words_of(command)[0].removeprefix("python")
    assert f"Python :: {version}\n" in (ROOT / "setup.cfg").read_text()


def _is_crash_point(command: str) -> None:
    assert Path(words_of(command)[-1]).name in {*CRASH_POINTS, HIT_FOLDER}


def _is_parsed_by_ppd(command: str) -> None:
    variable, program, *arguments = words_of(command)
    assert (variable.partition("=")[0], program) == (FOLDER_VARIABLE, "ppd")
    with pytest.raises(SystemExit) as e, contextlib.redirect_stdout(io.StringIO()):
        ppd([*arguments, "--help"])
    assert e.value.code == 0


RULES = (
    Rule(r"make [\w-]+( ARGS=.*)?", _is_target),
    Rule(r"(docker|kubectl|systemctl|systemd-sysusers|systemd-tmpfiles)( .*)?", _is_thin),
    # Root's, on a machine that is to be a site.
    Rule(r"systemd-run .* /opt/ppd/bin/ppdctl doctor", _is_parsed),
    Rule(r"python3\.\d+ -m venv /opt/ppd", _is_a_python_of_ours),
    Rule(r"/opt/ppd/bin/pip install .*", _has_files),
    Rule(r"install -m 0[0-7]+ \S+( \S+)* /(usr|etc)/\S+", _has_files),
    # tests/test_gate.py asks from another machine.
    Rule(r"ppdctl status --connect .*", _is_parsed),
    # A ppd of its own, in docs/crash-points.md; tests/test_crash_points.py walks there.
    Rule(r"(mkdir -p|touch) /tmp/crash/[a-z.-]+", _is_crash_point),
    Rule(r"\w+=/tmp/crash ppd --config ppd\.yaml &", _is_parsed_by_ppd),
    Rule(r"tools/runtime-requirements [\w. ]+ > /tmp/runtime\.txt"),
    Rule(r"(sudo -u ppd )?(/opt/ppd/bin/|bin/)?ppdctl (status|config|doctor|history|inputs|submit) .*"),
    Rule(r"ppdctl (dead-letters list|drain|keys) .*"),
    Rule(r"ppd-init .*"),
    Rule(r"butler query-(collections|datasets) .*"),
)

# What is to be seen of a site is put in the place of what the docs call so.
_PLACES = (
    ("sudo -u ppd ", ""),
    ("/opt/ppd/bin/", ""),
    ("--output /etc/ppd/ppd.yaml", "--output $(mktemp -u made-XXXXXX)"),
    ("/etc/ppd/ppd.yaml", "tutorial/ppd.yaml"),
    ("/etc/ppd/keys", "tutorial/keys"),
    ("/root/", "tutorial/"),
    ("demo-output/", "tutorial/"),
    (" /tmp/", " ./"),
    ("/repo/main", "tutorial/central_repo"),
    ("LSSTCam", "DemoCam"),
    (" GROUP", " $(ppdctl visits --groups --last 1)"),
)

# How those of the tutorial end that do not end with 0, in their order.
_CODES: dict[str, tuple[int, ...]] = {
    "bin/ppdctl status --timeout 1": (3,),
    "bin/ppdctl reload": (0, 1),
}
_BEFORE = "bin/ppdctl drain --wait 120"
"""Other pages' commands are run before this one of the tutorial."""


def _blocks(*languages: str) -> list[Block]:
    return [b for page in PAGES for b in blocks(page) if b.language in languages]


def _rule_for(command: str) -> Rule | None:
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command)), None)


def _commands() -> list[tuple[str, str]]:
    """Every command of every page but the tutorial, with the place where it stands."""
    return [
        (f"{block.page}:{block.line}", command)
        for block in _blocks(*SHELLS)
        if block.page != TUTORIAL
        for command in block.commands
    ]


def test_every_command_has_a_rule() -> None:
    commands = _commands()
    assert len(commands) > 20
    assert [c for c in commands if _rule_for(c[1]) is None] == []


def test_every_rule_has_a_command() -> None:
    used = {_rule_for(command) for _, command in _commands()}
    assert [rule.pattern for rule in RULES if rule not in used] == []


@pytest.mark.parametrize(
    ("place", "command"), [c for c in _commands() if (r := _rule_for(c[1])) is not None and r.check]
)
def test_what_is_not_run_is_checked(place: str, command: str) -> None:
    rule = _rule_for(command)
    assert rule is not None and rule.check is not None
    rule.check(command)


def test_what_is_wrong_would_be_noticed() -> None:
    for command in ("make nothing", "kubectl apply -k deploy/nothing"):
        rule = _rule_for(command)
        assert rule is not None and rule.check is not None
        with pytest.raises(AssertionError):
            rule.check(command)
    assert _rule_for("rm -rf /opt/ppd") is None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_within_sentences_are_understood(page: Path) -> None:
    """They know what the text calls so; words in capitals stand for something."""
    parsers = {"ppdctl": make_parser(), "ppd-init": init_parser()}
    for span in spans(page, *parsers):
        text = re.sub(r"\[[A-Z]+\]|…", "", span)
        text = re.sub(r"\bLIST\b|\bDETECTORS?\b|\bN\b|\bSECONDS\b", "4", text)
        program, *arguments = words_of(text)
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                parsers[program.removeprefix("bin/")].parse_args(arguments)
        except SystemExit:
            # Also what is named for itself, without what it needs.
            if "the following arguments are required" not in errors.getvalue():
                pytest.fail(f"{span}: {errors.getvalue()}")
    for span in spans(page, "make"):
        if span != "make":
            _is_target(span)


def test_yaml_is_a_configuration() -> None:
    found = _blocks("yaml")
    assert found
    for block in found:
        # Some have only what they are about.
        Settings.model_validate({**_REQUIRED, **yaml.safe_load(block.text)})


def test_python_is_python() -> None:
    """It can be compiled, and what it imports is there."""
    found = _blocks("python")
    assert found
    for block in found:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names)


def test_json_is_json() -> None:
    for block in _blocks("json"):
        json.loads(block.text)


def test_other_blocks_say_what_they_are() -> None:
    known = {*SHELLS, "yaml", "text", "json", "ini", "Dockerfile", "python"}
    assert {b.language for page in PAGES for b in blocks(page)} <= known


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_do_what_they_say() -> None:
    """The tutorial from its first command to its last; those of other pages while its ppd is there."""
    folder = Path(tempfile.mkdtemp(prefix="ppd-test-"))
    for path in ROOT.iterdir():
        if path.name not in (".git", "tutorial", "demo-output"):
            (folder / path.name).symlink_to(path)
    (folder / "values.yaml").write_text(_DEFAULTS)
    (folder / "values-site.yaml").write_text(_SITE)
    places = os.pathsep.join([str(ROOT / "bin"), str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    environ = {**os.environ, "PATH": places, "PYTHONPATH": str(ROOT)}
    environ.pop("PPD_CONFIG", None)
    codes = {command: list(expected) for command, expected in _CODES.items()}
    settings: Settings | None = None
    ran = 0
    try:
        with Shell(folder, environ) as shell:
            for block in blocks(ROOT / TUTORIAL):
                for command in block.commands if block.language in SHELLS else []:
                    if command == _BEFORE:
                        settings = load_settings(folder / "tutorial" / "ppd.yaml", {})
                        _announce_another(folder)
                        _run_others(shell)
                    if command.startswith("make "):
                        _is_target(command)
                        continue
                    code, output = shell.run(command, 400.0)
                    expected = codes[command].pop(0) if command in codes else 0
                    assert code == expected, f"{block.page}:{block.line}: {command}\n{output}"
                    ran += 1
        assert ran > 30
        assert not any(codes.values())
        assert settings is not None
        assert not any(count_leftovers(settings).values())
    finally:
        if copy := os.environ.get("PPD_TRANSCRIPT"):
            shutil.copyfile(folder / "transcript.txt", copy)
        shutil.rmtree(folder, ignore_errors=True)


def _announce_another(folder: Path) -> None:
    """Leave the file that the docs announce: a visit whose raws never come."""
    plan = load_plan(folder / "tutorial" / "night.json")
    (folder / "visit.json").write_text(json.dumps(next_visit(plan.visits[-1], 0.0, 0.0)))


def _run_others(shell: Shell) -> None:
    for place, command in _commands():
        rule = _rule_for(command)
        if rule is not None and rule.check is None:
            for there, here in _PLACES:
                command = command.replace(there, here)
            code, output = shell.run(command, 120.0)
            assert code == 0, f"{place}: {command}\n{output}"
