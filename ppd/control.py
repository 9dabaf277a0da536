"""Talking to a running supervisor."""

from __future__ import annotations

__all__ = ["ControlClient", "NoSupervisorError", "Remote"]

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import zmq

from ._sockets import endpoint_for
from .errors import NoSupervisorError, PpdError

if TYPE_CHECKING:
    from ._control_messages import ControlReply, ControlRequest, Pointing


@dataclasses.dataclass(frozen=True)
class Remote:
    """A ppd on another machine."""

    endpoint: str
    """``tcp://HOST:PORT``, as its ``control_listen`` has it."""
    key: Path
    """File that ``ppdctl keys client`` has made, with ``server.key`` beside it."""


class ControlClient:
    """A line to the supervisor's control socket.

    Parameters
    ----------
    where : `pathlib.Path` or `Remote`
        The supervisor's folder of sockets, or where another machine's is.
    timeout : `float`, optional
        Seconds to wait for an answer.
    """

    def __init__(self, where: Path | Remote, timeout: float = 5.0):
        self._where = where
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
        ppd.errors.PpdError
            Raised if this user may not ask for that.
        """
        from ._control_messages import ControlReply

        data = request.model_dump_json().encode()
        return ControlReply.model_validate_json(self._exchange(request.command, data, timeout))

    def _exchange(self, command: str, data: bytes, timeout: float | None) -> bytes:
        # A new socket for each request: an answer that comes too late can't
        # be taken for the next one's.
        timeout = self._timeout if timeout is None else timeout
        socket = self._context.socket(zmq.DEALER)
        try:
            endpoint, doubt = self._prepare(socket, command)
            socket.connect(endpoint)
            socket.send(data)
            if not socket.poll(int(timeout * 1000)):
                raise NoSupervisorError(f"No ppd answers at {endpoint} within {timeout:g} s{doubt}.")
            return socket.recv()
        except zmq.ZMQError as e:
            raise PpdError(f"{self._where} can't be connected to: {e.strerror}.") from e
        finally:
            socket.close(linger=0)

    def _prepare(self, socket: zmq.Socket[bytes], command: str) -> tuple[str, str]:
        """Return where to connect to, and what else it may be if nobody answers."""
        if not isinstance(self._where, Remote):
            return endpoint_for(Path(self._where), command), ""
        from ._keys import load_client

        public, secret, server = load_client(self._where.key)
        for option, value in (
            (zmq.CURVE_PUBLICKEY, public),
            (zmq.CURVE_SECRETKEY, secret),
            (zmq.CURVE_SERVERKEY, server),
            (zmq.IPV6, 1),
        ):
            socket.setsockopt(option, value)
        return self._where.endpoint, ", or it does not know this key"

    def _look(self, command: str, timeout: float | None = None) -> dict[str, Any]:
        """Ask for what changes nothing, without the models: they take longer to import than all the rest."""
        request = json.dumps({"kind": "control_request", "command": command})
        reply = json.loads(self._exchange(command, request.encode(), timeout))
        if not reply["ok"]:
            raise PpdError(reply["error"])
        result: dict[str, Any] = reply["result"]
        return result

    def submit(self, visit: Any, detectors: Sequence[int] = ()) -> ControlReply:
        """Announce a visit, or some detectors of it; ``visit`` is the nextVisit message."""
        return self.request(_request(command="submit", visit=visit, detectors=tuple(detectors)))

    def visits(self) -> dict[str, Any]:
        """Ask for the visits that the supervisor has in hand, and which night it is."""
        return self._look("visits")

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """Ask how the supervisor is."""
        return self._look("status", timeout)

    def inputs(self, group: str, detector: int | None = None) -> ControlReply:
        """Ask for the inputs of a visit, or of one detector of it."""
        return self.request(_request(command="inputs", group=group, detector=detector))

    def prefetch(self, pointings: Sequence[Pointing]) -> ControlReply:
        """Have inputs fetched for pointings that have not been announced."""
        return self.request(_request(command="prefetch", pointings=tuple(pointings)))

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

        Raises
        ------
        ppd.errors.PpdError
            Raised if it is refused.
        """
        deadline = time.monotonic() + timeout
        while True:
            reply = self.request(_request(command="drain"))
            if not reply.ok:
                raise PpdError(reply.error)
            drained = bool(reply.result.get("drained"))
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
        return self.request(_request(command="stop", now=now))


def _request(**fields: Any) -> ControlRequest:
    from ._control_messages import ControlRequest

    return ControlRequest(**fields)
