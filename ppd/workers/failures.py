"""What a failure means, decided from what is known (invariant 7 of the design)."""

from __future__ import annotations

__all__ = ["KilledError", "MismatchError", "NoRawError", "Verdict", "judge"]

import dataclasses
from collections.abc import Sequence

from ..errors import FinalError, IgnorableVisitError, PpdError, RetriableError, one_line, with_cause
from ..messages import FailureClass
from .apdb_guard import ApdbGuard
from .execute import PipelineFailedError


class NoRawError(RetriableError):
    """Raised when the time for raws is over and there is none to process."""


class MismatchError(RetriableError):
    """Raised when the inputs for what the header says are not there; another try gets the same."""


class KilledError(RetriableError):
    """Raised in place of a child that could not say itself how it ended."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The class of a failure, and what follows from it."""

    failure: FailureClass
    reason: str
    retry: bool
    """Whether another try might go better."""


def judge(
    error: BaseException, main_started: bool, guard: ApdbGuard, visits: Sequence[int], detector: int
) -> Verdict:
    """Class a failure.

    Parameters
    ----------
    error : `BaseException`
        What was raised.
    main_started : `bool`
        Whether a task of a main pipeline had begun: nothing before it
        changes anything outside ppd.
    guard : `ppd.workers.apdb_guard.ApdbGuard`
        Knows what the APDB has.
    visits : sequence of `int`
        IDs of the visits that were processed.
    detector : `int`
        Detector ID.

    Returns
    -------
    verdict : `Verdict`
        Final if the APDB has the detector-visit or can't be asked, retriable
        if it has not; ignorable as the error says.
    """
    reason = _reason(error)
    if isinstance(error, IgnorableVisitError):
        return Verdict("ignorable", reason, retry=False)
    if isinstance(error, FinalError):
        return Verdict("final", reason, retry=False)
    if main_started:
        stored = guard.stored(visits, detector)
        if stored.may_be:
            return Verdict("final", f"{reason}; {stored.text}", retry=False)
    # The supervisor would only feed another try the same raws.
    hopeless = isinstance(error, NoRawError | MismatchError) or getattr(error, "repeatable", False)
    return Verdict("retriable", reason, retry=not hopeless)


def _reason(error: BaseException) -> str:
    if isinstance(error, PpdError):
        return one_line(error, 1500)
    if isinstance(error, PipelineFailedError):
        return f"pipeline {error.pipeline} failed: {one_line(error, 1500)}"
    return with_cause(error, 1500)
