"""A child's line to the supervisor.

Tasks keep the child's main thread busy for seconds, so a second thread owns
the ZeroMQ socket: it sends heartbeats and takes what arrives.
"""

from __future__ import annotations

__all__ = ["ChildLink", "LinkClosedError"]

import contextlib
import logging
import os
import queue
import threading
import time
from typing import Any

import pydantic
import zmq

from ..logs import bind
from ..messages import ChildHeartbeat, DetectorKey, MessageError, decode, encode

_LOG = logging.getLogger(__name__)

_MEMORY_RETRY_SECONDS = 0.1


class LinkClosedError(RuntimeError):
    """Raised when the supervisor did not answer in time."""


class ChildLink:
    """Socket, heartbeat and queues of one child.

    Parameters
    ----------
    endpoint : `str`
        Where the supervisor listens for children.
    key : `ppd.messages.DetectorKey`
        Who this child is.
    interval : `float`
        Seconds between heartbeats.
    """

    def __init__(self, endpoint: str, key: DetectorKey, interval: float):
        self.phase = "starting"
        self._key = key
        self._interval = interval
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._unsent: bytes | None = None
        self._beat = 0.0
        self._closing = threading.Event()
        # Wakes the link thread as soon as there is something to send: a poll
        # with a short time-out would cost a waiting child processor time.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The context is born here, after the fork.
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 2000)
        # With a limit, the link's thread would wait in `send` for a supervisor
        # that is gone.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.IDENTITY, key.line)
        self._socket.connect(endpoint)
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """Begin a phase; the supervisor knows of it at once."""
        self.phase = phase
        bind(phase=phase)
        self.send(ChildHeartbeat(key=self._key, phase=phase))

    def send(self, message: pydantic.BaseModel) -> None:
        """Send a message; returns at once."""
        self._outbox.put(encode(message))
        os.eventfd_write(self._wake, 1)

    def receive(self, timeout: float) -> Any:
        """Wait for the next message.

        Parameters
        ----------
        timeout : `float`
            Seconds to wait at most.

        Returns
        -------
        message : message or `None`
            `None` if nothing came in time.
        """
        try:
            return self._inbox.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None

    def requeue(self, message: Any) -> None:
        """Put a message back that the caller was not ready for."""
        self._inbox.put(message)

    def close(self) -> None:
        """Send what is left, then end; bounded by the socket's linger."""
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=5.0)
        self._context.destroy(linger=2000)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while True:
            try:
                if self._turn(poller):
                    return
            except MemoryError:
                # A task has it all; it will have to give some back, or be ended.
                time.sleep(_MEMORY_RETRY_SECONDS)

    def _turn(self, poller: zmq.Poller) -> bool:
        """Send and receive once; whether it was the last time."""
        closing = self._closing.is_set()
        while self._unsent is not None or not self._outbox.empty():
            # Kept until it is sent: there may be no memory to send it now.
            self._unsent = self._unsent or self._outbox.get_nowait()
            self._socket.send(self._unsent)
            self._unsent = None
        if closing:
            return True
        if time.monotonic() >= self._beat:
            self._socket.send(encode(ChildHeartbeat(key=self._key, phase=self.phase)))
            self._beat = time.monotonic() + self._interval
        due = max(0.0, self._beat - time.monotonic())
        ready = dict(poller.poll(int(due * 1000.0) + 1))
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        if self._socket in ready:
            try:
                self._inbox.put(decode(self._socket.recv()))
            except MessageError as e:
                _LOG.error("The supervisor sent something that is no message: %s", e)
        return False
