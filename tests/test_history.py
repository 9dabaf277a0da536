"""What an operator learns of visits from the journal, beside a ppd that writes it and without one."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from repo_support import needs_root
from test_visit import message

from ppd.cli import ctl
from ppd.messages import DetectorKey
from ppd.supervisor import history
from ppd.supervisor.child_logs import log_file
from ppd.supervisor.history import (
    STATES,
    HistoryError,
    list_visits,
    show_detector,
    show_visit,
)
from ppd.supervisor.journal import Journal
from ppd.supervisor.table import State

CAM = "DemoCam"
NIGHT = 20261124
RAW = "/raws/DemoCam/1/two/0/17/demo-r/raw.fits"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def journal(state_dir: Path) -> Iterator[Journal]:
    """Three visits of two nights; of the second one detector needs two attempts and fails."""
    journal = Journal(state_dir / "journal.sqlite3")
    for group, night in (("one", NIGHT), ("two", NIGHT), ("three", NIGHT + 1)):
        announced = message(groupId=group, filters="demo-r")
        journal.visit_accepted(CAM, group, [0, 1], announced, "test", day_obs=NIGHT, deployment="abc1234")
        if night != NIGHT:
            _execute(journal, f"UPDATE visit SET day_obs={night} WHERE group_name='{group}'")
    for group, detector in (("one", 0), ("one", 1), ("two", 0)):
        journal.state(CAM, group, detector, "exported", attempt=1)
    accepted = time.time()
    note = journal.event
    note(CAM, "two", None, "resolved", {"statements": 80}, accepted + 1.0)
    note(CAM, "two", 1, "forked", {"attempt": 1, "pid": 101}, accepted + 2.0)
    note(CAM, "two", 1, "raw_seen", {"attempt": 1, "uri": RAW, "snap": 0}, accepted + 30.0)
    # Its end is noted after what it said last.
    note(CAM, "two", 1, "retried", {"attempt": 1, "reason": "SIGKILL"}, accepted + 41.0)
    note(
        CAM, "two", 1, "ended", {"attempt": 1, "pid": 101, "how": "SIGKILL", "phase": "main"}, accepted + 40.0
    )
    note(CAM, "two", 1, "forked", {"attempt": 2, "pid": 102}, accepted + 42.0)
    note(CAM, "two", 1, "raw_seen", {"attempt": 2, "uri": RAW, "snap": 0}, accepted + 43.0)
    note(
        CAM,
        "two",
        1,
        "ended",
        {"attempt": 2, "pid": 102, "how": "exit code 0", "phase": "main"},
        accepted + 50.0,
    )
    note(CAM, "two", 1, "exported", {"datasets": 7}, accepted + 51.0)
    note(CAM, "two", 0, "forked", {"attempt": 1, "pid": 999}, accepted + 2.0)
    journal.state(CAM, "two", 1, "failed", attempt=2, pipeline="/p/ApPipe.yaml", reason="no [stars]")
    journal.commit()
    yield journal
    journal.close()


def _execute(journal: Journal, statement: str) -> None:
    journal._db.execute(statement)


def _listed(state_dir: Path, **filters: Any) -> list[str]:
    return [v.group for v in list_visits(state_dir, **filters)]


def test_states_are_those_of_the_table() -> None:
    assert tuple(State) == STATES


def test_list(journal: Journal, state_dir: Path) -> None:
    one, two, three = list_visits(state_dir)
    assert (one.group, one.night, one.filter, one.deployment) == ("one", NIGHT, "demo-r", "abc1234")
    assert (one.states, one.again, one.reason) == ({"exported": 2}, 0, "")
    assert (two.states, two.again, two.reason) == ({"exported": 1, "failed": 1}, 1, "no [stars]")
    assert three.states == {"accepted": 2}
    assert two.source == "test" and abs(two.accepted - time.time()) < 60.0


def test_filters(journal: Journal, state_dir: Path) -> None:
    assert _listed(state_dir, night=NIGHT) == ["one", "two"]
    assert _listed(state_dir, night=20200101) == []
    assert _listed(state_dir, state="failed") == ["two"]
    assert _listed(state_dir, state="exported") == ["one", "two"]
    # Of that detector, not of its neighbour.
    assert _listed(state_dir, state="failed", detector=0) == []
    assert _listed(state_dir, state="failed", detector=1) == ["two"]
    assert _listed(state_dir, detector=5) == []
    assert list_visits(state_dir, detector=0)[1].states == {"exported": 1}
    # The last ones, in order.
    assert _listed(state_dir, limit=2) == ["two", "three"]
    _execute(journal, "UPDATE visit SET accepted = accepted - 7200 WHERE group_name='one'")
    assert _listed(state_dir, since=time.time() - 3600.0) == ["two", "three"]


def test_visit(journal: Journal, state_dir: Path) -> None:
    found = show_visit(state_dir, "two")
    assert found.message["position"] == [225.9, -38.6]
    assert [(d.detector, d.state, d.attempt) for d in found.detectors] == [
        (0, "exported", 1),
        (1, "failed", 2),
    ]
    assert found.detectors[1].pipeline == "/p/ApPipe.yaml"


def test_detector(journal: Journal, state_dir: Path) -> None:
    log = log_file(state_dir, NIGHT, DetectorKey(instrument=CAM, group="two", detector=1, attempt=2))
    log.parent.mkdir(parents=True)
    log.touch()
    found = show_detector(state_dir, "two", 1)
    assert (found.line.state, found.line.reason, found.datasets) == ("failed", "no [stars]", 7)
    assert found.raws == [RAW]
    first, second = found.attempts
    assert (first.number, first.pid, first.how, first.phase) == (1, 101, "SIGKILL", "main")
    assert first.begun is not None and first.ended is not None
    assert first.ended - first.begun == pytest.approx(38.0)
    assert (second.pid, second.how) == (102, "exit code 0")
    assert (first.log_there, second.log_there, second.log) == (False, True, str(log))
    names = [h.name for h in found.happenings]
    assert names == [
        "accepted", "state", "resolved", "forked", "raw_seen", "ended", "retried", "forked", "raw_seen",
        "ended", "exported",
    ]  # fmt: skip
    assert [h.name for h in found.happenings if h.whole_visit] == ["accepted", "resolved"]
    seconds = [h.seconds for h in found.happenings]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(51.0, abs=0.5)


@pytest.mark.parametrize("detector", [None, 0])
def test_what_is_not_there(journal: Journal, state_dir: Path, detector: int | None) -> None:
    with pytest.raises(HistoryError, match="no visit 'nobody'"):
        show_visit(state_dir, "nobody") if detector is None else show_detector(state_dir, "nobody", 0)
    with pytest.raises(HistoryError, match="'one' has no detector 5"):
        show_detector(state_dir, "one", 5)
    with pytest.raises(HistoryError, match="no journal"):
        list_visits(state_dir / "elsewhere")


def test_the_writer_is_not_held_up(journal: Journal, state_dir: Path) -> None:
    """Nor is the reader, while a transaction is open on either side."""
    with history._reading(state_dir) as db:
        assert db.execute("SELECT count(*) FROM visit").fetchone() == (3,)
        begin = time.monotonic()
        journal.visit_accepted(CAM, "four", [0], message(groupId="four"), "test")
        assert time.monotonic() - begin < 1.0
        # What it has begun to read is of one moment.
        assert db.execute("SELECT count(*) FROM visit").fetchone() == (3,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM visit")
    _execute(journal, "BEGIN IMMEDIATE")
    assert len(list_visits(state_dir)) == 4
    _execute(journal, "ROLLBACK")


def test_what_takes_too_long_is_ended(
    journal: Journal, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(HistoryError, match="not read within 0 s"), history._reading(state_dir) as db:
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        ).fetchone()
    assert time.monotonic() - begin < 5.0


@pytest.mark.parametrize("version, text", [(1, "of an older ppd"), (99, "of a newer ppd")])
def test_of_another_version(journal: Journal, state_dir: Path, version: int, text: str) -> None:
    _execute(journal, f"PRAGMA user_version={version}")
    with pytest.raises(HistoryError, match=text):
        list_visits(state_dir)


def test_no_journal_but_something_else(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite3").write_text("dear diary, " * 1000)
    with pytest.raises(HistoryError, match="can't be read"):
        list_visits(tmp_path)


@needs_root
def test_by_somebody_who_may_only_read(journal: Journal) -> None:
    """When no ppd runs: there are no files of a WAL then, and they may not be made."""
    program = (
        "import os, sys, urllib.parse; from pathlib import Path;"
        "from ppd.supervisor.history import list_visits;"
        "os.setuid(65534); print(len(list_visits(Path(sys.argv[1]))))"
    )
    source = Path(journal._db.execute("PRAGMA database_list").fetchone()[2])
    journal.close()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "journal.sqlite3").write_bytes(source.read_bytes())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "HOME": folder}
        done = subprocess.run(
            [sys.executable, "-c", program, folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert sorted(p.name for p in Path(folder).iterdir()) == ["journal.sqlite3"]
    assert done.stdout == "3\n", done.stderr


# The commands


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ppd.yaml"
    fields = {
        "instrument": CAM,
        "central_repo": "nowhere",
        "main_pipelines": [{"pipelines": ["Isr.yaml"]}],
        "state_dir": str(tmp_path),
        "socket_dir": "/nowhere/s",
    }
    path.write_text(yaml.safe_dump(fields))
    return path


def _run(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = ctl.main([*arguments, "--config", str(config)])
    except SystemExit as e:
        code = int(str(e.code))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_history_command(journal: Journal, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(config, capsys, "history", "--state", "failed", "--since", "2h")
    assert code == 0
    assert "two" in out and "one" not in out.split()
    assert "no [stars]" in " ".join(out.split())
    code, out, _ = _run(config, capsys, "history", "--json", "--night", str(NIGHT), "--limit", "1")
    assert (code, [v["group"] for v in json.loads(out)["visits"]]) == (0, ["two"])
    code, out, _ = _run(config, capsys, "history", "--night", "20200101")
    assert (code, out) == (0, "no such visit\n")


def test_show_command(journal: Journal, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(config, capsys, "show", "two")
    assert code == 0
    for word in (f"night {NIGHT}", "abc1234", "exported 1, failed 1", "survey BLOCK-T12", "ApPipe"):
        assert word in out, out
    code, out, _ = _run(config, capsys, "show", "two", "1")
    assert code == 0
    for word in (
        "no [stars]",
        f"raw: {RAW}",
        "process 101, SIGKILL while main",
        "(not kept)",
        "+51.0",
        "7 outputs",
    ):
        assert word in out, out
    code, out, _ = _run(config, capsys, "show", "two", "1", "--json")
    assert code == 0
    assert json.loads(out)["line"]["reason"] == "no [stars]"


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["show", "nobody"], 1, "no visit 'nobody'"),
        (["show", "one", "77"], 1, "has no detector 77"),
        (["history", "--night", "20261332"], 2, "is no night"),
        (["history", "--since", "yesterday"], 2, "no span of time"),
        (["history", "--state", "lost"], 2, "invalid choice"),
        (["history", "--limit", "0"], 2, "is no number"),
    ],
)
def test_mistakes(
    journal: Journal,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    found, _, err = _run(config, capsys, *arguments)
    assert (found, text in err) == (code, True), err


def test_what_needs_a_ppd_still_does(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _run(config, capsys, "status", "--timeout", "0.1")
    assert code == 3 and "No ppd answers" in err
    config.write_text("instrument: [")
    for command in ("status", "history"):
        assert _run(config, capsys, command)[0] == 2


def test_no_traces_of_a_reader(journal: Journal, state_dir: Path) -> None:
    """What it opened it has closed: the writer can put its log into the file."""
    for _ in range(20):
        list_visits(state_dir)
        with contextlib.suppress(HistoryError):
            show_visit(state_dir, "nobody")
    busy, _, _ = journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0


@pytest.fixture
def logged(journal: Journal, state_dir: Path) -> dict[int, Path]:
    """Logs of both attempts at the detector-visit that fails."""
    files = {}
    for attempt in (1, 2):
        path = log_file(
            state_dir, NIGHT, DetectorKey(instrument=CAM, group="two", detector=1, attempt=attempt)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"attempt {attempt} begins\n".encode() + b"\xff\n")
        files[attempt] = path
    return files


def test_logs(logged: dict[int, Path], config: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Byte by byte as they are, whatever a task has written."""
    assert ctl.main(["logs", "two", "1", "--config", str(config)]) == 0
    assert capfdbinary.readouterr().out == b"attempt 2 begins\n\xff\n"
    assert ctl.main(["logs", "two", "1", "--attempt", "1", "--config", str(config)]) == 0
    assert capfdbinary.readouterr().out == b"attempt 1 begins\n\xff\n"
    assert ctl.main(["logs", "two", "1", "--json", "--config", str(config)]) == 0
    assert json.loads(capfdbinary.readouterr().out)["file"] == str(logged[2])


