"""How announcements are refused: what is counted, and what is answered."""

from __future__ import annotations

__all__ = ["Refusal", "refusal_of"]

from typing import NamedTuple

from ..errors import (
    IgnorableVisitError,
    InvalidVisitError,
    JournalError,
    PpdError,
    SpoolFullError,
    StaleVisitError,
)
from .admission import DuplicateVisitError
from .pauses import PausedError


class Refusal(NamedTuple):
    """One way to refuse."""

    name: str
    """Name of the count."""
    code: str
    """Of the answer, as `ppd.messages.ControlReply` has it."""


# The first that fits counts.
_REFUSALS: tuple[tuple[type[PpdError], str, str], ...] = (
    (DuplicateVisitError, "visits_duplicate", "duplicate"),
    (StaleVisitError, "visits_stale", "stale"),
    (InvalidVisitError, "visits_malformed", "malformed"),
    (IgnorableVisitError, "visits_ignored", "ignored"),
    (PausedError, "visits_refused_paused", "unavailable"),
    (SpoolFullError, "visits_refused_spool_full", "unavailable"),
    (JournalError, "visits_refused_journal", "unavailable"),
)


def refusal_of(error: PpdError) -> Refusal | None:
    """Say how what has kept an announcement from being accepted is counted and answered.

    Parameters
    ----------
    error : `ppd.errors.PpdError`
        What was raised.

    Returns
    -------
    refusal : `Refusal` or `None`
        `None`: it is no refusal but a failure of ours.
    """
    return next((Refusal(name, code) for kind, name, code in _REFUSALS if isinstance(error, kind)), None)
