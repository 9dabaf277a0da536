"""Talking to a running supervisor."""

from __future__ import annotations

__all__ = ["ControlClient", "NoSupervisorError"]

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from .messages import ControlReply, ControlRequest, Pointing, decode, encode


class NoSupervisorError(RuntimeError):
    """Raised when no supervisor answers."""


class ControlClient:
    """A line to the supervisor's control socket.

    Parameters
    ----------
    socket_dir : `pathlib.Path`
        The supervisor's folder of sockets.
    timeout : `float`, optional
        Seconds to wait for an answer.
    """

    def __init__(self, socket_dir: Path, timeout: float = 5.0):
        self._endpoint = f"ipc://{Path(socket_dir) / 'control.ipc'}"
        self._timeout = timeout
        self._context = zmq.Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the line."""
        self._context.destroy(linger=0)

    def request(self, request: ControlRequest, timeout: float | None = None) -> ControlReply:
        """Send a request and wait for its answer.

        Parameters
        ----------
        request : `ppd.messages.ControlRequest`
            The request.
        timeout : `float`, optional
            Seconds to wait, if not as long as always.

        Returns
        -------
        reply : `ppd.messages.ControlReply`
            The answer.

        Raises
        ------
        NoSupervisorError
            Raised if no answer comes in time.
        """
        # A new socket for each request: an answer that comes too late can't
        # be taken for the next one's.
        timeout = self._timeout if timeout is None else timeout
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.connect(self._endpoint)
            socket.send(encode(request))
            if not socket.poll(int(timeout * 1000)):
                raise NoSupervisorError(f"No ppd answers at {self._endpoint} within {timeout:g} s.")
            reply = decode(socket.recv())
            assert isinstance(reply, ControlReply)
            return reply
        finally:
            socket.close(linger=0)

    def submit(self, visit: Any) -> ControlReply:
        """Announce a visit; ``visit`` is the nextVisit message."""
        return self.request(ControlRequest(command="submit", visit=visit))

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """Ask how the supervisor is."""
        return self.request(ControlRequest(command="status"), timeout).result

    def inputs(self, group: str, detector: int | None = None) -> ControlReply:
        """Ask for the inputs of a visit, or of one detector of it."""
        return self.request(ControlRequest(command="inputs", group=group, detector=detector))

    def prefetch(self, pointings: Sequence[Pointing]) -> ControlReply:
        """Have inputs fetched for pointings that have not been announced."""
        return self.request(ControlRequest(command="prefetch", pointings=tuple(pointings)))

    def drain(self, timeout: float = 0.0) -> bool:
        """Take no more visits; wait until all work is done and exported.

        Parameters
        ----------
        timeout : `float`, optional
            Seconds to wait at most; 0: only say so, don't wait.

        Returns
        -------
        drained : `bool`
            Whether nothing is left.
        """
        deadline = time.monotonic() + timeout
        while True:
            drained = bool(self.request(ControlRequest(command="drain")).result.get("drained"))
            if drained or time.monotonic() >= deadline:
                return drained
            time.sleep(0.2)

    def stop(self, *, now: bool = False) -> ControlReply:
        """Ask the supervisor to end; it answers before it does.

        Parameters
        ----------
        now : `bool`, optional
            Whether children are killed, and the spool is left as it is.
        """
        return self.request(ControlRequest(command="stop", now=now))
