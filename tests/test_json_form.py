"""What `ppdctl` prints with `--json` has one form, whatever the command."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from metrics_support import ROOT
from page_support import StandIn, make_status

from ppd._keys import make_server
from ppd.cli import ctl
from ppd.cli.reference import _commands
from ppd.deployment import day_obs
from ppd.messages import ControlReply, DetectorKey
from ppd.supervisor.child_logs import log_file
from ppd.supervisor.journal import Journal

_KEY = DetectorKey(instrument="DemoCam", group="g", detector=1, attempt=1)
_LETTER = "a-letter"
_ISR = str(ROOT / "ppd" / "demo" / "pipelines" / "Isr.yaml")
_PAUSED: dict[str, Any] = {"all": None, "detectors": {}}
_CACHE: dict[str, Any] = {"types": [], "evicted": 0, "evicted_bytes": 0, "kept": 0}
_RELOAD: dict[str, Any] = {"number": 1, "state": "in_force", "error": None, "changes": []}
_DONE: dict[str, Any] = {"done": [_LETTER], "refused": {}}
_AGAIN: dict[str, Any] = {"group": "g", "tried_again": [1], "accepted": [], "refused": {}}
_ANSWERS: dict[str, dict[str, Any]] = {
    "status": make_status(refuses=None, visits=[]),
    "visits": {"night": 20261129, "visits": []},
    "submit": {"group": "g", "detectors": [1]},
    "retry": _AGAIN,
    "replay": _AGAIN,
    "inputs": {"group": "g", "collections": [], "detectors": {}, "looking": []},
    "prefetch": {"pointings": 1},
    "pause": _PAUSED,
    "resume": _PAUSED,
    "cancel": {"cancelled": [1], "over": []},
    "show_cache": _CACHE,
    "evict": _CACHE,
    "pin": _CACHE,
    "unpin": _CACHE,
    "retry_dead_letters": _DONE,
    "drop_dead_letters": _DONE,
    "metrics": {"text": ""},
    "reload": _RELOAD,
    "reloading": _RELOAD,
    "drain": {"drained": True},
    "stop": {},
}
# Each command, with a name of its own fields that a program will look for.
_ONLINE: dict[str, tuple[list[str], str]] = {
    "status": ([], "health"),
    "visits": ([], "visits"),
    "submit": (["MESSAGE"], "detectors"),
    "inputs": (["g"], "looking"),
    "retry": (["g"], "tried_again"),
    "prefetch": (["--ra", "1", "--dec", "2"], "pointings"),
    "pause": ([], "all"),
    "resume": ([], "all"),
    "cancel": (["g", "--yes"], "cancelled"),
    "cache show": ([], "types"),
    "cache evict": (["--all", "--yes"], "evicted"),
    "cache pin": (["bias"], "types"),
    "cache unpin": (["bias"], "types"),
    "dead-letters retry": ([_LETTER], "done"),
    "dead-letters drop": ([_LETTER, "--yes"], "done"),
    "metrics": ([], "text"),
    "reload": ([], "changes"),
    "drain": ([], "drained"),
    "stop": ([], "ok"),
}
_OFFLINE: dict[str, tuple[list[str], str]] = {
    "history": ([], "visits"),
    "show": (["g"], "detectors"),
    "logs": (["g", "1"], "text"),
    "dead-letters list": ([], "dead_letters"),
    "dead-letters show": ([_LETTER], "files"),
    "config check": ([], "pipelines"),
    "config show": ([], "settings"),
}
# These do without a configuration, or tell what is wrong with it.
_ALONE: dict[str, tuple[list[str], str]] = {
    "config schema": ([], "schema"),
    "config reference": ([], "markdown"),
    "config from-prompt-processing": (["FOREIGN"], "settings"),
    "doctor": (["--patience", "0.01"], "findings"),
    "keys server": (["--folder", "NEW_KEYS"], "made"),
    "keys client": (["mia", "--folder", "KEYS", "--out", "MIA"], "made"),
}
_WITHOUT_JSON = {"completion"}
_PATHS = ("MESSAGE", "FOREIGN", "KEYS", "NEW_KEYS", "MIA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's: configuration, a message, a journal, a log and a dead letter."""
    folder = tmp_path_factory.mktemp("site")
    letter = folder / "spool" / "dead-letters" / _LETTER
    letter.mkdir(parents=True)
    reason = {"reason": "a dataset is there already", "kind": "conflict", "time": 0.0}
    (letter / "reason.json").write_text(json.dumps(reason))
    journal = Journal(folder / "journal.sqlite3")
    journal.visit_accepted("DemoCam", "g", [1], {"filters": "r"}, "test")
    journal.event("DemoCam", "g", 1, "forked", {"attempt": 1, "pid": 4711})
    journal.close()
    log = log_file(folder, day_obs(_accepted(folder)), _KEY)
    log.parent.mkdir(parents=True)
    log.write_text("it begins\n")
    (folder / "MESSAGE").write_text("{}")
    make_server(folder / "KEYS")
    (folder / "FOREIGN").write_text("RUBIN_INSTRUMENT=LATISS\n")
    return folder


def _accepted(folder: Path) -> float:
    from ppd.supervisor.history import list_visits

    return list_visits(folder)[0].accepted


@pytest.fixture(scope="module")
def supervisor() -> Iterator[StandIn]:
    with tempfile.TemporaryDirectory(prefix="ppd-test-") as folder:
        stand_in = StandIn(Path(folder))
        stand_in.start()
        yield stand_in
        stand_in.stop()


