"""Log records carry the detector-visit and hide secrets."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppd.log_limits import Flood
from ppd.logs import bind, bound, mask_secrets, setup_logging

_LOG = logging.getLogger("ppd.test")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def _settings(log_format: str = "json", level: str = "INFO", **levels: str) -> Any:
    return SimpleNamespace(log_format=log_format, log_level=level, log_levels=levels, log_burst=5)


def test_json() -> None:
    stream = io.StringIO()
    setup_logging(_settings(), stream)
    with bound(group="g1", detector=3):
        bind(exposure=12)
        _LOG.info("raw %d came", 1)
    _LOG.debug("not this")
    _LOG.info("after")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "raw 1 came"
    assert (first["group"], first["detector"], first["exposure"]) == ("g1", 3, 12)
    assert first["pid"] == os.getpid()
    assert first["severity"] == "INFO"
    assert "group" not in second


def test_text_with_traceback() -> None:
    stream = io.StringIO()
    setup_logging(_settings("text"), stream)
    bind(group="g1")
    try:
        raise ValueError("postgresql://me:hunter2@host/db")
    except ValueError:
        _LOG.exception("failed")
    text = stream.getvalue()
    assert "[group=g1] failed\nTraceback" in text
    assert "hunter2" not in text
    assert "postgresql://me:***@host/db" in text


def test_fields_can_be_removed() -> None:
    stream = io.StringIO()
    setup_logging(_settings("text"), stream)
    bind(group="g1", detector=2)
    bind(detector=None)
    _LOG.info("x")
    assert "[group=g1] x" in stream.getvalue()


def test_set_up_again_replaces_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging(_settings(), first)
    setup_logging(_settings(), second)
    _LOG.info("x")
    assert not first.getvalue()
    assert len(second.getvalue().splitlines()) == 1


def test_auto_is_json_without_a_terminal() -> None:
    stream = io.StringIO()
    setup_logging(_settings("auto"), stream)
    _LOG.info("x")
    assert json.loads(stream.getvalue())["message"] == "x"


def test_levels_of_single_loggers() -> None:
    stream = io.StringIO()
    setup_logging(_settings("text", "WARNING", **{"ppd.test": "DEBUG"}), stream)
    try:
        _LOG.debug("seen")
        logging.getLogger("ppd.other").info("unseen")
    finally:
        _LOG.setLevel(logging.NOTSET)
    assert "seen" in stream.getvalue()
    assert "unseen" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("s3://key:se+cret@host/bucket/x", "s3://key:***@host/bucket/x"),
        ("https://h/p?X-Amz-Signature=abc&x=1", "https://h/p?X-Amz-Signature=***&x=1"),
        ("dsn host=h password=abc user=u", "dsn host=h password=*** user=u"),
        ("ipc:///tmp/x at 12:30@night", "ipc:///tmp/x at 12:30@night"),
        ("group 2026-11-24T03:04:05.123", "group 2026-11-24T03:04:05.123"),
    ],
)
def test_mask(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked


def test_a_source_gone_mad(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first are written, it is said that more come, and later how many; others are written as ever."""
    clock = [100.0]
    monkeypatch.setattr("ppd.log_limits.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    setup_logging(_settings("text"), stream)
    for number in range(1000):
        _LOG.error("refused %d", number)
    _LOG.error("something else")
    lines = stream.getvalue().splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines[:5]] == [f"refused {n}" for n in range(5)]
    assert "5 like 'refused %d' of ppd.test came within 10 s" in lines[5]
    assert lines[6].endswith("something else")
    assert len(lines) == 7
    clock[0] += 11.0
    _LOG.error("refused %d", 1000)
    said, last = stream.getvalue().splitlines()[7:]
    assert "995 more like 'refused %d' of ppd.test were not written" in said
    assert last.endswith("refused 1000")


def test_all_may_be_wanted() -> None:
    stream = io.StringIO()
    settings = _settings("text")
    settings.log_burst = 0
    setup_logging(settings, stream)
    for number in range(300):
        _LOG.error("refused %d", number)
    assert len(stream.getvalue().splitlines()) == 300


def test_what_is_remembered_of_floods_is_bounded() -> None:
    flood = Flood(5)
    for number in range(3000):
        record = logging.LogRecord("x", logging.INFO, "", 0, f"made of {number}", (), None)
        assert flood.filter(record)
    assert len(flood._kinds) <= 1000


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket as journald has one."""
    path = tmp_path / "socket"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(5.0)
    monkeypatch.setattr("logging_journald.JournaldTransport.SOCKET_PATH", path)
    yield listener
    listener.close()


def _entry(data: bytes) -> dict[str, str]:
    """Take a datagram apart; see systemd's "Native Journal Protocol"."""
    fields = {}
    stream = io.BytesIO(data)
    while line := stream.readline():
        name, there, value = line.rstrip(b"\n").partition(b"=")
        if not there:
            value = stream.read(int.from_bytes(stream.read(8), "little"))
            stream.read(1)
        fields[name.decode()] = value.decode()
    return fields


def test_the_journal(journal: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where systemd says that standard error is the journal, fields go there by name."""
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        setup_logging(_settings("auto"), stream)
        with bound(group="2026-11-24T01:02\nPRIORITY=0", detector=94):
            try:
                raise ValueError("postgresql://me:hunter2@host/db")
            except ValueError:
                _LOG.exception("failed")
    entry = _entry(journal.recv(65536))
    assert entry["GROUP"] == "2026-11-24T01:02 PRIORITY=0"
    assert (entry["DETECTOR"], entry["PRIORITY"], entry["LOGGER"]) == ("94", "3", "ppd.test")
    assert entry["MESSAGE"].startswith("failed\nTraceback")
    assert "hunter2" not in str(entry)
    assert not (tmp_path / "stream").read_text()


def test_a_stream_that_is_not_the_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child inherits JOURNAL_STREAM, and has a log file of its own."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    with (tmp_path / "stream").open("w") as stream:
        setup_logging(_settings("auto"), stream)
        _LOG.error("x")
    assert json.loads((tmp_path / "stream").read_text())["message"] == "x"


def test_a_journal_that_is_gone(
    journal: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it does not take is on standard error all the same."""
    journal.close()
    setup_logging(_settings("journal"))
    _LOG.error("x")
    assert capsys.readouterr().err == "x\n"
