"""Asking the APDB whether a detector-visit has been stored: nothing is stored twice."""

from __future__ import annotations

__all__ = ["ApdbGuard", "Stored"]

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import FinalError, one_line
from ..messages import DetectorKey

if TYPE_CHECKING:
    from lsst.dax.apdb import Apdb

_LOG = logging.getLogger(__name__)

_ASK_TIMES = 2
_PAUSE = 1.0


@dataclasses.dataclass(frozen=True)
class Stored:
    """What is known of a detector-visit in the APDB."""

    may_be: bool
    """Whether it may be there: it is, or nobody can tell."""
    certain: bool
    text: str = ""
    """What to tell people, if it may be there."""


class ApdbGuard:
    """The APDB as far as it can be asked.

    Parameters
    ----------
    config : `str` or `None`
        URI of the APDB's configuration; `None`: there is no APDB.
    patience : `float`, optional
        Seconds for which it is asked again when it does not answer: a server
        that is restarted is back soon, and what can't be asked is final.
    """

    def __init__(self, config: str | None, patience: float = 0.0):
        self._config = config
        self.patience = patience
        self._apdb: Apdb | None = None

    def open(self) -> None:
        """Open it ahead of the first question; a failure shows when it is asked."""
        if self._config is None or self._apdb is not None:
            return
        try:
            self._connect()
        except Exception as e:
            _LOG.warning("The APDB can't be opened ahead: %s: %s", type(e).__name__, one_line(e))

    def stored(self, visits: Sequence[int], detector: int) -> Stored:
        """Tell whether the APDB may have sources of a detector-visit.

        Parameters
        ----------
        visits : sequence of `int`
            Visit IDs.
        detector : `int`
            Detector ID.

        Returns
        -------
        stored : `Stored`
            What is known.  If the APDB can't be asked, it counts as changed.
        """
        if self._config is None:
            return Stored(may_be=False, certain=True)
        if not visits:
            text = "its visits are not known, and so the APDB can't be asked whether it has it"
            return Stored(may_be=True, certain=False, text=text)
        try:
            found = self._found(visits, detector)
        except Exception as e:
            _LOG.exception("The APDB can't be asked; it counts as changed.")
            text = f"the APDB can't be asked whether it has it ({type(e).__name__}: {one_line(e, 200)})"
            return Stored(may_be=True, certain=False, text=text)
        if found:
            return Stored(may_be=True, certain=True, text=f"the APDB has sources of visit {found[0]}")
        return Stored(may_be=False, certain=True)

    def check(self, visits: Sequence[int], key: DetectorKey) -> None:
        """See that a detector-visit is not stored yet.

        Parameters
        ----------
        visits : sequence of `int`
            Visit IDs.
        key : `ppd.messages.DetectorKey`
            The detector-visit and which attempt at it this is.

        Raises
        ------
        ppd.errors.FinalError
            Raised if it is, or if this is not the first attempt and nobody
            can tell.
        """
        stored = self.stored(visits, key.detector)
        if stored.may_be and (stored.certain or key.attempt > 1):
            raise FinalError(f"{stored.text}; it is not processed again")

    def _found(self, visits: Sequence[int], detector: int) -> list[int]:
        deadline = time.monotonic() + self.patience
        for attempt in itertools.count(1):
            try:
                apdb = self._connect()
                return [visit for visit in visits if apdb.containsVisitDetector(visit, detector)]
            except Exception as e:
                # A connection that was opened ahead may have been lost long ago.
                self._apdb = None
                if attempt >= _ASK_TIMES and time.monotonic() > deadline:
                    raise
                _LOG.warning("The APDB is asked again: %s: %s", type(e).__name__, one_line(e))
                # At once, with a fresh connection; and then now and then.
                time.sleep(0.0 if attempt == 1 else _PAUSE)
        raise AssertionError("unreachable")

    def _connect(self) -> Apdb:
        if self._apdb is None:
            # Only some sites have an APDB; its libraries are not small.
            from lsst.dax.apdb import Apdb

            self._apdb = Apdb.from_uri(self._config)
        return self._apdb
