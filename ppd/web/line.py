"""The line to the supervisor's control socket, for an event loop."""

from __future__ import annotations

__all__ = ["ControlLine"]

import asyncio
from pathlib import Path

import zmq
import zmq.asyncio

from .._sockets import CONTROL
from ..control import NoSupervisorError
from ..messages import ControlReply, ControlRequest, MessageError, decode, encode


class ControlLine:
    """Asks the supervisor without holding up the event loop.

    Parameters
    ----------
    socket_dir : `pathlib.Path`
        The supervisor's folder of sockets.
    timeout : `float`, optional
        Seconds to wait for an answer.
    """

    def __init__(self, socket_dir: Path, timeout: float = 2.5):
        self._endpoint = f"ipc://{socket_dir / CONTROL}"
        self._timeout = timeout
        self._context = zmq.asyncio.Context()

    def close(self) -> None:
        """Close the line."""
        self._context.destroy(linger=0)

    async def request(self, request: ControlRequest) -> ControlReply:
        """Send a request and await its answer.

        Parameters
        ----------
        request : `ppd.messages.ControlRequest`
            The request.

        Returns
        -------
        reply : `ppd.messages.ControlReply`
            The answer.

        Raises
        ------
        ppd.control.NoSupervisorError
            Raised if no answer comes in time.
        """
        # A new socket for each request, as `ppd.control.ControlClient` has it.
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.connect(self._endpoint)
            async with asyncio.timeout(self._timeout):
                await socket.send(encode(request))
                reply = decode(await socket.recv())
        except TimeoutError:
            raise NoSupervisorError(f"No ppd answers within {self._timeout:g} s.") from None
        except MessageError as e:
            raise NoSupervisorError(f"What answers is no ppd of this version: {e}") from None
        finally:
            socket.close(linger=0)
        if not isinstance(reply, ControlReply):
            raise NoSupervisorError(f"{type(reply).__name__} is no answer.")
        return reply
