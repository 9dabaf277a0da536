"""Log records as systemd's journal keeps them: each field by its own name."""

from __future__ import annotations

__all__ = ["JournalHandler", "is_journal"]

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from logging_journald import JournaldTransport

# journald's priorities are those of syslog.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def is_journal(stream: TextIO) -> bool:
    """Whether what is written to a stream goes to the journal, as systemd says it does.

    See ``JOURNAL_STREAM`` in ``systemd.exec(5)``.
    """
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class JournalHandler(logging.Handler):
    """Sends records to the journal's socket.

    Parameters
    ----------
    fields : callable
        Returns the fields that are bound at the time of a record.
    mask : callable
        Hides secrets in a text.
    stream : file-like
        Where records go when the journal does not take them.
    path : `pathlib.Path`, optional
        The journal's socket, if it is not systemd's.

    Notes
    -----
    ``journalctl GROUP=2026-11-24T01:02 DETECTOR=94`` finds what concerns a
    detector-visit.  journald adds process ID and unit by itself.
    """

    def __init__(
        self,
        fields: Callable[[], Mapping[str, Any]],
        mask: Callable[[str], str],
        stream: TextIO,
        path: Path | None = None,
    ):
        super().__init__()
        self._fields = fields
        self._mask = mask
        self._stream = stream
        # Addressed with each record: a journal that was started anew has another socket there.
        self._transport = JournaldTransport(path, connected=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; one that the journal does not take is written to the stream."""
        try:
            message = record.getMessage()
            if record.exc_info:
                message += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
            if record.stack_info:
                message += "\n" + record.stack_info
            message = self._mask(message)
            pairs: list[tuple[str, Any]] = [
                ("MESSAGE", message),
                ("PRIORITY", _priority(record.levelno)),
                ("SYSLOG_IDENTIFIER", "ppd"),
                ("LOGGER", record.name),
                ("CODE_FILE", record.pathname),
                ("CODE_LINE", record.lineno),
                ("CODE_FUNC", record.funcName),
            ]
            # A value is text without line breaks, or the journal would take the rest for fields.
            pairs += [(name.upper(), _one_line(value)) for name, value in self._fields().items()]
            try:
                self._transport.send(pairs)
            except OSError:
                self._stream.write(message + "\n")
                self._stream.flush()
        except Exception:
            self.handleError(record)


def _priority(level: int) -> int:
    return next((priority for at_least, priority in _PRIORITIES if level >= at_least), _DEBUG)


def _one_line(value: object) -> str:
    return str(value).replace("\n", " ")
