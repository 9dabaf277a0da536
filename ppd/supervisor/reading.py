"""The long-lived Butlers that the central repo is read with: replica and primary."""

from __future__ import annotations

__all__ = ["CentralButlers", "open_butler"]

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy.exc
import yaml
from lsst.daf.butler import Butler

from ..errors import CentralUnavailableError, ConfigurationError, one_line

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")

_RETRY_SECONDS = 0.2
# A replica that failed is tried again after this time, when it is needed.
_REST_SECONDS = 15.0
_TRIES = 2
# A connection that was lost, and what leaving a query after that raises.
_LOST = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.PendingRollbackError,
)


def open_butler(uri: str, *, writeable: bool, attempts: int, delay: float) -> Butler:
    """Open a Butler, with jittered retries.

    Parameters
    ----------
    uri : `str`
        The repo.
    writeable : `bool`
        Whether to write.
    attempts : `int`
        How often to try.
    delay : `float`
        Mean delay between tries, seconds.

    Returns
    -------
    butler : `lsst.daf.butler.Butler`
        The Butler.

    Raises
    ------
    ConfigurationError
        Raised if there is no repo, or none that this middleware can read.
    CentralUnavailableError
        Raised if the database did not answer.
    """
    for attempt in range(1, attempts + 1):
        try:
            return Butler.from_config(uri, writeable=writeable)
        except FileNotFoundError as e:
            raise ConfigurationError(f"There is no Butler repo at {uri}: {e}.") from e
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, OSError) as e:
            if attempt == attempts:
                raise CentralUnavailableError(
                    f"The central repo {uri} does not answer: {one_line(e)}."
                ) from e
            _LOG.warning(
                "The central repo does not answer (%s); try %d of %d.", one_line(e), attempt, attempts
            )
            time.sleep(delay * random.uniform(0.5, 1.5))
        except (
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            yaml.YAMLError,
            sqlalchemy.exc.DatabaseError,
        ) as e:
            # What the middleware raises on a configuration or a registry that it
            # can't read, or that is of another version.
            raise ConfigurationError(
                f"The central repo {uri} can't be read by the installed middleware: {one_line(e)}."
            ) from e
    raise AssertionError("unreachable")


class CentralButlers:
    """Reads by the replica where there is one, else by the primary.

    Parameters
    ----------
    primary : `str`
        URI of the repo that outputs go to.
    replica : `str` or `None`
        URI of its read replica.
    delay : `float`, optional
        Mean delay between tries to open, seconds.

    Notes
    -----
    One thread owns an instance.  A Butler is opened when it is first needed
    and then kept.  The connections that it holds are those of one thread,
    however many detectors there are.
    """

    def __init__(self, primary: str, replica: str | None, delay: float = 1.0):
        self._uris = {"primary": primary}
        if replica is not None and replica != primary:
            self._uris["replica"] = replica
        self._delay = delay
        self._open: dict[str, Butler] = {}
        self._resting_until = 0.0
        self.trouble: str | None = None
        """What is wrong with the replica, if anything is."""
        self.away: str | None = None
        """Why the primary could not be read, when it was last tried."""

    @property
    def has_replica(self) -> bool:
        """Whether a read replica is configured."""
        return "replica" in self._uris

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, work: Callable[[Butler], _T], *, primary: bool = False) -> _T:
        """Run a read, again where a connection was lost, on the primary where the replica is away.

        Parameters
        ----------
        work : callable
            Takes a Butler; may be called more than once.
        primary : `bool`, optional
            Read from the primary only: for what was just written to it.

        Returns
        -------
        result : `object`
            What ``work`` returned.

        Raises
        ------
        ppd.errors.CentralUnavailableError
            Raised if the database did not answer.
        """
        if self.has_replica and not primary and time.monotonic() >= self._resting_until:
            try:
                result = self._attempt("replica", work)
            except CentralUnavailableError as e:
                self._resting_until = time.monotonic() + _REST_SECONDS * random.uniform(0.8, 1.2)
                self.trouble = str(e)
                _LOG.error("The read replica is away; the primary is read instead: %s", e)
            else:
                if self.trouble is not None:
                    _LOG.warning("The read replica is back.")
                    self.trouble = None
                return result
        try:
            result = self._attempt("primary", work)
        except CentralUnavailableError as e:
            self.away = str(e)
            raise
        if self.away is not None:
            _LOG.warning("The central repo is back.")
            self.away = None
        return result

    def _attempt(self, name: str, work: Callable[[Butler], _T]) -> _T:
        fault: sqlalchemy.exc.SQLAlchemyError
        for attempt in range(1, _TRIES + 1):
            try:
                return work(self._butler(name))
            except _LOST as e:
                fault = e
            except sqlalchemy.exc.SQLAlchemyError as e:
                # A standby refuses what a primary does, such as temporary tables.
                if name == "primary" and not getattr(e, "connection_invalidated", False):
                    raise
                fault = e
            if attempt < _TRIES:
                _LOG.warning("The %s did not answer; it is asked again: %s", name, one_line(fault))
                time.sleep(_RETRY_SECONDS * random.uniform(0.5, 1.5))
        raise CentralUnavailableError(
            f"The central repo {self._uris[name]} does not answer: {one_line(fault)}"
        ) from fault

    def _butler(self, name: str) -> Butler:
        if name not in self._open:
            # The replica's absence costs a visit one try, not three.
            attempts = 3 if name == "primary" else 1
            self._open[name] = open_butler(
                self._uris[name], writeable=False, attempts=attempts, delay=self._delay
            )
        return self._open[name]
