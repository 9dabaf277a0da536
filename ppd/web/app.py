"""What the page's server answers to what."""

from __future__ import annotations

__all__ = ["make_app"]

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pydantic
from aiohttp import web

from ..control import NoSupervisorError
from ..messages import ControlRequest, WebSetup
from .door import HEADERS, Door, Limits
from .journal import HistoryError, detector_visits, one_detector, tail_of_log
from .line import ControlLine
from .next_visit import add_next_visit
from .steering import add_steering
from .watch import Listener, Watch

_STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_WRITE_SECONDS = 10.0
# Readers of the journal at once; a page asks for one thing at a time.
_READERS = 2
_MAX_GROUP = 200


class _Pages:
    """The handlers, and what they share."""

    def __init__(self, setup: WebSetup, line: ControlLine, watch: Watch, limits: Limits):
        self._setup = setup
        self._line = line
        self._watch = watch
        self._limits = limits
        self._state_dir = Path(setup.state_dir)
        self._ids = {d.id for d in setup.detectors}
        self._readers = asyncio.Semaphore(_READERS)
        # All that may be served is read once: no request names a file.
        self._files = {p.name: p.read_bytes() for p in _STATIC.iterdir() if p.suffix in _TYPES}

    async def page(self, request: web.Request) -> web.Response:
        return self._file("index.html")

    async def static(self, request: web.Request) -> web.Response:
        return self._file(request.match_info["name"])

    def _file(self, name: str) -> web.Response:
        body = self._files.get(name)
        if body is None:
            raise web.HTTPNotFound(text="There is no such file.\n")
        kind = _TYPES[Path(name).suffix]
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)

    async def focal_plane(self, request: web.Request) -> web.Response:
        """Geometry, and whether the page may change anything."""
        return _json(
            {
                "instrument": self._setup.instrument,
                "detectors": [
                    {"id": d.id, "name": d.name, "corners": list(zip(d.x, d.y, strict=True))}
                    for d in self._setup.detectors
                ],
                "steering": self._setup.token_file is not None,
            }
        )

    async def status(self, request: web.Request) -> web.Response:
        if not await self._watch.look():
            raise _unavailable("ppd does not answer.")
        return _json(self._watch.status)

    async def detector(self, request: web.Request) -> web.Response:
        number = self._detector(request)
        return _json({"visits": await self._read(detector_visits, self._state_dir, number)})

    async def detector_visit(self, request: web.Request) -> web.Response:
        """History from the journal; inputs from the supervisor, which forgets them some visits later."""
        number, group = self._detector(request), _group(request)
        found = await self._read(one_detector, self._state_dir, group, number)
        try:
            reply = await self._line.request(ControlRequest(command="inputs", group=group, detector=number))
            inputs = reply.result if reply.ok else {"error": reply.error}
        except NoSupervisorError as e:
            inputs = {"error": str(e)}
        return _json({**found, "found_inputs": inputs})

    async def log(self, request: web.Request) -> web.Response:
        number, group = self._detector(request), _group(request)
        text = request.query.get("attempt")
        if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise web.HTTPBadRequest(text="attempt is a number.\n")
        attempt = int(text) if text is not None else None
        return _json(await self._read(tail_of_log, self._state_dir, group, number, attempt))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Tell what changes, until the page is closed or takes it too slowly."""
        if self._watch.listeners >= self._limits.streams:
            raise _unavailable("Too many pages are open.")
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        listener = self._watch.listen()
        try:
            await response.write(b"retry: 2000\n\n")
            await _pass_on(listener, response)
        except ConnectionError:
            pass
        finally:
            self._watch.forget(listener)
            # What it did not take is not waited for.
            if request.transport is not None and listener.cut.is_set():
                request.transport.abort()
        return response

    async def healthz(self, request: web.Request) -> web.Response:
        if not await self._watch.look():
            raise _unavailable("ppd does not answer.")
        return web.Response(text="ok\n", headers=HEADERS)

    async def readyz(self, request: web.Request) -> web.Response:
        if not await self._watch.look() or self._watch.picture is None:
            raise _unavailable("ppd does not answer.")
        unready = self._watch.picture["unready"]
        if unready:
            raise _unavailable("; ".join(unready))
        return web.Response(text="ready\n", headers=HEADERS)

    async def metrics(self, request: web.Request) -> web.Response:
        try:
            reply = await self._line.request(ControlRequest.model_validate({"command": "metrics"}))
        except pydantic.ValidationError:
            raise _unavailable("This ppd has no metrics.") from None
        except NoSupervisorError as e:
            raise _unavailable(str(e)) from None
        if not reply.ok or "text" not in reply.result:
            raise _unavailable(reply.error or "This ppd has no metrics.")
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(
            body=str(reply.result["text"]).encode(), headers={**HEADERS, "Content-Type": kind}
        )

    def _detector(self, request: web.Request) -> int:
        text = request.match_info["detector"]
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) in self._ids):
            raise web.HTTPNotFound(text=f"{self._setup.instrument} has no such detector.\n")
        return int(text)

    async def _read[*A, T](self, function: Callable[[*A], T], *arguments: *A) -> T:
        """Read from disk in a thread; a few at a time."""
        async with self._readers:
            try:
                return await asyncio.to_thread(function, *arguments)
            except HistoryError as e:
                raise web.HTTPNotFound(text=f"{e}\n") from None


def make_app(setup: WebSetup, line: ControlLine, watch: Watch, door: Door, limits: Limits) -> web.Application:
    """Make the application.

    Parameters
    ----------
    setup : `ppd.messages.WebSetup`
        What the supervisor has told.
    line : `ppd.web.line.ControlLine`
        To the supervisor.
    watch : `ppd.web.watch.Watch`
        The look at it that is shared.
    door : `ppd.web.door.Door`
        Limits that concern connections and requests.
    limits : `ppd.web.door.Limits`
        All limits.

    Returns
    -------
    app : `aiohttp.web.Application`
        The application; ``watch.run`` runs while it does.
    """
    pages = _Pages(setup, line, watch, limits)
    app = web.Application(middlewares=[door.middleware], client_max_size=limits.body_bytes)
    routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
        "/": pages.page,
        "/static/{name}": pages.static,
        "/api/status": pages.status,
        "/api/focal-plane": pages.focal_plane,
        "/api/detector/{detector}": pages.detector,
        "/api/visits/{group}/{detector}": pages.detector_visit,
        "/api/logs/{group}/{detector}": pages.log,
        "/events": pages.events,
        "/healthz": pages.healthz,
        "/readyz": pages.readyz,
        "/metrics": pages.metrics,
    }
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    add_steering(app, setup, line, limits)
    if setup.visits:
        add_next_visit(app, line, limits)

    async def looking(app: web.Application) -> Any:
        task = asyncio.create_task(watch.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def let_go(app: web.Application) -> None:
        watch.end()

    app.cleanup_ctx.append(looking)
    app.on_shutdown.append(let_go)
    return app


async def _pass_on(listener: Listener, response: web.StreamResponse) -> None:
    """Write what the listener is told, until it was too slow."""
    cut = asyncio.create_task(listener.cut.wait())
    step: asyncio.Task[Any] = cut
    try:
        while not cut.done():
            step = asyncio.create_task(listener.queue.get())
            await asyncio.wait({step, cut}, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                step = asyncio.create_task(response.write(step.result()))
                await asyncio.wait({step, cut}, timeout=_WRITE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    listener.cut.set()
                    return
                step.result()
    finally:
        cut.cancel()
        step.cancel()


def _group(request: web.Request) -> str:
    group = request.match_info["group"]
    if len(group) > _MAX_GROUP or not group.isprintable():
        raise web.HTTPBadRequest(text="That is no group.\n")
    return group


def _json(value: object) -> web.Response:
    return web.json_response(value, headers=HEADERS)


def _unavailable(why: str) -> web.HTTPServiceUnavailable:
    return web.HTTPServiceUnavailable(text=f"{why}\n", headers={"Retry-After": "2"})
