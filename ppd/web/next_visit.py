"""``POST /next-visit``: visits that are announced by HTTP, where that is wanted.

An answer of 200 means that the visit is in the journal, not that it has been processed.
What comes while the supervisor has not answered goes to it in one request, and so into
the journal by one fsync: 189 detectors are announced within a second.
"""

from __future__ import annotations

__all__ = ["add_next_visit"]

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import web

from .._limits import MAX_ANNOUNCED
from ..control import NoSupervisorError
from ..messages import ControlRequest
from .cloud_events import CloudEventError, read_events
from .door import HEADERS, NEXT_VISIT, Limits
from .line import ControlLine

_MAX_WAITING = 1000
_MAX_EVENTS = 400
_MAX_BODY_BYTES = 512 << 10
# A message for the supervisor holds many of them.
_MAX_VISIT_BYTES = 16 << 10
_RETRY_SECONDS = 5
_MAX_ERROR = 300

# Of many, the first that fits one of them is the answer for all: who may try again should.
_STATUS = {"unavailable": 503, "defect": 500, "malformed": 400, "stale": 403, "ignored": 422}
_DONE = ("ok", "duplicate")


class _Announcer:
    """Takes announcements to the supervisor, those that wait together.

    Parameters
    ----------
    line : `ppd.web.line.ControlLine`
        To the supervisor.
    """

    def __init__(self, line: ControlLine):
        self._line = line
        self._waiting: list[tuple[Any, asyncio.Future[dict[str, str]]]] = []
        self._news = asyncio.Event()

    async def announce(self, messages: Sequence[Any]) -> list[dict[str, str]]:
        """Announce visits, and await ``code`` and ``error`` of each."""
        if len(self._waiting) + len(messages) > _MAX_WAITING:
            return [{"code": "unavailable", "error": "Too many announcements wait."}] * len(messages)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in messages]
        self._waiting += zip(messages, futures, strict=True)
        self._news.set()
        return await asyncio.gather(*futures)

    async def run(self) -> None:
        """Take them to the supervisor, for ever."""
        while True:
            await self._news.wait()
            some, self._waiting = self._waiting[:MAX_ANNOUNCED], self._waiting[MAX_ANNOUNCED:]
            if not self._waiting:
                self._news.clear()
            # Who asked may have gone; then nobody asks for the answer.
            some = [(message, future) for message, future in some if not future.done()]
            if some:
                for (_, future), answer in zip(some, await self._ask([m for m, _ in some]), strict=True):
                    if not future.done():
                        future.set_result(answer)

    async def _ask(self, messages: Sequence[Any]) -> list[dict[str, str]]:
        code, error = "unavailable", "ppd does not take announcements."
        try:
            reply = await self._line.request(ControlRequest(command="announce", visits=tuple(messages)))
        except NoSupervisorError as e:
            return [{"code": "unavailable", "error": str(e)}] * len(messages)
        except Exception as e:
            code, error = "malformed", f"It can't be passed on: {type(e).__name__}: {e}"[:_MAX_ERROR]
        else:
            judged = reply.result.get("judged")
            if reply.ok and isinstance(judged, list) and len(judged) == len(messages):
                return judged
            code, error = "malformed" if reply.code == "malformed" else code, reply.error or error
        if len(messages) == 1:
            return [{"code": code, "error": error}]
        # One that can't even be sent, or read, takes none of the others with it.
        return [(await self._ask([message]))[0] for message in messages]


def add_next_visit(app: web.Application, line: ControlLine, limits: Limits) -> None:
    """Add the route.

    Parameters
    ----------
    app : `aiohttp.web.Application`
        The application.
    line : `ppd.web.line.ControlLine`
        To the supervisor.
    limits : `ppd.web.door.Limits`
        How long a request may take to come.
    """
    announcer = _Announcer(line)

    async def next_visit(request: web.Request) -> web.Response:
        if "Origin" in request.headers:
            # Browsers say so, whatever name has led them here; no service does.
            raise web.HTTPForbidden(text="Not from a page.\n")
        body = await _read(request, limits)
        try:
            messages = read_events(request.content_type, request.headers, body)
        except CloudEventError as e:
            raise web.HTTPBadRequest(text=f"That is no CloudEvent: {e}.\n") from None
        if len(messages) > _MAX_EVENTS:
            raise web.HTTPBadRequest(text=f"More than {_MAX_EVENTS} events.\n")
        if any(map(_too_large, messages)):
            raise web.HTTPBadRequest(text="One of that size is no nextVisit.\n")
        answers = await announcer.announce(messages)
        codes = {answer["code"] for answer in answers}
        status = next((s for code, s in _STATUS.items() if code in codes), 200 if codes <= {*_DONE} else 500)
        headers = HEADERS | ({"Retry-After": str(_RETRY_SECONDS)} if status == 503 else {})
        return web.json_response({"announced": answers}, status=status, headers=headers)

    async def announcing(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(announcer.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app.router.add_post(NEXT_VISIT, next_visit)
    app.cleanup_ctx.append(announcing)


def _too_large(message: Any) -> bool:
    try:
        return len(json.dumps(message)) > _MAX_VISIT_BYTES
    except RecursionError:
        return True


async def _read(request: web.Request, limits: Limits) -> bytes:
    """Read the body; it may be larger than what a page sends."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise web.HTTPRequestEntityTooLarge(_MAX_BODY_BYTES, len(body))
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The request's body did not come.\n") from None
    return bytes(body)
