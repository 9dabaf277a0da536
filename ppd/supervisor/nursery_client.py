"""The supervisor's end of the pipe to the nursery."""

from __future__ import annotations

__all__ = ["NurseryClient"]

import contextlib
import logging
import os
import subprocess
import sys
import time
from typing import Any

import pydantic

from ..config import Settings
from ..messages import CHILD_VARIABLE, MARK_BYTES, MessageError, NurserySetup, ShutDown, decode, encode

_LOG = logging.getLogger(__name__)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CHUNK_BYTES = 1 << 20
_MAX_CHUNKS = 16
_MAX_LINE_BYTES = 64 << 20
# What names the central repo or may open it: no child sees it (invariant 1).
_CENTRAL_VARIABLES = (
    "CENTRAL_REPO",
    "READ_CENTRAL_REPO",
    "DAF_BUTLER_REPOSITORY_INDEX",
    "DAF_BUTLER_REPOSITORIES",
    "LSST_DB_AUTH",
    "LSST_DB_AUTH_CREDENTIALS",
    "PGPASSFILE",
    "PGPASSWORD",
    "PGUSER",
    "PPD_CONFIG",
)


class NurseryClient:
    """Starts the nursery and talks to it by JSON lines.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Passed on, without what names the central repo.
    """

    def __init__(self, settings: Settings):
        self._buffer = b""
        self._outbox = b""
        environment = {k: v for k, v in os.environ.items() if k not in _CENTRAL_VARIABLES}
        # A library that starts threads of its own in the nursery would make
        # the fork unsafe, and one processor is what a child gets anyway.
        environment.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
        # Arrow's allocator would start one when it is imported.
        environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
        # Room in which each child writes who it is.
        environment[CHILD_VARIABLE] = "-" * MARK_BYTES
        self._process = subprocess.Popen(
            # The state directory tells people whose nursery this is.
            [sys.executable, "-m", "ppd.workers.nursery", str(settings.state_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Ctrl-C on a terminal is the supervisor's to handle.
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        data = settings.to_dict()
        data["central_repo"] = "hidden:"
        data["read_central_repo"] = None
        data["config_path"] = None
        self.send(NurserySetup(settings=data))

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._process.pid

    def fileno(self) -> int:
        """Descriptor that becomes readable when the nursery says something; -1: it has ended."""
        return self._out

    def alive(self) -> bool:
        """Whether the nursery runs; reaps it if not."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code once it was reaped; negative: the signal that ended it."""
        return self._process.returncode

    def send(self, message: pydantic.BaseModel) -> None:
        """Queue a message and write what the pipe takes."""
        self._outbox += encode(message) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes now."""
        if self._in < 0:
            self._outbox = b""
        while self._outbox:
            try:
                written = os.write(self._in, self._outbox)
            except BlockingIOError:
                return
            except OSError as e:
                _LOG.error("The nursery does not take messages: %s", e)
                self._outbox = b""
                return
            self._outbox = self._outbox[written:]

    def receive(self) -> list[Any]:
        """Return what the nursery has said."""
        if self._out < 0:
            return []
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):
            # What writes without end, as a library's loop of prints, is not read without end.
            while len(chunks) < _MAX_CHUNKS and (data := os.read(self._out, _CHUNK_BYTES)):
                chunks.append(data)
        *lines, self._buffer = (self._buffer + b"".join(chunks)).split(b"\n")
        if len(self._buffer) > _MAX_LINE_BYTES:
            _LOG.error("The nursery said %d bytes without a line break; they are dropped.", len(self._buffer))
            self._buffer = b""
        messages = []
        for line in lines:
            try:
                messages.append(decode(line))
            except MessageError as e:
                _LOG.error("The nursery said something that is no message: %s", e)
        return messages

    def kill(self) -> None:
        """Kill the nursery; `alive` reaps it."""
        self._process.kill()

    def stop(self, timeout: float) -> None:
        """End the nursery and with it all children; bounded."""
        if self._out < 0:
            return
        self.send(ShutDown())
        deadline = time.monotonic() + timeout
        self._close_input()
        while self.alive() and time.monotonic() < deadline:
            self.receive()
            time.sleep(0.02)
        if self.alive():
            _LOG.error("The nursery does not end; it is killed.")
            self._process.kill()
            self._process.wait(5.0)
        self.close()

    def close(self) -> None:
        """Close the pipes to a nursery that has ended."""
        self._close_input()
        # The number of a closed descriptor may soon be another file's.
        self._out = -1
        self._process.stdout.close()  # type: ignore[union-attr]

    def _close_input(self) -> None:
        self._in = -1
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
