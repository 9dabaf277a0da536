"""The one look at the supervisor that all open pages share."""

from __future__ import annotations

__all__ = ["Listener", "Watch"]

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..control import NoSupervisorError
from ..messages import ControlRequest
from .line import ControlLine
from .picture import Past, Picture, changes, make_picture

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# A page that takes nothing for so many looks is cut; it comes back by itself.
_QUEUE = 20


class Listener:
    """One open page: what it has still to be told."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        self.cut = asyncio.Event()
        """Set when it was too slow, or all is over."""

    def tell(self, message: bytes) -> None:
        """Queue a message, or give up on who doesn't take them."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.cut.set()


class Watch:
    """Looks at the supervisor once a second while anybody listens, and tells all what has changed.

    Parameters
    ----------
    line : `ppd.web.line.ControlLine`
        To the supervisor.
    past : callable
        Reads what the journal knows from before; awaited when another
        supervisor answers.
    """

    def __init__(self, line: ControlLine, past: Callable[[], Awaitable[Past]]):
        self._line = line
        self._read_past = past
        self._past = Past()
        self._started: float | None = None
        self._looked = -_LOOK_SECONDS
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._listeners: set[Listener] = set()
        self.picture: Picture | None = None
        """As it was when the supervisor answered last."""
        self.status: dict[str, Any] | None = None
        """Its whole status then."""
        self.silent_since: float | None = time.time()
        """Since when it does not answer, Unix seconds; `None`: it does."""

    def listen(self) -> Listener:
        """Add a listener; what it is told first is all there is."""
        listener = Listener()
        if self.picture is not None:
            listener.tell(_event("picture", self.picture))
        if self.silent_since is not None and self.picture is not None:
            listener.tell(_event("silent", {"since": self.silent_since}))
        self._listeners.add(listener)
        self._wanted.set()
        return listener

    def forget(self, listener: Listener) -> None:
        """Tell a listener no more."""
        self._listeners.discard(listener)
        if not self._listeners:
            self._wanted.clear()

    def end(self) -> None:
        """Let go of all listeners."""
        for listener in self._listeners:
            listener.cut.set()

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    async def run(self) -> None:
        """Look and tell, for ever."""
        while True:
            await self._wanted.wait()
            begin = time.monotonic()
            try:
                await self.look()
            except Exception:
                _LOG.exception("A look at the supervisor failed; the next one follows.")
            self._tell(_event("beat", {"time": round(time.time(), 1)}))
            await asyncio.sleep(max(0.1, _LOOK_SECONDS - (time.monotonic() - begin)))

    async def look(self) -> bool:
        """Look at the supervisor, unless that was just done; whether it answers."""
        async with self._lock:
            # Somewhat less than the pause between looks, which is never exact.
            if time.monotonic() - self._looked >= 0.9 * _LOOK_SECONDS:
                await self._look()
                self._looked = time.monotonic()
        return self.silent_since is None

    async def _look(self) -> None:
        try:
            status = await self._line.request(ControlRequest(command="status"))
            overview = await self._line.request(ControlRequest(command="detectors"))
            if not (status.ok and overview.ok):
                raise NoSupervisorError(status.error or overview.error or "it refuses to tell")
        except NoSupervisorError:
            if self.silent_since is None:
                self.silent_since = round(time.time(), 1)
            self._tell(_event("silent", {"since": self.silent_since}))
            return
        if overview.result["started"] != self._started:
            self._past = await self._read_past()
            self._started = overview.result["started"]
        self.status = status.result
        picture = make_picture(status.result, overview.result, self._past, time.time())
        before, self.picture = self.picture, picture
        if before is None or self.silent_since is not None:
            self._tell(_event("picture", picture))
        elif changed := changes(before, picture):
            self._tell(_event("change", changed))
        self.silent_since = None

    def _tell(self, message: bytes) -> None:
        for listener in self._listeners:
            listener.tell(message)


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
