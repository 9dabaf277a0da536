"""The gate for ``ppdctl`` of other machines: CURVE keys, roles, and a rate for each.

It stands before the supervisor, in a process of its own: what a stranger's
connections exhaust is not the supervisor's.
"""

from __future__ import annotations

__all__ = ["gate"]

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
import zmq.auth.asyncio

from .._keys import Keys
from .._sockets import LOOKING
from ..control import NoSupervisorError
from ..errors import PpdError
from ..messages import ControlReply, ControlRequest, MessageError, decode, encode
from .line import ControlLine
from .purses import Purses

_LOG = logging.getLogger(__name__)

_DOMAIN = "ppd"
_MAX_BYTES = 1 << 20
_BACKLOG = 50
_HANDSHAKE_MS = 5000
_HEARTBEAT_MS = 10_000
_QUEUE = 100
_AT_ONCE = 16
_LINE_SECONDS = 6.0
_RATE, _BURST = 20.0, 100.0


@contextlib.asynccontextmanager
async def gate(host: str, port: int, folder: Path, socket_dir: Path) -> AsyncIterator[str]:
    """Let in who has a key, in this event loop.

    Parameters
    ----------
    host : `str`
        Where to listen.
    port : `int`
        Its port; 0: any that is free.
    folder : `pathlib.Path`
        Folder of keys, see `ppd._keys`.
    socket_dir : `pathlib.Path`
        The supervisor's folder of sockets.

    Yields
    ------
    address : `str`
        For ``ppdctl --connect``.

    Raises
    ------
    OSError
        Raised if the address can't be had.
    ppd.errors.PpdError
        Raised if there is no key.
    """
    keys = Keys(folder)
    public, secret = keys.own()
    context = zmq.asyncio.Context()
    authenticator = zmq.auth.asyncio.AsyncioAuthenticator(context)
    line = ControlLine(socket_dir, timeout=_LINE_SECONDS)
    try:
        authenticator.start()
        authenticator.configure_curve_callback(_DOMAIN, _Known(keys))
        socket = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ZAP_DOMAIN, _DOMAIN.encode()),
            (zmq.CURVE_SERVER, 1),
            (zmq.CURVE_PUBLICKEY, public),
            (zmq.CURVE_SECRETKEY, secret),
            (zmq.MAXMSGSIZE, _MAX_BYTES),
            (zmq.BACKLOG, _BACKLOG),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.RCVHWM, _QUEUE),
            (zmq.SNDHWM, _QUEUE),
            (zmq.LINGER, 0),
            (zmq.IPV6, 1 if ":" in host else 0),
        ):
            socket.setsockopt(option, value)
        _bind(socket, f"tcp://{f'[{host}]' if ':' in host else host}:{port or '*'}")
        answering = asyncio.create_task(_Gate(socket, keys, line).run())
        try:
            yield socket.getsockopt_string(zmq.LAST_ENDPOINT)
        finally:
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering
    finally:
        with contextlib.suppress(zmq.ZMQError):
            authenticator.stop()
        line.close()
        context.destroy(linger=0)


class _Known:
    """What the authenticator asks about a key. It ends with the first error: there is none."""

    def __init__(self, keys: Keys):
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        try:
            found = self._keys.find(bytes(key)) is not None
        except Exception:
            _LOG.exception("The keys can't be read.")
            return False
        if not found:
            _LOG.warning("A connection by a key that nobody has is refused: %s", bytes(key).decode())
        return found


class _Gate:
    """Answers, a bounded number of requests at once."""

    def __init__(self, socket: zmq.asyncio.Socket, keys: Keys, line: ControlLine):
        self._socket = socket
        self._keys = keys
        self._line = line
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._purses = Purses()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take requests until cancelled."""
        try:
            while True:
                frames: list[Any] = await self._socket.recv_multipart(copy=False)
                await self._places.acquire()
                task = asyncio.create_task(self._answer(frames))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        finally:
            for task in self._tasks:
                task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("A request could not be answered.", exc_info=task.exception())

    async def _answer(self, frames: list[Any]) -> None:
        *envelope, body = frames
        reply = await self._reply(str(body.get("User-Id")), body.bytes)
        # One who is gone gets none.
        with contextlib.suppress(zmq.ZMQError):
            await self._socket.send_multipart([*(f.bytes for f in envelope), encode(reply)], zmq.NOBLOCK)

    async def _reply(self, key: str, body: bytes) -> ControlReply:
        # A connection outlives its key's file: each request is looked at.
        found = self._keys.find(key.encode())
        if found is None:
            return ControlReply(ok=False, code="forbidden", error="Your key has been removed.")
        role, name = found
        if not self._purses.pays(name, _RATE, _BURST):
            return ControlReply(ok=False, code="unavailable", error="Too many requests; wait a while.")
        try:
            request = decode(body)
        except MessageError as e:
            return ControlReply(ok=False, code="malformed", error=str(e))
        if not isinstance(request, ControlRequest):
            return ControlReply(ok=False, code="malformed", error=f"{type(request).__name__} is no request")
        if request.command not in LOOKING:
            if role != "change":
                _LOG.warning("%s, who may look, has asked to %s: refused.", name, request.command)
                error = f"The key {name} is for looking, not to {request.command}."
                return ControlReply(ok=False, code="forbidden", error=error)
            _LOG.info("%s has asked from another machine to %s.", name, request.command)
        try:
            return await self._line.request(request)
        except (NoSupervisorError, PpdError) as e:
            return ControlReply(ok=False, code="unavailable", error=str(e))


def _bind(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as e:
        number = e.errno if e.errno in errno.errorcode else errno.EADDRNOTAVAIL
        raise OSError(number, f"{endpoint}: {e.strerror}") from e
