"""The supervisor's two sockets: one for its children, one for ``ppdctl``."""

from __future__ import annotations

__all__ = ["Sockets"]

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pydantic
import zmq

from ..crash_points import here
from ..messages import ControlReply, encode

# A peer may not make us hold without bound what it sends, nor keep us from the others.
_MAX_BYTES = 4 << 20
_MAX_MESSAGES = 1000
_MAX_REQUESTS = 200
_LINGER_MS = 500


class Sockets:
    """Where children and commands reach the supervisor; nothing here waits.

    Parameters
    ----------
    folder : `pathlib.Path`
        Folder of the sockets; who may enter it may talk to us.
    """

    def __init__(self, folder: Path):
        self._paths = [folder / name for name in ("children.ipc", "control.ipc")]
        self._context = zmq.Context()
        try:
            self.children, self.control = map(self._open, self._paths)
        except BaseException:
            self.close()
            raise
        self.child_endpoint = f"ipc://{self._paths[0]}"
        """Where children connect to."""

    def _open(self, path: Path) -> zmq.Socket[bytes]:
        path.unlink(missing_ok=True)
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_BYTES)
        socket.bind(f"ipc://{path}")
        return socket

    def close(self) -> None:
        """Close both; what was said last is given a moment to be sent."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._context.destroy(_LINGER_MS)

    def from_children(self) -> Iterator[tuple[bytes, bytes]]:
        """Take what children have said: ZeroMQ identity and message."""
        for _ in range(_MAX_MESSAGES):
            try:
                identity, *frames = self.children.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield identity, frames[-1] if frames else b""

    def requests(self) -> Iterator[tuple[list[bytes], bytes]]:
        """Take what was asked: envelope, to be given back with the answer, and request."""
        for _ in range(_MAX_REQUESTS):
            try:
                *envelope, body = self.control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield envelope, body

    def send_child(self, identity: bytes, message: pydantic.BaseModel) -> None:
        """Send a message to a child; one that is gone gets none."""
        with contextlib.suppress(zmq.ZMQError):
            self.children.send_multipart([identity, encode(message)], zmq.NOBLOCK)

    def answer(self, envelope: list[bytes], reply: ControlReply) -> None:
        """Answer a request; one who no longer waits gets no answer."""
        here("supervisor.answer-not-sent")
        with contextlib.suppress(zmq.ZMQError):
            self.control.send_multipart([*envelope, encode(reply)], zmq.NOBLOCK)
        here("supervisor.answer-sent")
