"""What an operator has paused: a detector that is out of order, or all of ppd.

Kept in a file, so that a start in the middle of the night knows it too.
"""

from __future__ import annotations

__all__ = ["Pause", "PausedError", "Pauses"]

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pydantic

from ..durably import sync
from ..errors import PpdError, one_line

_LOG = logging.getLogger(__name__)


class PausedError(PpdError):
    """Raised when an operator has said that no visits are to be taken."""


class Pause(pydantic.BaseModel):
    """Since when, and why."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    since: float
    """Unix seconds."""
    reason: str = ""

    def __str__(self) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"paused since {clock}" + (f": {self.reason}" if self.reason else "")


class _Paused(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    all: Pause | None = None
    detectors: dict[int, Pause] = pydantic.Field(default_factory=dict)


class Pauses:
    """What is paused, and since when.

    Parameters
    ----------
    path : `pathlib.Path`
        Where it is kept.
    """

    def __init__(self, path: Path):
        self._path = path
        self._now = _Paused()
        try:
            self._now = _Paused.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as e:
            _LOG.error("Nothing is paused: what was can't be read from %s: %s", path, one_line(e))

    def check(self) -> None:
        """See that visits are taken at all.

        Raises
        ------
        PausedError
            Raised if not; says since when, and why.
        """
        if self._now.all is not None:
            raise PausedError(f"ppd takes no visits: {self._now.all}.")

    @property
    def all(self) -> Pause | None:
        """Why no visit is taken at all, if so."""
        return self._now.all

    @property
    def detectors(self) -> Mapping[int, Pause]:
        """Detectors that visits are taken without."""
        return self._now.detectors

    def pause(self, detectors: Iterable[int], reason: str) -> None:
        """Pause some detectors, or all of ppd if none is named; what is paused stays so, with its reason.

        Raises
        ------
        ppd.errors.PpdError
            Raised if it can't be written down; then nothing has changed.
        """
        pause = Pause(since=time.time(), reason=reason)
        named = dict.fromkeys(detectors, pause)
        if named:
            self._keep(
                _Paused(all=self._now.all, detectors=dict(sorted({**named, **self.detectors}.items())))
            )
        else:
            self._keep(_Paused(all=self._now.all or pause, detectors=dict(self.detectors)))

    def resume(self, detectors: Iterable[int]) -> None:
        """Go on with some detectors, or with all if none is named, each of them included.

        Raises
        ------
        ppd.errors.PpdError
            Raised if it can't be written down; then nothing has changed.
        """
        named = set(detectors)
        left = {number: p for number, p in self.detectors.items() if named and number not in named}
        self._keep(_Paused(all=self._now.all if named else None, detectors=left))

    def _keep(self, paused: _Paused) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.write_text(paused.model_dump_json(indent=1), encoding="utf-8")
            sync(new)
            new.replace(self._path)
            sync(self._path.parent)
        except OSError as e:
            raise PpdError(f"It can't be written down, so nothing has changed: {e}.") from e
        self._now = paused