def test_logs_that_are_not_there(
    logged: dict[int, Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["two", "1", "--attempt", "7"], "No attempt 7 of two/1 has been started; it is failed"),
        (["three", "0"], "No child of three/0 has been started; it is accepted."),
        (["nobody", "0"], "The journal has no visit 'nobody'"),
    ):
        assert ctl.main(["logs", *arguments, "--config", str(config)]) == 1
        assert said in capsys.readouterr().err
    logged[2].unlink()
    assert ctl.main(["logs", "two", "1", "--config", str(config)]) == 1
    assert "not kept any more" in capsys.readouterr().err


def test_logs_followed(journal: Journal, state_dir: Path, config: Path, logged: dict[int, Path]) -> None:
    """From one attempt to the next, until all is over; nothing is missed."""
    journal.state(CAM, "two", 1, "running", attempt=1)
    journal.commit()
    second = logged[2].read_bytes()
    logged[2].unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppd.cli.ctl", "logs", "two", "1", "-f", "--config", str(config)],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"attempt 1 begins\n"
        with logged[1].open("ab") as stream:
            stream.write(b"more\n")
        assert [process.stdout.readline() for _ in range(2)] == [b"\xff\n", b"more\n"]
        logged[2].write_bytes(second + b"last\n")
        journal.state(CAM, "two", 1, "failed", attempt=2)
        journal.commit()
        assert process.communicate(timeout=20.0)[0] == second + b"last\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(10.0)
