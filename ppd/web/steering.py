"""What changes something: pause, resume and cancel, for who has the token."""

from __future__ import annotations

__all__ = ["add_steering"]

import asyncio
import hmac
import json
import logging
from pathlib import Path

import pydantic
from aiohttp import web

from ..control import NoSupervisorError
from ..messages import ControlRequest, WebSetup
from .door import HEADERS, Limits
from .line import ControlLine

_LOG = logging.getLogger(__name__)

_COMMANDS = ("pause", "resume", "cancel")
_FIELDS = {"detectors", "group", "reason"}
_MIN_TOKEN, _MAX_TOKEN = 16, 1024


def add_steering(app: web.Application, setup: WebSetup, line: ControlLine, limits: Limits) -> None:
    """Add the routes ``POST /api/pause``, ``/api/resume`` and ``/api/cancel``.

    Parameters
    ----------
    app : `aiohttp.web.Application`
        The application.
    setup : `ppd.messages.WebSetup`
        Has the file of the token, if there is one.
    line : `ppd.web.line.ControlLine`
        To the supervisor.
    limits : `ppd.web.door.Limits`
        How large a request may be, and how long it may take to come.
    """

    async def steer(request: web.Request) -> web.Response:
        command = request.match_info["command"]
        if command not in _COMMANDS:
            raise web.HTTPNotFound(text="There is no such command.\n")
        await _authorize(request, setup.token_file)
        wanted = await _read(request, command, limits)
        try:
            reply = await line.request(wanted)
        except NoSupervisorError as e:
            raise web.HTTPServiceUnavailable(text=f"{e}\n") from None
        _LOG.warning(
            "The page, from %s, has asked to %s %s detectors %s: %s",
            request.remote,
            command,
            wanted.group or "",
            list(wanted.detectors),
            "done" if reply.ok else reply.error,
        )
        body = {"ok": reply.ok, "error": reply.error, "result": reply.result}
        return web.json_response(body, status=200 if reply.ok else 409, headers=HEADERS)

    app.router.add_post("/api/{command}", steer)


async def _authorize(request: web.Request, file: str | None) -> None:
    """See that the token is there, in a header that no other site can send."""
    if file is None:
        raise web.HTTPForbidden(text="This page only shows: http_token_file is not set.\n")
    try:
        # Read anew each time: another token needs no restart.
        token = await asyncio.to_thread(_read_token, Path(file))
    except OSError as e:
        _LOG.error("The token %s can't be read: %s", file, e)
        raise web.HTTPServiceUnavailable(text="The token's file can't be read.\n") from None
    if len(token) < _MIN_TOKEN:
        _LOG.error("The token in %s has fewer than %d characters: nothing is done.", file, _MIN_TOKEN)
        raise web.HTTPForbidden(text="The token in http_token_file is too short.\n")
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token):
        raise web.HTTPUnauthorized(text="Wrong token.\n", headers={"WWW-Authenticate": "Bearer"})


def _read_token(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_MAX_TOKEN).strip()


async def _read(request: web.Request, command: str, limits: Limits) -> ControlRequest:
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Send application/json.\n")
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = json.loads(await request.read())
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The request's body did not come.\n") from None
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="That is no JSON.\n") from None
    if not isinstance(data, dict) or data.keys() - _FIELDS:
        raise web.HTTPBadRequest(text=f"An object with {', '.join(sorted(_FIELDS))} is wanted.\n")
    if not data.get("detectors"):
        # All of ppd is stopped from a shell, not by one click.
        raise web.HTTPBadRequest(text="detectors is a list with at least one detector.\n")
    if command == "cancel" and not data.get("group"):
        raise web.HTTPBadRequest(text="group says of which visit.\n")
    try:
        return ControlRequest.model_validate({"command": command, **data})
    except pydantic.ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, x['loc']))}: {x['msg']}" for x in e.errors()[:3])
        raise web.HTTPBadRequest(text=f"{faults}\n") from None
