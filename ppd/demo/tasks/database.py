"""The APDB as tasks use it: opened once, and patient while another child writes."""

from __future__ import annotations

__all__ = ["open_apdb", "retried"]

import contextlib
import functools
import logging
import random
import time
from collections.abc import Callable, Iterator

import pandas.errors
import sqlalchemy.exc
import yaml
from lsst.dax.apdb import Apdb

_LOG = logging.getLogger(__name__)

_ATTEMPTS = 12


@functools.lru_cache(maxsize=2)
def open_apdb(uri: str) -> Apdb:
    """Open the APDB, once in a process.

    Opening reads and validates the APDB's schema files, which takes longer
    than any query.  It holds a database connection, so it must not be
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
    with _quick_yaml():
        return Apdb.from_uri(uri)


@contextlib.contextmanager
def _quick_yaml() -> Iterator[None]:
    """Let `yaml.safe_load` parse with libyaml.

    The APDB's schema is 5,000 nodes of YAML; the loader in Python takes a
    tenth of a second for it, in every child, and that in C a tenth of that.
    They give the same objects, so it does no harm should another thread load
    something meanwhile.
    """
    quick = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # absent if built without libyaml
    slow, yaml.SafeLoader = yaml.SafeLoader, quick
    try:
        yield
    finally:
        yaml.SafeLoader = slow


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
    sqlalchemy.exc.OperationalError, pandas.errors.DatabaseError
        Raised if the database stays locked, or for another reason.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        # The APDB inserts through pandas, which wraps what the database says.
        except (sqlalchemy.exc.OperationalError, pandas.errors.DatabaseError) as e:
            if "locked" not in str(e) or attempt == _ATTEMPTS:
                raise
            delay = 0.05 * attempt * random.uniform(0.5, 1.5)
            _LOG.info("The APDB is locked; try %d of %d in %.2f s.", attempt, _ATTEMPTS, delay)
            time.sleep(delay)
    raise AssertionError("unreachable")
