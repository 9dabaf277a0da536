"""The APDB as tasks use it: opened once, and patient while another child writes."""

from __future__ import annotations

__all__ = ["open_apdb", "retried"]

import functools
import logging
import random
import time
from collections.abc import Callable

import sqlalchemy.exc
from lsst.dax.apdb import Apdb

_LOG = logging.getLogger(__name__)

_ATTEMPTS = 12


@functools.lru_cache(maxsize=2)
def open_apdb(uri: str) -> Apdb:
    """Open the APDB, once in a process.

    Opening reads and validates the APDB's schema files, which takes longer
    than most queries.  It holds a database connection, so it must not be
    called before the fork.

    Parameters
    ----------
    uri : `str`
        Of its configuration.

    Returns
    -------
    apdb : `lsst.dax.apdb.Apdb`
        The database.
    """
    return Apdb.from_uri(uri)


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
