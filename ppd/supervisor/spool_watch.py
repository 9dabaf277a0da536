"""How full the spool is: told early, and visits refused rather than outputs lost."""

from __future__ import annotations

__all__ = ["SpoolWatch"]

import logging
import shutil
import time

from ..config import Settings
from ..errors import SpoolFullError
from .counters import Counters
from .exporter_keeper import ExporterKeeper

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Of the limit; said again when it has been below the second and fills once more.
_EARLY, _CALM = 0.5, 0.4
_NEARLY_FULL = 0.8


class SpoolWatch:
    """Looks at the spool once a second, by what the exporter says of it.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    counters : `ppd.supervisor.counters.Counters`
        Where warnings are counted.
    exporter : `ppd.supervisor.exporter_keeper.ExporterKeeper`
        Knows what is in the spool.
    """

    def __init__(self, settings: Settings, counters: Counters, exporter: ExporterKeeper):
        self._settings = settings
        self._counters = counters
        self._exporter = exporter
        self._looked = 0.0
        self._warned = False
        self._lost: str | None = None
        self.free = 0
        """Bytes free on the spool's file system; 0 when it can't be looked at."""
        self._look_at_disk()

    @property
    def bytes(self) -> int:
        """Bytes of the hand-overs that wait for export, or were set aside."""
        return self._exporter.state.bytes + self._exporter.state.letter_bytes

    @property
    def entries(self) -> int:
        """Hand-overs that wait for export."""
        return self._exporter.state.entries

    def look(self) -> None:
        """Look, if it is time to, and warn if the spool fills."""
        now = time.monotonic()
        if now < self._looked + _LOOK_SECONDS:
            return
        self._looked = now
        settings = self._settings
        self._look_at_disk()
        share = self.share
        if self._lost is not None:
            return
        if share > _EARLY and not self._warned:
            self._warned = True
            message = (
                f"it holds {self.entries} hand-overs, {self.bytes / 1e9:.2f} GB of "
                f"{settings.spool_max_bytes / 1e9:.2f}, and {self.free / 1e9:.2f} GB are free on its file "
                f"system; {self._exporter.trouble or 'they come faster than they are exported'}"
            )
            self._counters.error("spool_filling", str(settings.spool_dir), message)
            _LOG.warning("The spool %s fills: %s", settings.spool_dir, message)
        elif share < _CALM and self._warned:
            self._warned = False
            _LOG.info("The spool %s has room again.", settings.spool_dir)

    def _look_at_disk(self) -> None:
        try:
            self.free = shutil.disk_usage(self._settings.spool_dir).free
        except OSError as e:
            if self._lost is None:
                _LOG.error("The spool can't be used: %s; no visit is taken until it can.", e)
            self._lost, self.free = str(e), 0
            return
        if self._lost is not None:
            self._lost = None
            _LOG.warning("The spool %s is there again.", self._settings.spool_dir)

    @property
    def share(self) -> float:
        """How much of what the spool may hold is used: 1.0 is full, or out of reach."""
        if self._lost is not None:
            return 1.0
        room = max(0, self.free - self._settings.spool_min_free)
        limit = min(self._settings.spool_max_bytes, self.bytes + room)
        return self.bytes / limit if limit > 0 else 1.0

    @property
    def has_room(self) -> bool:
        """Whether a child that begins now may be able to write what it makes."""
        return self.free >= self._settings.spool_min_free

    def fault(self) -> str | None:
        """What an operator should know."""
        if self._lost is not None:
            return f"the spool can't be used: {self._lost}; no visit is taken and no child begins"
        if not self.has_room:
            return (
                f"{self.free} bytes are free on the file system of the spool {self._settings.spool_dir}: "
                "no visit is taken and no child begins"
            )
        if self.share <= _EARLY:
            return None
        word = "nearly full" if self.share > _NEARLY_FULL else "filling"
        return f"the spool is {word}: {100 * self.share:.0f} % of what it may hold, {self.entries} hand-overs"

    def check_room(self, identity: str) -> None:
        """Rather take no new visit than lose old outputs.

        Raises
        ------
        ppd.errors.SpoolFullError
            Raised if there is no room for another visit's outputs.
        """
        settings = self._settings
        if self.bytes > settings.spool_max_bytes:
            raise SpoolFullError(
                f"Visit {identity}: the spool holds {self.bytes} bytes, more than "
                f"{settings.spool_max_bytes}; no visit is taken until it drains."
            )
        self._look_at_disk()
        if self._lost is not None:
            raise SpoolFullError(f"Visit {identity}: the spool can't be used: {self._lost}.")
        if self.free < settings.spool_min_free:
            raise SpoolFullError(
                f"Visit {identity}: the file system of the spool {settings.spool_dir} has {self.free} bytes"
                f" free, {settings.spool_min_free} are needed; no visit is taken until there is room."
            )
