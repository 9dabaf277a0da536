"""Outputs that central does not take: kept with the reason, and sent again or dropped by a person."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observatory import Observatory, Ppd, running, wait_for

from ppd.messages import MAX_ENTRIES, ControlRequest, DetectorKey, MessageError, decode
from ppd.supervisor import dead_letters
from ppd.supervisor.dead_letters import (
    DeadLetterError,
    drop,
    entry_names,
    find_letter,
    list_letters,
    names_visit,
    read_letter,
    retry,
    set_aside,
)
from ppd.supervisor.history import show_detector
from ppd.supervisor.spool import make_folders, ready_entries

KEY = DetectorKey(instrument="DemoCam", group="2026-11-25T04:47:59.000", detector=4, attempt=2)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    make_folders(tmp_path / "spool")
    return tmp_path / "spool"


def _hand_over(spool: Path, key: DetectorKey = KEY, success: bool = True) -> Path:
    entry = spool / "ready" / key.file_name
    entry.mkdir()
    (entry / "0000-image.fits").write_bytes(b"x" * 1000)
    manifest = {
        "type": "pp-output", "key": key.model_dump(), "dimension_records": [], "dataset_types": [],
        "datasets": [{"path": "0000-image.fits"}], "runs": ["r"], "bytes": 1000, "success": success,
    }  # fmt: skip
    (entry / "manifest.json").write_text(json.dumps(manifest))
    return entry


def test_set_aside(spool: Path) -> None:
    entry = _hand_over(spool, success=False)
    target = set_aside(entry, "central has another", "conflict")
    assert target == spool / "dead-letters" / entry.name
    assert not entry.exists()
    (letter,) = list_letters(spool)
    assert letter == read_letter(spool, entry.name)
    assert (letter.reason, letter.kind, letter.key) == ("central has another", "conflict", KEY)
    assert (letter.datasets, letter.success) == (1, False)
    assert letter.bytes > 1000
    assert json.loads((target / "reason.json").read_text())["key"]["detector"] == 4


def test_the_reason_is_there_first(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can't be written, the hand-over stays and waits; one that was written is written over."""
    entry = _hand_over(spool)

    def no_room(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dead_letters, "_write_durably", no_room)
        with pytest.raises(OSError, match="No space"):
            set_aside(entry, "it is broken", "corrupt")
    assert ready_entries(spool) == [entry]
    assert entry_names(spool) == []
    # Killed between the two.
    (entry / "reason.json").write_text('{"reason": "half')
    set_aside(entry, "it is broken", "corrupt")
    assert read_letter(spool, entry.name).reason == "it is broken"


def test_retry(spool: Path) -> None:
    entry = _hand_over(spool)
    target = set_aside(entry, "no", "refused")
    assert retry(spool, target.name) == KEY
    assert ready_entries(spool) == [entry]
    assert sorted(p.name for p in entry.iterdir()) == ["0000-image.fits", "manifest.json"]
    assert list_letters(spool) == []


def test_drop(spool: Path) -> None:
    name = set_aside(_hand_over(spool), "no", "refused").name
    drop(spool, name)
    assert list_letters(spool) == []
    assert not list((spool / "building").iterdir())
    with pytest.raises(DeadLetterError, match="no dead letter"):
        drop(spool, name)


def test_of_the_same_name(spool: Path) -> None:
    """The second does not write over the first; both go again under their own name, one at a time."""
    first = set_aside(_hand_over(spool), "first", "refused")
    second = set_aside(_hand_over(spool), "second", "refused")
    assert second.name == f"{KEY.file_name}~2"
    assert [letter.reason for letter in list_letters(spool)] == ["first", "second"]
    assert retry(spool, second.name) == KEY
    (entry,) = ready_entries(spool)
    assert entry.name == KEY.file_name
    with pytest.raises(DeadLetterError, match="can't be put back"):
        retry(spool, first.name)
    assert [letter.reason for letter in list_letters(spool)] == ["first"]


def test_manifest_beyond_reading(spool: Path) -> None:
    entry = _hand_over(spool)
    whole = (entry / "manifest.json").read_text()
    (entry / "manifest.json").write_text(whole[:50])
    name = set_aside(entry, "its manifest can't be read", "corrupt").name
    assert read_letter(spool, name).key is None
    with pytest.raises(DeadLetterError, match="Mend it first"):
        retry(spool, name)
    assert entry_names(spool) == [name]
    (spool / "dead-letters" / name / "manifest.json").write_text(whole)
    letter = read_letter(spool, name)
    assert (letter.key, letter.datasets, letter.reason) == (KEY, 1, "its manifest can't be read")
    assert retry(spool, name) == KEY


