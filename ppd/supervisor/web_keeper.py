"""Keeping the status page's process at work: start, restart with back-off, an end to one that hangs.

Whatever becomes of it is a fault in ``ppdctl status`` and nothing else: no
visit waits for the page.
"""

from __future__ import annotations

__all__ = ["WebKeeper"]

import logging
import os
import sys
import time
from typing import Any

from .._setting_types import split_listen
from ..config import Settings
from ..focalplane import FocalPlane
from ..messages import WebSetup, WebState
from .hidden import hidden_from_page
from .line_process import GIVING_WAY, LineProcess, dying_with_us

_LOG = logging.getLogger(__name__)

_MAX_DELAY = 60.0
# One that lived this long was a good one: the next delay is short again.
_GOOD_SECONDS = 60.0
# It says every five seconds how it is.
_SILENT_SECONDS = 60.0
# All that it gets of our environment: no credentials, nor where central is.
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
)


class WebKeeper:
    """The supervisor's status page: there is one where that is wanted, or there will soon be.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    focal_plane : `ppd.focalplane.FocalPlane`
        What the page draws.
    """

    def __init__(self, settings: Settings, focal_plane: FocalPlane):
        self._shapes = [
            {
                "id": d.id,
                "name": d.name,
                "x": (d.x_min, d.x_max, d.x_max, d.x_min),
                "y": (d.y_min, d.y_min, d.y_max, d.y_max),
            }
            for d in focal_plane.detectors
        ]
        self._process: LineProcess | None = None
        self._failures = 0
        self._restart_at = 0.0
        self._begun = self._heard_at = 0.0
        self._replacing = False
        self._fault: str | None = None
        self.state = WebState()
        """What it has said last of itself."""
        self._setup = self._make_setup(settings)
        self._begin()

    @property
    def pids(self) -> set[int]:
        """Its process ID, if it runs."""
        return {self._process.pid} if self._process is not None else set()

    def fileno(self) -> int:
        """Descriptor that becomes readable when it says something; -1: there is none now."""
        return -1 if self._process is None else self._process.fileno()

    def fault(self) -> str | None:
        """What an operator should know."""
        trouble = self._fault or self.state.trouble
        return f"web: {trouble}" if trouble and self._setup is not None else None

    def describe(self) -> dict[str, Any]:
        """Describe it as a JSON object: ``address``, where it is served, ``gate`` and ``trouble``."""
        return {
            "address": self.state.address,
            "gate": self.state.gate,
            "trouble": self._fault or self.state.trouble,
        }

    def turn(self) -> None:
        """Hear what it says, and look after it."""
        if self._process is not None:
            for message in self._process.receive():
                self._heard_at = time.monotonic()
                if isinstance(message, WebState):
                    if message.address and message.address != self.state.address:
                        _LOG.info("The status page is at %s", message.address)
                    if message.gate and message.gate != self.state.gate:
                        _LOG.info("Other machines may ask at %s", message.gate)
                    if message.trouble and message.trouble != self.state.trouble:
                        _LOG.error("Status page or gate are not served: %s", message.trouble)
                    self.state, self._fault = message, None
            self._process.flush()
        self._look_after()

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings: begin anew if they are about the page."""
        setup = self._make_setup(settings)
        if setup == self._setup:
            return
        self._setup = setup
        self._failures, self._restart_at, self._fault = 0, 0.0, None
        if self._process is not None:
            self._replacing = True
            self._process.kill()

    def stop(self, timeout: float) -> None:
        """End it; bounded."""
        self._setup = None
        if self._process is not None:
            self._process.stop(timeout)
            self._process = None

    def _make_setup(self, settings: Settings) -> WebSetup | None:
        page, other = settings.http_listen, settings.control_listen
        if page is None and other is None:
            return None
        host, port = (None, 0) if page is None else split_listen(page)
        gate_host, gate_port = (None, 0) if other is None else split_listen(other)
        data = settings.to_dict()
        hidden = hidden_from_page(settings, os.environ)
        return WebSetup.model_validate(
            {
                "instrument": settings.instrument,
                "detectors": self._shapes,
                "host": host,
                "port": port,
                "gate_host": gate_host,
                "gate_port": gate_port,
                "keys": data["control_keys"],
                "token_file": data["http_token_file"],
                "visits": settings.http_visits,
                "socket_dir": data["socket_dir"],
                "state_dir": data["state_dir"],
                "hidden": None if hidden is None else tuple(map(str, hidden.paths)),
                "log": {name: value for name, value in data.items() if name.startswith("log_")},
            }
        )

    def _begin(self) -> None:
        if self._setup is None:
            return
        self._begun = self._heard_at = time.monotonic()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            self._process = LineProcess(
                "status page",
                # The state directory tells people whose page this is.
                [sys.executable, "-m", "ppd.web.process", self._setup.state_dir],
                environment,
                self._setup,
                before=dying_with_us(GIVING_WAY),
                own_session=True,
            )
        except OSError as e:
            self._failed(f"its process can't be started: {e}")

    def _look_after(self) -> None:
        now = time.monotonic()
        if self._process is None:
            if self._setup is not None and now >= self._restart_at:
                self._begin()
        elif not self._process.alive():
            code = self._process.returncode
            self._process.close()
            self._process = None
            if self._replacing:
                self._replacing, self.state = False, WebState()
            else:
                self._failed(f"its process ended unasked ({code})")
        elif now > self._heard_at + _SILENT_SECONDS:
            self._fault = f"it said nothing for {_SILENT_SECONDS:.0f} s"
            self._heard_at = now
            self._process.kill()

    def _failed(self, why: str) -> None:
        now = time.monotonic()
        self._failures = 1 if now > self._begun + _GOOD_SECONDS else self._failures + 1
        delay = min(_MAX_DELAY, 2.0 ** (self._failures - 1))
        self._restart_at = now + delay
        self._fault = self._fault or why
        self.state = WebState()
        _LOG.error("The status page is away, %s; it begins anew in %.0f s. All else goes on.", why, delay)
