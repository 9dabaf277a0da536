"""Log records carry the detector-visit and hide secrets."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ppd.logs import bind, bound, mask_secrets, setup_logging

_LOG = logging.getLogger("ppd.test")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    with bound():
        yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def _settings(log_format: str = "json", level: str = "INFO", **levels: str) -> Any:
    return SimpleNamespace(log_format=log_format, log_level=level, log_levels=levels)


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
