"""Log records with the detector-visit they belong to, for people or programs."""

from __future__ import annotations

__all__ = ["JsonFormatter", "TextFormatter", "bind", "bound", "know_secrets", "mask_secrets", "setup_logging"]

import contextlib
import contextvars
import datetime
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TextIO

from .log_limits import Flood

_FIELDS: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "ppd_log_fields", default=MappingProxyType({})
)

_USERINFO = re.compile(r"(?P<head>\w://[^\s/:@'\"]*):[^\s/@'\"]+@")
_QUERY = re.compile(
    r"(?P<head>[?&;\s](?:[\w-]*(?:password|passwd|token|secret|signature|credential|api[-_]?key))=)[^\s&;'\"]+",
    re.IGNORECASE,
)


_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|ACCESS_KEY|CREDENTIALS)$", re.IGNORECASE)
# Of LSST_DB_AUTH_CREDENTIALS.
_PASSWORD_IN_JSON = re.compile(r'"password"\s*:\s*"([^"]+)"')
_SHORTEST = 8
_KNOWN: list[str] = []


class _LogSettings(Protocol):
    @property
    def log_level(self) -> str: ...
    @property
    def log_format(self) -> str: ...
    @property
    def log_levels(self) -> Mapping[str, str]: ...
    @property
    def log_burst(self) -> int: ...


def bind(**fields: Any) -> None:
    """Add fields to every later log record of this thread or task.

    Parameters
    ----------
    **fields
        ``group``, ``detector``, ``exposure``, ``visit``, …; `None` removes
        the field.
    """
    merged = {**_FIELDS.get(), **fields}
    _FIELDS.set({name: value for name, value in merged.items() if value is not None})


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Add fields to log records within a ``with`` block; see `bind`."""
    token = _FIELDS.set(_FIELDS.get())
    try:
        bind(**fields)
        yield
    finally:
        _FIELDS.reset(token)


def mask_secrets(text: str) -> str:
    """Hide passwords in URLs, the values of secret query parameters, and secrets that we know."""
    for secret in _KNOWN:
        text = text.replace(secret, "***")
    return _QUERY.sub(r"\g<head>***", _USERINFO.sub(r"\g<head>:***@", text))


def know_secrets(environ: Mapping[str, str]) -> None:
    """Hide from now on what is secret in an environment, wherever it turns up."""
    found = {value for name, value in environ.items() if _SECRET_NAME.search(name)}
    found |= {word for value in found for word in _PASSWORD_IN_JSON.findall(value)}
    # A short one may be a part of many words; a long one may begin with another.
    found = {value for value in found if len(value) >= _SHORTEST}
    _KNOWN[:] = sorted(found.union(_KNOWN), key=len, reverse=True)


class TextFormatter(logging.Formatter):
    """One line for a person: time, level, logger, fields, message."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = " ".join(f"{name}={value}" for name, value in _FIELDS.get().items())
        where = f"[{fields}] " if fields else ""
        text = (
            f"{moment:%H:%M:%S}.{int(record.msecs):03d} {record.levelname:<7} {record.process} "
            f"{record.name}: {where}{record.getMessage()}"
        )
        return mask_secrets(text + _traceback(self, record))


class JsonFormatter(logging.Formatter):
    """One JSON object on one line for a log collector."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry: dict[str, Any] = {
            "timestamp": moment.isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "logger": record.name,
            "pid": record.process,
            **_FIELDS.get(),
            "message": mask_secrets(record.getMessage()),
        }
        trouble = _traceback(self, record)
        if trouble:
            entry["exception"] = mask_secrets(trouble.strip())
        return json.dumps(entry, default=str)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = ""
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    if record.stack_info:
        text += "\n" + formatter.formatStack(record.stack_info)
    return text


def setup_logging(settings: _LogSettings, stream: TextIO | None = None) -> None:
    """Send all log records of this process to one stream.

    Parameters
    ----------
    settings : `ppd.config.Settings` or the like
        ``log_level``, ``log_format``, ``log_levels`` and ``log_burst`` are
        used.
    stream : file-like, optional
        Where to; standard error by default.

    Notes
    -----
    May be called again, after a fork for instance: it replaces its own
    handler.
    """
    know_secrets(os.environ)
    stream = stream or sys.stderr
    handler = _handler(settings.log_format, stream)
    handler.set_name("ppd")
    handler.addFilter(Flood(settings.log_burst))
    for name, value in (("VERBOSE", 15), ("TRACE", 5)):
        logging.addLevelName(value, name)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if old.get_name() == "ppd":
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    # Chatty at INFO, and nothing an operator asked for.
    for name in ("botocore", "urllib3", "watchdog", "sqlalchemy", "lsst.daf.butler"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name, level in settings.log_levels.items():
        logging.getLogger(None if name == "." else name).setLevel(level)
    logging.captureWarnings(True)


def _handler(log_format: str, stream: TextIO) -> logging.Handler:
    if log_format == "journal" or (log_format == "auto" and "JOURNAL_STREAM" in os.environ):
        # Only those who need it import it.
        from .log_journal import JournalHandler, is_journal

        # A child's stream is its own file, and stays so.
        if is_journal(stream) or (log_format == "journal" and stream is sys.stderr):
            return JournalHandler(_FIELDS.get, mask_secrets, stream)
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    return handler
