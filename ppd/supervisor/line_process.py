"""A process of ours that is told and tells things by JSON lines on pipes."""

from __future__ import annotations

__all__ = ["GIVING_WAY", "LineProcess", "dying_with_us"]

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic

from ..messages import MessageError, ShutDown, decode, encode

_LOG = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MAX_CHUNKS = 16
_MAX_LINE_BYTES = 64 << 20
_PR_SET_PDEATHSIG = 1

GIVING_WAY = 10
"""Nice value of processes that are not the first to get a processor."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def dying_with_us(nice: int = 0) -> Callable[[], None]:
    """Make what a new process of ours has to do first: so that the kernel kills it when we end.

    Parameters
    ----------
    nice : `int`, optional
        By how much it gives way to us.

    Returns
    -------
    before : callable
        For `LineProcess`.
    """
    parent = os.getpid()

    def before() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.nice(nice)
        if os.getppid() != parent:
            os._exit(1)

    return before


class LineProcess:
    """Starts a process and talks to it; nothing here waits, but for `stop`.

    Parameters
    ----------
    name : `str`
        What it is, for people: ``nursery`` or ``exporter``.
    command : sequence of `str`
        What to start.
    environment : `~collections.abc.Mapping` [ `str`, `str` ]
        Its environment.
    setup : `pydantic.BaseModel`
        The first message that it gets.
    before : callable, optional
        Called in the new process before the command is executed.
    own_session : `bool`, optional
        Whether it is apart from the supervisor's session, and from the
        signals of a terminal.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        setup: pydantic.BaseModel,
        before: Callable[[], None] | None = None,
        own_session: bool = False,
    ):
        self._name = name
        self._buffer = b""
        self._outbox = b""
        self.last_words: list[Any] = []
        """What it has said while it was made to end."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=own_session,
            preexec_fn=before,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self.send(setup)

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._process.pid

    def fileno(self) -> int:
        """Descriptor that becomes readable when the process says something; -1: it has ended."""
        return self._out

    def alive(self) -> bool:
        """Whether the process runs; reaps it if not."""
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
                _LOG.error("The %s does not take messages: %s", self._name, e)
                self._outbox = b""
                return
            self._outbox = self._outbox[written:]

    def receive(self) -> list[Any]:
        """Return what the process has said."""
        if self._out < 0:
            return []
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):
            # What writes without end, as a library's loop of prints, is not read without end.
            while len(chunks) < _MAX_CHUNKS and (data := os.read(self._out, _CHUNK_BYTES)):
                chunks.append(data)
        *lines, self._buffer = (self._buffer + b"".join(chunks)).split(b"\n")
        if len(self._buffer) > _MAX_LINE_BYTES:
            _LOG.error(
                "The %s said %d bytes without a line break; they are dropped.", self._name, len(self._buffer)
            )
            self._buffer = b""
        messages = []
        for line in lines:
            try:
                messages.append(decode(line))
            except MessageError as e:
                _LOG.error("The %s said something that is no message: %s", self._name, e)
        return messages

    def kill(self) -> None:
        """Kill the process; `alive` reaps it."""
        self._process.kill()

    def stop(self, timeout: float) -> None:
        """End the process; bounded."""
        if self._out < 0:
            return
        self.send(ShutDown())
        deadline = time.monotonic() + timeout
        self._close_input()
        while self.alive() and time.monotonic() < deadline:
            self.last_words += self.receive()
            time.sleep(0.02)
        self.last_words += self.receive()
        if self.alive():
            _LOG.error("The %s does not end; it is killed.", self._name)
            self._process.kill()
            self._process.wait(5.0)
        self.close()

    def close(self) -> None:
        """Close the pipes to a process that has ended."""
        self._close_input()
        # The number of a closed descriptor may soon be another file's.
        self._out = -1
        self._process.stdout.close()  # type: ignore[union-attr]

    def _close_input(self) -> None:
        self._in = -1
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
