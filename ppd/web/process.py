"""The status page's process.

The supervisor starts it, as ``python -m ppd.web.process STATE_DIR``, and tells
it by one JSON line on standard input what to show; it says on standard output
how it is.  It ends when that input does, and the kernel ends it with the
supervisor.  It works at a low priority: no detector-visit waits for a page.
"""

from __future__ import annotations

__all__ = ["main"]

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import sys
import time
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pydantic
from aiohttp import web

from .. import landlock
from ..errors import PpdError
from ..logs import setup_logging
from ..messages import MessageError, WebSetup, WebState, decode, encode
from .app import make_app
from .door import Door, Limits
from .journal import HistoryError, past
from .line import ControlLine
from .picture import Past
from .watch import Watch

_LOG = logging.getLogger(__name__)
# The server's own, which has a stack trace for each request that is no HTTP: anybody could fill the
# log with them. Mistakes of ours are logged by the door.
_SERVER_LOG = logging.getLogger(f"{__name__}.server")
_SERVER_LOG.setLevel(logging.CRITICAL)

_SETUP_SECONDS = 30.0
_STATE_SECONDS = 5.0
_SOON_SECONDS = 0.1
_AGAIN_SECONDS = 3.0
_CHUNK_BYTES = 1 << 16
_MAX_SETUP_BYTES = 4 << 20
_BACKLOG = 50
_END_SECONDS = 1.0


