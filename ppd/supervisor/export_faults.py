"""What is wrong when an export fails: central, a hand-over, or somebody else's dataset."""

from __future__ import annotations

__all__ = ["fault_of", "is_passing"]

import errno

import botocore.exceptions
import requests
import sqlalchemy.exc

from ..messages import Fault
from .export_batch import ConflictError
from .spool import CorruptHandOverError

# What may go away by itself: a connection, a lock, a server, a full disk.
_PASSING = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.PendingRollbackError,
    sqlalchemy.exc.TimeoutError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    requests.RequestException,
    MemoryError,
)


def is_passing(error: BaseException) -> bool:
    """Whether the same export may succeed at another time.

    Parameters
    ----------
    error : `BaseException`
        Why it failed.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _PASSING):
            return True
        if isinstance(seen, sqlalchemy.exc.DBAPIError) and seen.connection_invalidated:
            return True
        if isinstance(seen, OSError):
            # A file that is not there will not come by waiting for it.
            return seen.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
        # The middleware wraps what the database says.
        seen = seen.__cause__
    return False


def fault_of(error: BaseException) -> Fault:
    """Name what keeps a single hand-over from being exported."""
    if isinstance(error, ConflictError):
        return "conflict"
    if isinstance(error, CorruptHandOverError | FileNotFoundError):
        return "corrupt"
    return "refused"
