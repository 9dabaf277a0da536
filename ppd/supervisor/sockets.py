"""The supervisor's sockets: one for its children, two for ``ppdctl`` and other callers."""

from __future__ import annotations

__all__ = ["Sockets"]

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pydantic
import zmq

from .._sockets import CHILDREN, CONTROL, LOOK
from ..crash_points import here
from ..errors import ConfigurationError
from ..messages import ControlReply, encode
from .callers import Caller, Groups

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
        Folder of the sockets.
    groups : `ppd.supervisor.callers.Groups`, optional
        Who else than our own user may connect, to which of them.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if a socket can't be given to its group.
    """

    def __init__(self, folder: Path, groups: Groups | None = None):
        groups = groups or Groups()
        self._paths = [folder / name for name in (CHILDREN, CONTROL, LOOK)]
        self._context = zmq.Context()
        try:
            # Nobody else can come in before each socket is his whose it is.
            folder.chmod(0o700)
            self.children, self.control, self.look = map(self._open, self._paths)
            for path, group in zip(self._paths, (None, groups.control, groups.read), strict=True):
                _give(path, group)
            folder.chmod(0o700 if groups == Groups() else 0o711)
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
        """Close all; what was said last is given a moment to be sent."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._context.destroy(_LINGER_MS)

    def all(self) -> tuple[zmq.Socket[bytes], ...]:
        """Return the sockets, to be waited for."""
        return self.children, self.control, self.look

    def from_children(self) -> Iterator[tuple[bytes, bytes]]:
        """Take what children have said: ZeroMQ identity and message."""
        for _ in range(_MAX_MESSAGES):
            try:
                identity, *frames = self.children.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield identity, frames[-1] if frames else b""

    def requests(self) -> Iterator[tuple[Caller, bytes]]:
        """Take what was asked: by whom, and the request."""
        for socket in (self.control, self.look):
            for _ in range(_MAX_REQUESTS):
                try:
                    *envelope, body = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                caller = Caller(socket, tuple(f.bytes for f in envelope), socket is self.look, _peer(body))
                yield caller, body.bytes

    def send_child(self, identity: bytes, message: pydantic.BaseModel) -> None:
        """Send a message to a child; one that is gone gets none."""
        with contextlib.suppress(zmq.ZMQError):
            self.children.send_multipart([identity, encode(message)], zmq.NOBLOCK)

    def answer(self, caller: Caller, reply: ControlReply) -> None:
        """Answer a request; one who no longer waits gets no answer."""
        here("supervisor.answer-not-sent")
        with contextlib.suppress(zmq.ZMQError):
            caller.socket.send_multipart([*caller.envelope, encode(reply)], zmq.NOBLOCK)
        here("supervisor.answer-sent")


def _give(path: Path, group: int | None) -> None:
    path.chmod(0o600)
    if group is None:
        return
    try:
        if path.stat().st_gid != group:
            os.chown(path, -1, group)
        path.chmod(0o660)
    except OSError as e:
        raise ConfigurationError(f"{path} can't be given to group {group}: {e.strerror}.") from e


def _peer(frame: zmq.Frame) -> str:
    with contextlib.suppress(zmq.ZMQError):
        return str(frame.get("Peer-Address"))
    return ""
