"""The errors of ppd: one sentence each on when it is raised."""

from __future__ import annotations

__all__ = [
    "CentralUnavailableError",
    "ConfigurationError",
    "FinalError",
    "IgnorableVisitError",
    "InvalidRawError",
    "InvalidVisitError",
    "JournalError",
    "NoSupervisorError",
    "NotInitializedError",
    "PpdError",
    "RetriableError",
    "SharedMemoryError",
    "SpoolFullError",
    "StaleVisitError",
    "one_line",
    "with_cause",
]

_MAX_CAUSES = 20


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the text of an error without line breaks, cut to a length."""
    return " ".join(str(error).split())[:limit]


def with_cause(error: BaseException, limit: int = 300) -> str:
    """Return type and text of an error in one line, and those of the error at the bottom of it.

    What a task or the middleware raises says what it was doing; that the disk
    is full, or a server away, is in what it was raised from.

    Parameters
    ----------
    error : `BaseException`
        The error.
    limit : `int`, optional
        Characters of each text.
    """
    root = error
    for _ in range(_MAX_CAUSES):
        if root.__cause__ is None:
            break
        root = root.__cause__
    text = f"{type(error).__name__}: {one_line(error, limit)}"
    cause = one_line(root, limit)
    if root is error or cause in text:
        return text
    return f"{text} (from {type(root).__name__}: {cause})"


class PpdError(Exception):
    """Base of all errors that ppd raises on purpose."""


class ConfigurationError(PpdError):
    """Raised when the configuration can't be used; the message names every mistake."""


class NotInitializedError(PpdError):
    """Raised when ``ppd-init`` has not prepared the runs of this deployment and day."""


class SharedMemoryError(PpdError):
    """Raised when neither shared memory nor the fall-back directory can hold the cache."""


class InvalidVisitError(PpdError):
    """Raised when a nextVisit message can't be understood or contradicts the instrument."""


class StaleVisitError(InvalidVisitError):
    """Raised when a nextVisit message is older than the configured expiry."""


class IgnorableVisitError(PpdError):
    """Raised when the configuration names no pipeline for a visit."""


class InvalidRawError(PpdError):
    """Raised when a raw can't be read or is not what its path says."""


class CentralUnavailableError(PpdError):
    """Raised when the central repo did not answer within its retries."""


class JournalError(PpdError):
    """Raised when the journal could not be made durable; what it was about is not accepted."""


class SpoolFullError(PpdError):
    """Raised when the spool has no room for another hand-over."""


class RetriableError(PpdError):
    """Raised when processing failed and nothing outside ppd has changed."""


class FinalError(PpdError):
    """Raised when processing failed and the APDB or an alert stream may have changed."""


class NoSupervisorError(RuntimeError):
    """Raised when no supervisor answers."""