def test_of_an_older_ppd(spool: Path) -> None:
    target = spool / "dead-letters" / KEY.file_name
    _hand_over(spool).rename(target)
    (target / "reason.txt").write_text("central has another\n")
    bare = spool / "dead-letters" / "bare"
    bare.mkdir()
    os.utime(bare, (1.0, 1.0))
    bare_letter, letter = list_letters(spool)
    assert (letter.reason, letter.kind, letter.key) == ("central has another", "unknown", KEY)
    assert (bare_letter.key, bare_letter.reason) == (None, "nobody wrote down why")
    retry(spool, letter.entry)
    assert not (spool / "ready" / KEY.file_name / "reason.txt").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ready/x", "/etc", "a/b", "a\0b", "link", "file", "none", "x" * 300]
)
def test_names_from_users(spool: Path, name: str) -> None:
    folder = spool / "dead-letters"
    (folder / "link").symlink_to(spool / "ready")
    (folder / "file").touch()
    kept = _hand_over(spool)
    for act in (read_letter, retry, drop):
        with pytest.raises(DeadLetterError):
            act(spool, name)
    assert ready_entries(spool) == [kept]


def test_names_of_visits() -> None:
    group = "2026-11-25T04:47:59.000"
    assert names_visit(KEY.file_name, "DemoCam", group)
    assert names_visit(KEY.file_name + "~3", "DemoCam", group)
    assert not names_visit(KEY.file_name, "DemoCam", "2026-11-25T04:47:59.00")
    assert not names_visit("DemoCam-a-b-1-1", "DemoCam", "a")


def test_find_by_attempt(spool: Path) -> None:
    (_hand_over(spool) / "manifest.json").write_text("no")
    set_aside(spool / "ready" / KEY.file_name, "no", "corrupt")
    found = find_letter(spool, KEY)
    assert found is not None and found.reason == "no"
    assert find_letter(spool, KEY.model_copy(update={"attempt": 1})) is None


def test_no_spool_no_letters(tmp_path: Path) -> None:
    assert list_letters(tmp_path / "none") == []


def test_request_of_too_many() -> None:
    request = {
        "kind": "control_request",
        "command": "drop_dead_letters",
        "entries": ["x"] * (MAX_ENTRIES + 1),
    }
    with pytest.raises(MessageError):
        decode(json.dumps(request).encode())
    assert isinstance(decode(json.dumps({**request, "entries": ["x"]}).encode()), ControlRequest)


# With a real ppd

_STEPS = ["dead_letter_retried", "handed_over", "exported"]


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    # Each output waits in the spool for long enough to be damaged there.
    with running(observatory, tmp_path_factory.mktemp("letters"), export_age=3.0) as ppd:
        yield ppd