@pytest.fixture
def config(folder: Path, supervisor: StandIn) -> Path:
    path = folder / "ppd.yaml"
    fields = {
        "instrument": "DemoCam",
        "central_repo": "nowhere",
        "main_pipelines": [{"pipelines": [_ISR]}],
        "state_dir": str(folder),
        "socket_dir": str(supervisor._path.parent),
    }
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(autouse=True)
def logging_again() -> Iterator[None]:
    """The doctor has switched it off, for its own process."""
    yield
    logging.disable(logging.NOTSET)


def _run(
    capsys: pytest.CaptureFixture[str], folder: Path, config: Path, name: str, own: list[str]
) -> tuple[int, list[dict[str, Any]]]:
    given = [str(folder / word) if word in _PATHS else word for word in own]
    capsys.readouterr()
    code = ctl.main([*name.split(), *given, "--json", "--config", str(config)])
    said = capsys.readouterr().out.splitlines()
    return code, [json.loads(line) for line in said]


def _check(code: int, found: list[dict[str, Any]]) -> None:
    assert found
    for one in found:
        assert list(one)[:3] == ["ok", "code", "error"]
        assert isinstance(one["ok"], bool)
        assert re.fullmatch(r"[a-z_]+", one["code"])
        assert (one["code"] == "ok") is one["ok"]
        assert one["error"] is None if one["ok"] else one["error"]
        assert "result" not in one
    assert all(one["ok"] for one in found) is (code == 0)


def test_all_commands_are_here() -> None:
    names = {c.prog.partition(" ")[2] for c in _commands(ctl.make_parser())}
    assert {*_ONLINE, *_OFFLINE, *_ALONE} == names - _WITHOUT_JSON


@pytest.mark.parametrize("name", [*_ONLINE, *_OFFLINE, *_ALONE])
def test_done(
    capsys: pytest.CaptureFixture[str], folder: Path, config: Path, supervisor: StandIn, name: str
) -> None:
    for command, result in _ANSWERS.items():
        supervisor.answers[command] = ControlReply(ok=True, result=result)
    own, field = {**_ONLINE, **_OFFLINE, **_ALONE}[name]
    code, found = _run(capsys, folder, config, name, own)
    _check(code, found)
    (one,) = found
    assert field in one
    # The doctor may find something; a foreign file may lack what is needed.
    assert one["ok"] or name in _ALONE


def test_each_of_several_has_a_line(
    capsys: pytest.CaptureFixture[str], folder: Path, config: Path, supervisor: StandIn
) -> None:
    supervisor.answers["submit"] = ControlReply(ok=True, result=_ANSWERS["submit"])
    supervisor.answers["replay"] = ControlReply(ok=False, code="unknown", error="no such visit")
    own = ["MESSAGE", "MESSAGE", "nowhere", "--replay", "g"]
    code, found = _run(capsys, folder, config, "submit", own)
    _check(code, found)
    assert [one["code"] for one in found] == ["ok", "ok", "unreadable", "unknown"]
    supervisor.answers["status"] = ControlReply(ok=True, result=_ANSWERS["status"])
    code, found = _run(capsys, folder, config, "status", ["--watch", "--looks", "2", "--every", "0.1"])
    _check(code, found)
    assert len(found) == 2


@pytest.mark.parametrize("name", _ONLINE)
def test_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, config: Path, supervisor: StandIn, name: str
) -> None:
    for command in _ANSWERS:
        supervisor.answers[command] = ControlReply(ok=False, code="unavailable", error="not now")
    code, found = _run(capsys, folder, config, name, _ONLINE[name][0])
    _check(code, found)
    assert code == 1
    assert "not now" in found[0]["error"]


@pytest.mark.parametrize(("name", "own"), [("drain", []), ("visits", []), ("pause", []), ("reload", [])])
def test_nobody_answers(
    capsys: pytest.CaptureFixture[str], folder: Path, config: Path, name: str, own: list[str]
) -> None:
    own = [*own, "--socket-dir", str(folder), "--timeout", "0.1"]
    code, found = _run(capsys, folder, config, name, own)
    _check(code, found)
    assert (code, found[0]["code"]) == (3, "no_answer")


@pytest.mark.parametrize("name", _OFFLINE)
def test_a_configuration_that_can_not_be_used(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, name: str
) -> None:
    code, found = _run(capsys, folder, tmp_path / "none.yaml", name, _OFFLINE[name][0])
    _check(code, found)
    assert (code, found[0]["code"]) == (2, "configuration")


def test_no_such_thing(capsys: pytest.CaptureFixture[str], folder: Path, config: Path) -> None:
    for name, own in (("show", ["nobody"]), ("logs", ["g", "77"]), ("dead-letters show", ["none"])):
        code, found = _run(capsys, folder, config, name, own)
        _check(code, found)
        assert (code, found[0]["code"]) == (1, "failed")


def test_codes_are_documented() -> None:
    """Those of the commands, and those of the supervisor."""
    text = (ROOT / "docs" / "ppdctl.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    said: set[str] = set()
    for path in [*(ROOT / "ppd" / "cli").glob("*.py"), *(ROOT / "ppd" / "supervisor").glob("*.py")]:
        source = path.read_text()
        if "print_json(" in source or "ControlReply(" in source:
            said.update(re.findall(r'\bcode(?:=| = )"([a-z_]+)"', source))
    assert documented >= said | {"ok", "stale", "duplicate", "ignored", "no_answer", "configuration"}