def main() -> int:
    """Serve the page until the supervisor says to end, or is gone.

    Returns
    -------
    code : `int`
        0; 1 if nobody has said what to show.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    said = os.dup(1)
    os.set_blocking(said, False)
    # What a library prints is no message.
    os.dup2(2, 1)
    setup = _await_setup()
    if setup is None:
        return 1
    setup_logging(types.SimpleNamespace(**setup.log))
    if setup.hidden is not None:
        try:
            # What strangers may talk to needs nothing of it. There is no thread yet.
            landlock.hide(tuple(map(Path, setup.hidden)))
        except OSError as e:
            _LOG.warning("The status page can read configuration and credentials: %s.", e)
    asyncio.run(_serve(setup, said))
    return 0


def _await_setup() -> WebSetup | None:
    data, deadline = b"", time.monotonic() + _SETUP_SECONDS
    while b"\n" not in data and len(data) < _MAX_SETUP_BYTES:
        ready, _, _ = select.select([0], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(0, _CHUNK_BYTES) if ready else b""
        if not chunk:
            return None
        data += chunk
    try:
        message = decode(data.partition(b"\n")[0])
    except MessageError as e:
        _LOG.error("The status page was told what it does not understand: %s", e)
        return None
    return message if isinstance(message, WebSetup) else None


async def _serve(setup: WebSetup, said: int) -> None:
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    # Whatever it says now, it says to end; when it is gone there is nothing more to read.
    loop.add_reader(0, end.set)
    teller = asyncio.create_task(_tell_and_serve(setup, said))
    ending = asyncio.create_task(end.wait())
    try:
        await asyncio.wait({teller, ending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(0)
        ending.cancel()
        teller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await teller


async def _tell_and_serve(setup: WebSetup, said: int) -> None:
    """Serve page and gate, each as soon as its address is to be had, and say how they are."""
    parts = {}
    if setup.host is not None:
        parts["http_listen"] = _Part("http_listen", f"{setup.host}:{setup.port}", lambda: serving(setup))
    if setup.gate_host is not None:
        parts["control_listen"] = _Part(
            "control_listen", f"{setup.gate_host}:{setup.gate_port}", lambda: _gate(setup)
        )
    async with asyncio.TaskGroup() as group:
        for part in parts.values():
            group.create_task(part.keep())
        while True:
            troubles = [part.trouble for part in parts.values() if part.trouble]
            page, other = (
                parts[n].address if n in parts else None for n in ("http_listen", "control_listen")
            )
            _say(said, WebState(address=page, gate=other, trouble="; ".join(troubles) or None))
            # Until there is something to say of each it is asked for more often.
            settled = all(part.address or part.trouble for part in parts.values())
            await asyncio.sleep(_STATE_SECONDS if settled else _SOON_SECONDS)


class _Part:
    """One of the things that are served here; the other is not touched by its troubles."""

    def __init__(
        self, setting: str, where: str, serve: Callable[[], contextlib.AbstractAsyncContextManager[str]]
    ):
        self._setting = setting
        self._where = where
        self._serve = serve
        self.address: str | None = None
        self.trouble: str | None = None

    async def keep(self) -> None:
        """Serve it, again and again if need be, until cancelled."""
        while True:
            try:
                async with self._serve() as address:
                    self.address, self.trouble = address, None
                    while True:
                        await asyncio.sleep(_STATE_SECONDS)
            except OSError as e:
                self.trouble = _explain(e, self._where, self._setting)
            except PpdError as e:
                self.trouble = f"{self._setting}: {e}"
            self.address = None
            await asyncio.sleep(_AGAIN_SECONDS)


def _gate(setup: WebSetup) -> contextlib.AbstractAsyncContextManager[str]:
    from .gate import gate

    assert setup.gate_host is not None
    if setup.keys is None:
        raise PpdError("control_keys is not set: who may come is told by its keys.")
    return gate(setup.gate_host, setup.gate_port, Path(setup.keys), Path(setup.socket_dir))


@contextlib.asynccontextmanager
async def serving(setup: WebSetup, limits: Limits | None = None) -> AsyncIterator[str]:
    """Serve the page in this event loop.

    Parameters
    ----------
    setup : `ppd.messages.WebSetup`
        Where, and what to show.
    limits : `ppd.web.door.Limits`, optional
        How much is too much.

    Yields
    ------
    address : `str`
        URL of the page.

    Raises
    ------
    OSError
        Raised if the address can't be had.
    """
    limits = limits or Limits()
    assert setup.host is not None
    line = ControlLine(Path(setup.socket_dir))

    async def read_past() -> Past:
        try:
            return await asyncio.to_thread(past, Path(setup.state_dir))
        except HistoryError as e:
            _LOG.info("Nothing is known from before: %s", e)
            return Past()

    door = Door(limits, setup.host, visits=setup.visits)
    runner = web.AppRunner(
        make_app(setup, line, Watch(line, read_past), door, limits),
        access_log=None,
        logger=_SERVER_LOG,
        shutdown_timeout=_END_SECONDS,
        max_line_size=limits.line_bytes,
        max_field_size=limits.header_bytes,
        keepalive_timeout=limits.idle_seconds,
        lingering_time=1.0,
        handler_cancellation=True,
    )
    try:
        await runner.setup()
        server = runner.server
        assert server is not None
        listening = await asyncio.get_running_loop().create_server(
            lambda: door.admit(server), setup.host, setup.port, backlog=_BACKLOG, reuse_address=True
        )
        sweeper = asyncio.create_task(door.sweep(server))
        try:
            port = listening.sockets[0].getsockname()[1]
            host = f"[{setup.host}]" if ":" in setup.host else setup.host
            yield f"http://{host}:{port}/"
        finally:
            sweeper.cancel()
            listening.close()
    finally:
        await runner.cleanup()
        line.close()


def _explain(error: OSError, where: str, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{where} is used by another program; set {setting} to another port, or end that one"
    if error.errno == errno.EACCES:
        return f"ppd may not listen on {where}; set {setting} to a port above 1023"
    return f"it can't listen on {where}: {error.strerror or error}"


def _say(descriptor: int, message: pydantic.BaseModel) -> None:
    # A supervisor that does not read has gone, or is about to hear it.
    with contextlib.suppress(OSError):
        os.write(descriptor, encode(message) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
