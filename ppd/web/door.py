"""Who may come in, how many, and for how long: the limits of the page's server."""

from __future__ import annotations

__all__ = ["ENDLESS", "HEADERS", "NEXT_VISIT", "Door", "Limits"]

import asyncio
import collections
import dataclasses
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .purses import Purses

_LOG = logging.getLogger(__name__)

HEADERS = {
    # Nothing but our own files, no inline script, nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What each answer bears."""

ENDLESS = frozenset({"/events"})
"""Paths whose answers end when the page is closed."""

NEXT_VISIT = "/next-visit"
"""Path where services announce visits, many at once and by whatever name they know us."""

_COMING_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much is too much."""

    connections: int = 100
    """Open connections in all; one more is closed at once."""
    streams: int = 30
    """Pages that are told what changes, in all."""
    idle_seconds: float = 10.0
    """How long a connection may be open without a whole request."""
    body_bytes: int = 4096
    """The largest request body."""
    body_seconds: float = 5.0
    """How long it may take to come."""
    line_bytes: int = 2048
    """The longest request line."""
    header_bytes: int = 4096
    """The longest header."""
    rate: float = 20.0
    """Requests a second from one address, in the long run."""
    burst: float = 80.0
    """And how many at once: a page takes about ten."""
    visits_rate: float = 200.0
    """Announcements a second from one address, in the long run."""
    visits_burst: float = 1000.0
    """And how many at once: one for each detector."""
    visits_connections: int = 400
    """Open connections in all, where announcements are taken."""
    answer_seconds: float = 15.0
    """How long an answer may take, but for a stream."""


class Door:
    """Keeps the limits.

    Parameters
    ----------
    limits : `Limits`
        The limits.
    host : `str`
        Where we listen: a name under which we may be asked for.
    visits : `bool`, optional
        Whether announcements are taken.
    """

    def __init__(self, limits: Limits, host: str, *, visits: bool = False):
        self._visits = visits
        self._connections = limits.visits_connections if visits else limits.connections
        self._limits = limits
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        self._since: dict[RequestHandler, float] = {}
        self._coming: dict[RequestHandler, float] = {}
        self._busy: collections.Counter[RequestHandler] = collections.Counter()
        self._purses = Purses()

    def admit(self, server: web.Server) -> asyncio.Protocol:
        """Make the protocol of a new connection: the server's, or one that hangs up."""
        # Several may be let in before the server hears of the first of them.
        now, there = time.monotonic(), server.connections
        self._coming = {h: t for h, t in self._coming.items() if h not in there and now < t + _COMING_SECONDS}
        if len(there) + len(self._coming) >= self._connections:
            return _HangUp()
        handler = server()
        self._since[handler] = self._coming[handler] = now
        return handler

    async def sweep(self, server: web.Server) -> None:
        """Close connections that send nothing, for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._limits.idle_seconds / 4))
            latest = time.monotonic() - self._limits.idle_seconds
            there = set(server.connections)
            for handler in list(self._since):
                if handler not in there:
                    # It is not there yet, or not any more.
                    if self._since[handler] < latest:
                        del self._since[handler]
                elif self._since[handler] < latest and not self._busy[handler]:
                    del self._since[handler]
                    handler.force_close()
                    if handler.transport is not None:
                        handler.transport.abort()

    def check(self, request: web.BaseRequest) -> None:
        """See whether a request is one to answer.

        Raises
        ------
        aiohttp.web.HTTPException
            Raised if not.
        """
        if self._visits and request.path == NEXT_VISIT:
            if not self._purses.pays(
                f"visits {request.remote}", self._limits.visits_rate, self._limits.visits_burst
            ):
                raise web.HTTPServiceUnavailable(text="Too many at once.\n", headers={"Retry-After": "2"})
            return
        if not self._knows(request.headers.get("Host", "")):
            # A page of another site whose name leads here (DNS rebinding).
            raise web.HTTPMisdirectedRequest(text="This host is not known by that name.\n")
        if not self._purses.pays(request.remote or "", self._limits.rate, self._limits.burst):
            raise web.HTTPTooManyRequests(text="Too many requests.\n", headers={"Retry-After": "2"})

    def _knows(self, host: str) -> bool:
        name, bracket, _ = host.removeprefix("[").partition("]")
        if not bracket:
            name = host.rpartition(":")[0] if ":" in host else host
        try:
            # An address can't be made to lead elsewhere.
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name.lower() in self._names

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Check each request, end what takes too long, and put `HEADERS` on each answer."""
        protocol = request.protocol
        self._busy[protocol] += 1
        try:
            self.check(request)
            if request.path in ENDLESS:
                return await handler(request)
            async with asyncio.timeout(self._limits.answer_seconds):
                return await handler(request)
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text="That took too long.\n", headers=HEADERS) from None
        except web.HTTPException as e:
            e.headers.update(HEADERS)
            raise
        except Exception:
            _LOG.exception("%s %s could not be answered.", request.method, request.path)
            raise web.HTTPInternalServerError(
                text="A mistake in ppd; its log has it.\n", headers=HEADERS
            ) from None
        finally:
            self._busy[protocol] -= 1
            if not self._busy[protocol]:
                del self._busy[protocol]
            self._since[protocol] = time.monotonic()


class _HangUp(asyncio.Protocol):
    """Takes a connection and ends it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