def _ctl(ppd: Ppd, *arguments: str, code: int = 0) -> str:
    done = ppd.command("ctl", "dead-letters", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def _damaged(ppd: Ppd, group: str, detector: int) -> tuple[str, str]:
    """Have a dead letter; return its name, and the manifest that would mend it."""
    ppd.good_visit(group, detector)
    ready = ppd.settings.spool_dir / "ready"
    ppd.await_state(group, handed_over=1)
    (entry,) = [p for p in ready.iterdir() if f"-{group}-" in p.name]
    whole = (entry / "manifest.json").read_text()
    # By a rename: the exporter sees the one or the other.
    broken = ppd.folder / "broken.json"
    broken.write_text(whole[:-100])
    broken.rename(entry / "manifest.json")
    ppd.await_state(group, failed=1)
    return entry.name, whole


def _names(ppd: Ppd, group: str, detector: int) -> list[str]:
    found = show_detector(ppd.settings.state_dir, group, detector)
    return [h.detail["to"] if h.name == "state" else h.name for h in found.happenings]


@pytest.mark.slow
@pytest.mark.night
def test_mended_and_sent_again(ppd: Ppd) -> None:
    assert json.loads(_ctl(ppd, "list", "--json"))["dead_letters"] == []
    name, whole = _damaged(ppd, "mended", 4)
    (letter,) = json.loads(_ctl(ppd, "list", "--json"))["dead_letters"]
    assert (letter["entry"], letter["kind"]) == (name, "corrupt")
    assert name in "".join(_ctl(ppd, "list").split())
    status = wait_for(lambda: _in_trouble(ppd), 5.0, "the status to say so")
    assert status["spool"]["dead_letters"] == 1
    shown = _ctl(ppd, "show", name)
    assert "manifest" in shown and str(ppd.settings.spool_dir / "dead-letters" / name) in shown
    assert "Mend it first" in _ctl(ppd, "retry", name, code=1)
    (ppd.settings.spool_dir / "dead-letters" / name / "manifest.json").write_text(whole)
    assert "sent again" in _ctl(ppd, "retry", "--all")
    ppd.await_state("mended", exported=1)
    assert ppd.groups() == [("mended", 4)]
    assert _ctl(ppd, "list") == "no dead letters\n"
    course = _names(ppd, "mended", 4)
    for name_of in ("ended", "dead_letter_retried"):
        assert course.count(name_of) == 1
    tail = course[course.index("failed") :]
    assert list(dict.fromkeys(n for n in tail if n in _STEPS)) == _STEPS
    found = show_detector(ppd.settings.state_dir, "mended", 4)
    (attempt,) = found.attempts
    assert (attempt.how, attempt.log_there) == ("exit code 0", True)
    assert (found.line.state, found.line.reason) == ("exported", "")
    wait_for(lambda: ppd.status()["health"] == "ok", 5.0, "all to be well again")


def _in_trouble(ppd: Ppd) -> dict[str, Any]:
    status = ppd.status()
    return status if any("1 dead letters" in fault for fault in status["faults"]) else {}


@pytest.mark.slow
@pytest.mark.night
def test_dropped(ppd: Ppd) -> None:
    name, _ = _damaged(ppd, "dropped", 5)
    done = ppd.command("ctl", "dead-letters", "drop", name)
    assert (done.returncode, "say --yes" in done.stderr) == (2, True)
    assert _asked(ppd, name, "n\n") == 1
    assert entry_names(ppd.settings.spool_dir) == [name]
    assert _asked(ppd, name, "y\n") == 0
    assert entry_names(ppd.settings.spool_dir) == []
    assert "There is no dead letter" in _ctl(ppd, "drop", name, "--yes", code=1)
    assert ppd.states("dropped") == {"failed": 1}
    assert ("dropped", 5) not in ppd.groups()


def _asked(ppd: Ppd, name: str, answer: str) -> int:
    """Run drop at a terminal, and answer; return its exit code."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ppd.cli.ctl", "dead-letters", "drop", name, "--config", str(ppd.config)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        try:
            out, _ = process.communicate(timeout=30.0)
        finally:
            process.kill()
            os.close(ours)
    assert b"will be lost" in out
    return process.returncode


@pytest.mark.night
def test_commands_with_mistakes(ppd: Ppd) -> None:
    for arguments in (["retry"], ["retry", "x", "--all"], ["drop"]):
        _ctl(ppd, *arguments, code=2)
    for arguments in (["show", "../ready"], ["retry", "../ready"], ["drop", "..", "--yes"], ["show", "none"]):
        _ctl(ppd, *arguments, code=1)
    assert (ppd.settings.spool_dir / "ready").is_dir()


@pytest.mark.slow
@pytest.mark.night
def test_after_a_start(ppd: Ppd) -> None:
    """A ppd that knows of it by its journal alone; and what it did not hear of it finds."""
    name, whole = _damaged(ppd, "later", 6)
    lost, _ = _damaged(ppd, "unheard", 7)
    assert ppd.stop() == 0
    _set_state(ppd, "unheard", "handed_over")
    (ppd.settings.spool_dir / "dead-letters" / name / "manifest.json").write_text(whole)
    ppd.start()
    found = show_detector(ppd.settings.state_dir, "unheard", 7)
    assert found.line.state == "failed"
    assert "its outputs can't be exported" in found.line.reason
    assert "sent again" in _ctl(ppd, "retry", name)
    wait_for(lambda: ("later", 6) in ppd.groups(), 30.0, "the outputs to be in central")
    wait_for(lambda: _line(ppd, "later", 6).state == "exported", 10.0, "the journal to have it")
    assert _line(ppd, "later", 6).reason == ""
    # What is over and in central may not go a second time.
    letter = ppd.settings.spool_dir / "dead-letters" / lost
    (letter / "manifest.json").write_text(whole)
    (letter / "manifest.sum").unlink()
    assert "is exported" in _ctl(ppd, "retry", lost, code=1)
    _ctl(ppd, "drop", lost, "--yes")


def _line(ppd: Ppd, group: str, detector: int) -> Any:
    return show_detector(ppd.settings.state_dir, group, detector).line


def _set_state(ppd: Ppd, group: str, state: str) -> None:
    with sqlite3.connect(ppd.settings.state_dir / "journal.sqlite3") as db:
        db.execute("UPDATE detector_visit SET state=?, reason=NULL WHERE group_name=?", (state, group))
