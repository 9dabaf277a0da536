"""The exporter: the process that writes to the central repo.

A process of its own, so that a database call that hangs can be ended.  The
supervisor starts it, as ``python -m ppd.supervisor.exporter_process STATE_DIR``,
and talks to it by JSON lines on standard input and output.  It begins without
the middleware, whose import takes seconds of a processor that the nursery
needs just then.  It may be killed
at any time: what central has and the spool still holds is found again by UUID.
"""

from __future__ import annotations

__all__ = ["main"]

import contextlib
import fcntl
import logging
import math
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from ..config import Settings
from ..crash_points import here
from ..errors import PpdError, one_line
from ..logs import setup_logging
from ..messages import Discard, ExporterSetup, ExporterState, Hurry, MessageError, ShutDown, decode, encode
from .exporting import Exporting
from .spool import HandOver

if TYPE_CHECKING:
    from lsst.daf.butler import Butler

    from .export_batch import BatchWriter

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_STATE_SECONDS = 1.0
_LOCK_SECONDS = 60.0
_CHUNK_BYTES = 1 << 20
# By then the nursery is built.
_IMPORT_SECONDS = 8.0


class _Line:
    """JSON lines to and from the supervisor."""

    def __init__(self, read_fd: int, write_fd: int):
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = b""
        self.closed = False

    def send(self, message: pydantic.BaseModel) -> None:
        data = encode(message) + b"\n"
        while data:
            data = data[os.write(self._write_fd, data) :]

    def receive(self, timeout: float) -> list[Any]:
        """Wait for messages, no longer than some seconds."""
        ready, _, _ = select.select([self._read_fd], [], [], timeout)
        if not ready:
            return []
        data = os.read(self._read_fd, _CHUNK_BYTES)
        self.closed = not data
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = []
        for line in lines:
            try:
                messages.append(decode(line))
            except MessageError as e:
                _LOG.error("Exporter: %s", e)
        return messages


class _Central:
    """The central repo as the exporter has it: opened when it is there, and again when it was lost."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._butler: Butler | None = None
        self._writer: BatchWriter | None = None

    def write(self, batch: Sequence[HandOver]) -> None:
        if self._writer is None:
            from .export_batch import BatchWriter
            from .reading import open_butler

            self._butler = open_butler(self._settings.central_repo, writeable=True, attempts=1, delay=0.0)
            self._writer = BatchWriter(self._butler)
        self._writer.write(batch)

    def import_early(self) -> None:
        """Import the middleware when there is time: the first export will not wait for it."""
        from . import export_batch, export_faults, reading  # noqa: F401

    def answers(self) -> bool:
        """Whether it takes anything; if not, it is opened anew next time."""
        if self._butler is None:
            return False
        try:
            self._butler.registry.refresh()
            return True
        except Exception as e:
            _LOG.info("Central does not answer: %s", one_line(e))
            self.close()
            return False

    def close(self) -> None:
        if self._butler is not None:
            with contextlib.suppress(Exception):
                self._butler.close()
        self._butler = self._writer = None


def main() -> int:
    """Export until the supervisor says to end, or is gone.

    Returns
    -------
    code : `int`
        0; 1 if another exporter does not let go of the spool.
    """
    # Signals are for the supervisor to handle; this process ends by its word, or by SIGKILL.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    line = _Line(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    setup = _await_setup(line)
    if setup is None:
        return 0
    settings = Settings.from_dict(setup.settings)
    setup_logging(settings)
    # A server that does not answer at all must not be waited for for ever.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    with contextlib.suppress(BrokenPipeError), _alone(Path(settings.spool_dir)) as alone:
        if not alone:
            _LOG.error("Another exporter does not let go of the spool %s.", settings.spool_dir)
            return 1
        here("exporter.spool-locked")
        _serve(line, settings)
    return 0


def _await_setup(line: _Line) -> ExporterSetup | None:
    while not line.closed:
        for message in line.receive(60.0):
            if isinstance(message, ExporterSetup):
                return message
    return None


@contextlib.contextmanager
def _alone(spool: Path) -> Iterator[bool]:
    """Hold the spool: a killed supervisor's exporter may need a moment to end."""
    with (spool / "exporter.lock").open("w") as stream:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True


def _serve(line: _Line, settings: Settings) -> None:
    central = _Central(settings)
    exporting = Exporting(settings, central.write, central.answers)
    trouble: str | None = None
    failures = 0
    not_before = said_at = 0.0
    import_at = time.monotonic() + _IMPORT_SECONDS
    while not line.closed:
        waiting = exporting.look()
        batch = exporting.due(waiting) if time.monotonic() >= not_before else []
        if batch or time.monotonic() > said_at + _STATE_SECONDS:
            said_at = time.monotonic()
            line.send(_state(exporting, len(waiting), len(batch), trouble))
        if batch:
            begin = time.monotonic()
            try:
                here("exporter.batch-chosen")
                outcome = exporting.export(batch)
            except (PpdError, OSError) as e:  # the spool itself
                trouble = one_line(e)
            else:
                trouble = outcome.trouble
                for message in exporting.report(outcome, time.monotonic() - begin):
                    here("exporter.report-not-sent", type(message).__name__)
                    line.send(message)
                    here("exporter.report-sent", type(message).__name__)
            failures = failures + 1 if trouble is not None else 0
            if trouble is not None:
                delay = min(2.0**failures, settings.repo_retry_delay) * random.uniform(0.5, 1.0)
                not_before = time.monotonic() + delay
                said_at = 0.0
                _LOG.error(
                    "Export failed; the spool keeps the outputs, next try in %.1f s: %s", delay, trouble
                )
        elif time.monotonic() > import_at:
            import_at = math.inf
            central.import_early()
        # With more to export, what has been said is taken without waiting.
        for message in line.receive(0.0 if batch and trouble is None else _POLL_SECONDS):
            if isinstance(message, Discard):
                here("exporter.discard-read")
                _discard(exporting, message.entries)
            elif isinstance(message, ExporterSetup):
                settings = Settings.from_dict(message.settings)
                setup_logging(settings)
                exporting.reconfigure(settings)
            elif isinstance(message, Hurry):
                exporting.hurry = True
            elif isinstance(message, ShutDown):
                central.close()
                return
    _LOG.warning("The supervisor is gone; the exporter ends, and the spool keeps what it has.")


def _state(exporting: Exporting, entries: int, batch: int, trouble: str | None) -> ExporterState:
    letters = exporting.letters()
    return ExporterState(
        entries=entries,
        bytes=exporting.bytes,
        letters=len(letters),
        letter_bytes=sum(w.bytes for w in letters),
        exporting=batch,
        deferred=exporting.deferred,
        trouble=trouble,
    )


def _discard(exporting: Exporting, entries: Sequence[str]) -> None:
    for entry in entries:
        try:
            exporting.discard([entry])
        except OSError as e:
            # It stays a hand-over, and is reported again by the next exporter.
            _LOG.error("Hand-over %s is exported and can't be removed from the spool: %s", entry, e)


if __name__ == "__main__":
    sys.exit(main())
