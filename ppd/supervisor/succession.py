"""A fresh nursery in the place of an old one, without a gap in service."""

from __future__ import annotations

__all__ = ["Succession"]

import contextlib
import logging
import time
from typing import Any

import psutil

from ..config import Settings
from ..messages import NurseryReady, Retire, SetupFailed
from .nursery_client import NurseryClient

_LOG = logging.getLogger(__name__)

_START_SECONDS = 120.0
# A successor that can't be had is no harm now: the old nursery goes on.
_AGAIN_SECONDS = 600.0


class Succession:
    """The nursery that is to come, and those that end with their last child.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._next: NurseryClient | None = None
        self._begun = 0.0
        self._not_before = 0.0
        self._retiring: list[NurseryClient] = []

    @property
    def pids(self) -> set[int]:
        """Process IDs of these nurseries."""
        return {c.pid for c in (*self._retiring, *([self._next] if self._next else []))}

    def children(self) -> set[int]:
        """Process IDs of the children of retired nurseries."""
        found = set()
        for client in self._retiring:
            with contextlib.suppress(psutil.Error):
                found |= {p.pid for p in psutil.Process(client.pid).children()}
        return found

    def begin(self) -> None:
        """Start a successor, if there is none and the last try is not too fresh."""
        if self._next is None and time.monotonic() >= self._not_before:
            self._begun = time.monotonic()
            self._next = NurseryClient(self._settings)
            _LOG.info("A fresh nursery (pid %d) starts; the old one works until it is ready.", self._next.pid)

    def heir(self) -> tuple[NurseryClient, NurseryReady] | None:
        """Return the successor once it is ready; it is the caller's then."""
        if self._next is None:
            return None
        fault = None
        for message in self._next.receive():
            if isinstance(message, NurseryReady):
                heir, self._next = self._next, None
                return heir, message
            if isinstance(message, SetupFailed):
                fault = message.reason
        if fault is None and not self._next.alive():
            fault = "it ended before it was ready"
        if fault is None and time.monotonic() > self._begun + _START_SECONDS:
            fault = f"it was not ready in {_START_SECONDS:.0f} s"
        if fault is not None:
            _LOG.error("No fresh nursery can be had (%s); the old one goes on.", fault)
            self._next.stop(1.0)
            self._next = None
            self._not_before = time.monotonic() + _AGAIN_SECONDS
        return None

    def retire(self, client: NurseryClient) -> None:
        """Let a nursery end with its last child."""
        client.send(Retire())
        self._retiring.append(client)

    def receive(self) -> list[Any]:
        """Return what the retiring nurseries have said."""
        return [message for client in self._retiring for message in client.receive()]

    def ended(self) -> bool:
        """Forget retired nurseries that have ended; whether one ended before its children did."""
        unasked = False
        for client in list(self._retiring):
            client.flush()
            if not client.alive():
                unasked |= client.returncode != 0
                client.close()
                self._retiring.remove(client)
        return unasked

    def stop(self, timeout: float) -> None:
        """End them all and their children; bounded."""
        deadline = time.monotonic() + timeout
        for client in (*self._retiring, *([self._next] if self._next else [])):
            client.stop(max(min(timeout, 0.5), deadline - time.monotonic()))
        self._retiring, self._next = [], None
