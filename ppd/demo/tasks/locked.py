"""Patience with a database that another child writes to."""

from __future__ import annotations

__all__ = ["retried"]

import logging
import random
import time
from collections.abc import Callable

import sqlalchemy.exc

_LOG = logging.getLogger(__name__)

_ATTEMPTS = 12


def retried[T](call: Callable[[], T]) -> T:
    """Call, and call again while the database is locked.

    Parameters
    ----------
    call : callable
        Must be safe to repeat after it failed.

    Returns
    -------
    result
        What ``call`` returns.

    Raises
    ------
    sqlalchemy.exc.OperationalError
        Raised if the database stays locked, or for another reason.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except sqlalchemy.exc.OperationalError as e:
            if "locked" not in str(e) or attempt == _ATTEMPTS:
                raise
            delay = 0.05 * attempt * random.uniform(0.5, 1.5)
            _LOG.info("The APDB is locked; try %d of %d in %.2f s.", attempt, _ATTEMPTS, delay)
            time.sleep(delay)
    raise AssertionError("unreachable")
