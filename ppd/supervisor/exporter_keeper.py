"""Keeping an exporter at work: start, restart with back-off, an end to calls that hang."""

from __future__ import annotations

__all__ = ["ExporterKeeper"]

import logging
import os
import sys
import time
from typing import Any

from ..config import Settings
from ..messages import Discard, ExporterSetup, ExporterState, Hurry
from .line_process import GIVING_WAY, LineProcess, dying_with_us

_LOG = logging.getLogger(__name__)

_START_SECONDS = 120.0
_MAX_DELAY = 30.0
# An exporter that lived this long was a good one: the next delay is short again.
_GOOD_SECONDS = 60.0


class ExporterKeeper:
    """The supervisor's exporter: there is one, or there will soon be.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._failures = 0
        self._restart_at: float | None = None
        self._hurry = False
        self.ended = False
        """Whether one has ended unasked; for the supervisor to take back."""
        self._fault: str | None = None
        self.state = ExporterState(entries=0, bytes=0)
        """What the exporter has said last of itself."""
        self._process: LineProcess
        self._begin()

    @property
    def pid(self) -> int:
        """Process ID of the last exporter."""
        return self._process.pid

    @property
    def trouble(self) -> str | None:
        """Why nothing is exported; for the operator."""
        return self._fault or self.state.trouble

    def fileno(self) -> int:
        """Descriptor that becomes readable when the exporter says something; it changes with a restart."""
        return self._process.fileno()

    def receive(self) -> list[Any]:
        """Return what the exporter has said of hand-overs, and look after it.

        Returns
        -------
        messages : `list`
            `ppd.messages.Exported` and `ppd.messages.SetAside`.
        """
        messages = []
        for message in self._process.receive():
            self._heard, self._heard_at = True, time.monotonic()
            if isinstance(message, ExporterState):
                self.state = message
                self._fault = None
            else:
                messages.append(message)
        self._look_after()
        return messages

    def discard(self, entries: list[str]) -> None:
        """Let exported hand-overs go: that they are is in the journal."""
        self._process.send(Discard(entries=tuple(entries)))

    def hurry(self) -> None:
        """Export what is there without waiting for fuller batches."""
        if not self._hurry:
            self._hurry = True
            self._process.send(Hurry())

    def reconfigure(self, settings: Settings) -> None:
        """Let the exporter, and each later one, go by other settings."""
        self._settings = settings
        self._process.send(ExporterSetup(settings=settings.to_dict()))

    def flush(self) -> None:
        """Write what the pipe takes now."""
        self._process.flush()

    def stop(self, timeout: float) -> list[Any]:
        """End the exporter after the batch at hand; bounded.

        Returns
        -------
        messages : `list`
            What it has said of hand-overs at the end.
        """
        self._restart_at = None
        if not self._heard and self._process.alive():
            # It imports and would not hear of it for seconds; it has begun nothing yet.
            self._process.kill()
        self._process.stop(timeout)
        return [m for m in self._process.last_words if not isinstance(m, ExporterState)]

    def _begin(self) -> None:
        self._begun = self._heard_at = time.monotonic()
        self._heard = False
        self._process = LineProcess(
            "exporter",
            # The state directory tells people whose exporter this is.
            [sys.executable, "-m", "ppd.supervisor.exporter_process", str(self._settings.state_dir)],
            os.environ,
            ExporterSetup(settings=self._settings.to_dict()),
            # Two exporters at one spool would get in each other's way. And as children do, it gives
            # way: an alert waits for a processor more than an export does.
            before=dying_with_us(GIVING_WAY),
        )
        if self._hurry:
            self._process.send(Hurry())

    @property
    def _patience(self) -> float:
        return self._settings.export_timeout if self._heard else _START_SECONDS

    def _look_after(self) -> None:
        now = time.monotonic()
        if self._restart_at is not None:
            if now >= self._restart_at:
                self._restart_at = None
                self._begin()
        elif not self._process.alive():
            self._failures = 0 if now > self._begun + _GOOD_SECONDS else self._failures + 1
            delay = min(_MAX_DELAY, 2.0 ** (self._failures - 1)) if self._failures > 1 else 0.0
            self._fault = self._fault or f"the exporter ended unasked ({self._process.returncode})"
            _LOG.error(
                "The exporter (pid %d) ended (%s); the spool keeps the outputs, a new one starts in %.0f s.",
                self.pid,
                self._process.returncode,
                delay,
            )
            self._process.close()
            self.ended = True
            self._restart_at = now + delay
        elif now > self._heard_at + self._patience:
            what = "an export took" if self._heard else "the exporter's start took"
            self._fault = f"{what} more than {self._patience:.0f} s"
            _LOG.error("The exporter (pid %d) is killed: %s; it is done anew.", self.pid, self._fault)
            self._process.kill()
            self._heard_at = now
