"""The thread that reads the central repo and owns the cache.

Requests come through a queue, answers go to the loop's inbox; the loop never
waits for a database.  When there is no request, the thread fetches ahead.
"""

from __future__ import annotations

__all__ = ["CentralReader"]

import contextlib
import dataclasses
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

import sqlalchemy.exc
from lsst.daf.butler import Butler, DimensionRecord, MissingDatasetTypeError
from lsst.daf.butler.registry import DataIdError

from ..cache.place import choose_place, remove_place
from ..cache.repo import CacheRepo, CacheStatistics
from ..cache.stores import site_formatters
from ..config import Settings
from ..errors import (
    CentralUnavailableError,
    ConfigurationError,
    NotInitializedError,
    SharedMemoryError,
    one_line,
)
from ..instruments.description import InstrumentDescription
from ..messages import Pointing
from .cache_commands import serve_cache
from .deployments import Deployment
from .gather import Gatherer
from .inbox import Inbox
from .inheritance import Inheritance
from .prefetch import Prefetcher
from .reading import CentralButlers
from .requests import (
    AskCache,
    CacheSaid,
    DayKnown,
    Learn,
    LearnDay,
    Learned,
    Prefetch,
    Released,
    Resolve,
    Resolved,
)
from .resolve import Resolution
from .statements import StatementCounter

_LOG = logging.getLogger(__name__)

# A night of another time, replayed, would have other calibs at each visit.
_RENEW_SECONDS = 60.0
_LOOK_SECONDS = 5.0
_LEARN_AGAIN_SECONDS = 2.0
_Request = Resolve | Released | Prefetch | LearnDay | Learn | AskCache
# Known to every child, whatever its pipelines write.
_ALWAYS = ("raw", "regionTimeInfo", "prompt_provenance")


@dataclasses.dataclass(frozen=True)
class ReaderStatus:
    """How the reader is, for people."""

    cache: CacheStatistics
    prefetching: int = 0
    """Pointings whose inputs are being fetched ahead."""
    prefetched: int = 0
    """Datasets that were fetched ahead."""
    trouble: str | None = None
    """What is wrong with the read replica."""
    away: str | None = None
    """Why the primary could not be read."""


class CentralReader:
    """Resolves inputs and keeps the cache, in a thread of its own.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    description : `ppd.instruments.description.InstrumentDescription`
        The instrument.
    inbox : `ppd.supervisor.inbox.Inbox`
        Where answers go.
    """

    def __init__(self, settings: Settings, description: InstrumentDescription, inbox: Inbox):
        self._settings = settings
        self._inbox = inbox
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        # The middleware's copies of files run in pools of this size.
        os.environ["LSST_RESOURCES_NUM_WORKERS"] = str(settings.transfer_workers)
        # A server that does not answer at all must not be waited for for ever.
        os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
        self.place = choose_place(
            settings.shm_dir,
            settings.shm_fallback,
            settings.shm_min_free,
            settings.instrument,
            settings.state_dir,
        )
        self._central = CentralButlers(settings.central_repo, settings.read_central_repo)
        try:
            self._counter = StatementCounter(str(self.place))
            butler = self._central.read(lambda butler: butler)
            self.records = self._central.read(
                lambda butler: _instrument_records(butler, settings.instrument, settings.skymap)
            )
            formatters = site_formatters(settings.central_repo)
            self._cache = CacheRepo(self.place, butler, settings.cache_bytes, formatters)
            self._cache.insert_records(self.records)
        except BaseException:
            self._central.close()
            remove_place(self.place)
            raise
        self._gatherer = Gatherer(settings, description, self._central, self._cache, self.filters)
        self._prefetcher = Prefetcher(
            self._gatherer, self._cache, description.focal_plane, settings.preload_padding
        )
        self._inheritance = Inheritance(self._cache, settings.inherit_bytes)
        self._warm: set[str | None] = set()
        self._renewed = time.monotonic()
        self._say_status()
        self.started_at: float | None = None
        """When `start` was called, monotonic seconds."""
        self._first: Deployment | None = None
        self._learnt = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="central-reader", daemon=True)

    @property
    def detectors(self) -> frozenset[int]:
        """Detectors of the instrument that take science images."""
        return frozenset(r.id for r in self.records["detector"] if r.purpose in (None, "SCIENCE"))

    @property
    def filters(self) -> dict[str, str]:
        """Band by physical filter."""
        return {r.name: r.band for r in self.records["physical_filter"]}

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self.started_at is not None

    def on_primary(self, call: Callable[[Butler], None]) -> None:
        """Ask the primary something, before `start`."""
        self._central.read(call, primary=True)

    def start(self, deployment: Deployment) -> None:
        """Begin: learn what the pipelines need, then serve what was requested meanwhile too.

        Parameters
        ----------
        deployment : `ppd.supervisor.deployments.Deployment`
            What the nursery was built for, with what it has built.
        """
        self.started_at = time.monotonic()
        self._first = deployment
        self._thread.start()

    def _learn_first(self) -> None:
        """Learn what the pipelines need, and register their dataset types."""
        assert self._first is not None
        self._gatherer.learn(self._first.pipelines, self._first)
        self._register_types(self._first)
        self._inbox.put(self._inheritance.first())
        self._warm_up(None)
        self._learnt = True

    def request(self, request: _Request) -> None:
        """Queue a request; returns at once."""
        self._requests.put(request)

    def stop(self, timeout: float, hurried: Callable[[], bool] = lambda: False) -> bool:
        """End the thread and remove the cache.

        Parameters
        ----------
        timeout : `float`
            Seconds to wait for the thread.
        hurried : callable, optional
            Whether not to wait any longer.

        Returns
        -------
        ended : `bool`
            Whether the thread ended in time.
        """
        self._ending.set()
        if self._thread.is_alive():
            self._requests.put(None)
            deadline = time.monotonic() + timeout
            while self._thread.is_alive() and time.monotonic() < deadline and not hurried():
                self._thread.join(0.05)
        ended = not self._thread.is_alive()
        if ended:
            self._cache.close()
            self._central.close()
            self._counter.close()
        remove_place(self.place)
        return ended

    def _register_types(self, deployment: Deployment) -> None:
        names = set(_ALWAYS)
        for pipeline in deployment.pipelines:
            names.update(pipeline.outputs, pipeline.init_outputs)
            # Inputs too, or nothing that uses them could be rehearsed before they are fetched.
            names.update(declared.name.partition(".")[0] for declared in pipeline.inputs)
        # The replica may lag behind ppd-init, which has registered them.
        self._central.read(lambda butler: self._register(butler, names), primary=True)

    def _register(self, butler: Butler, names: set[str]) -> None:
        known = []
        for name in sorted(names):
            try:
                known.append(butler.get_dataset_type(name))
            except MissingDatasetTypeError:
                _LOG.debug("Central has no dataset type %s yet.", name)
        self._cache.register_dataset_types(known)

    def _run(self) -> None:
        self._guarded(self._learn_first)
        while not self._learnt and not self._ending.wait(_LEARN_AGAIN_SECONDS):
            self._guarded(self._learn_first)
        while not self._ending.is_set():
            try:
                wait = _LOOK_SECONDS if self._central.trouble or self._central.away else None
                request = self._requests.get(block=not self._prefetcher.busy, timeout=wait)
            except queue.Empty:
                self._guarded(self._fetch_ahead if self._prefetcher.busy else self._look)
                continue
            if request is None:
                return
            self._guarded(functools.partial(self._serve, request))

    def _look(self) -> None:
        """See whether what was away is back: no visit may be there to find out."""
        away = self._central.away is not None
        with contextlib.suppress(CentralUnavailableError):
            self._central.read(
                lambda butler: butler.query_dimension_records("visit_system", explain=False), primary=away
            )

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._say_status()
        except Exception:
            _LOG.exception("The central reader met something it does not know; it goes on.")

    def _say_status(self) -> None:
        self.status = ReaderStatus(
            self._cache.statistics(),
            self._prefetcher.waiting,
            self._prefetcher.fetched,
            self._central.trouble,
            self._central.away,
        )

    def _serve(self, request: _Request) -> None:
        if isinstance(request, Resolve):
            answer = self._resolve(request)
            self._inbox.put(answer)
            if answer.inputs is not None:
                self._warm_up(request.visit.filters or None)
                self._renew(answer.inputs.resolution)
        elif isinstance(request, Released):
            self._cache.release(request.holder)
        elif isinstance(request, AskCache):
            self._inbox.put(CacheSaid(request.number, serve_cache(self._cache, request.request)))
        elif isinstance(request, Learn):
            self._inbox.put(self._learn(request))
        elif isinstance(request, LearnDay):
            self._inbox.put(self._learn_day(request))
        else:
            self._prefetcher.add(request.pointings)

    def _warm_up(self, physical_filter: str | None) -> None:
        """Once for each filter, have the calibs of all detectors fetched when there is time."""
        if self._settings.warm_ahead and physical_filter not in self._warm:
            self._warm.add(physical_filter)
            self._prefetcher.add([Pointing(physical_filter=physical_filter)])

    def _renew(self, resolution: Resolution) -> None:
        """Have the nursery read what is new, such as a calib that was certified since."""
        now = time.monotonic()
        if now > self._renewed + _RENEW_SECONDS and self._inheritance.outdated(resolution):
            self._renewed = now
            self._warm.discard(None)
            self._warm_up(None)

    def _fetch_ahead(self) -> None:
        resolution = self._prefetcher.step()
        if resolution is not None:
            prepare = self._inheritance.plan(resolution)
            if prepare is not None:
                self._inbox.put(prepare)

    def _learn(self, request: Learn) -> Learned:
        """Get ready for another deployment beside those that are known."""
        deployment = request.deployment
        try:
            self._gatherer.learn(deployment.pipelines, deployment)
            self._gatherer.learn_day(request.day_obs, deployment.id)
            self._register_types(deployment)
        except NotInitializedError as e:
            return Learned(request.number, str(e), missing=True)
        except Exception as e:
            if not isinstance(e, CentralUnavailableError | SharedMemoryError | sqlalchemy.exc.DBAPIError):
                _LOG.exception("Deployment %s can't be got ready for.", deployment.id)
            return Learned(request.number, one_line(e, 500))
        self._gatherer.use(deployment.id)
        self._prefetcher.padding = deployment.settings.preload_padding
        self._inheritance.max_bytes = deployment.settings.inherit_bytes
        # With the new types in its registry; what was read before is read again.
        self._inbox.put(self._inheritance.again())
        self._warm.clear()
        self._warm_up(None)
        return Learned(request.number)

    def _learn_day(self, request: LearnDay) -> DayKnown:
        """Find and fetch init-outputs now, so that the first visit that needs them does not wait for it."""
        what = (request.day_obs, request.deployment)
        try:
            self._gatherer.learn_day(*what)
        except NotInitializedError as e:
            return DayKnown(*what, error=str(e), missing=True)
        except Exception as e:
            if not isinstance(e, CentralUnavailableError | SharedMemoryError | sqlalchemy.exc.DBAPIError):
                _LOG.exception("The init-outputs of %d can't be had.", request.day_obs)
            return DayKnown(*what, error=one_line(e, 500))
        return DayKnown(*what)

    def _resolve(self, request: Resolve) -> Resolved:
        begin = time.monotonic()
        group = request.visit.groupId
        self._counter.take()
        try:
            resolved = self._gatherer.gather(request)
        except (NotInitializedError, SharedMemoryError, CentralUnavailableError) as e:
            resolved = Resolved(group, error=str(e), retry=True)
        except (sqlalchemy.exc.DBAPIError, OSError) as e:
            resolved = Resolved(group, error=f"{type(e).__name__}: {one_line(e, 500)}", retry=True)
        except Exception as e:
            if not isinstance(e, ConfigurationError):
                _LOG.exception("Inputs of visit %s can't be found.", group)
            resolved = Resolved(group, error=f"{type(e).__name__}: {e}")
        seconds = time.monotonic() - begin
        asked = frozenset(request.main)
        return dataclasses.replace(resolved, asked=asked, statements=self._counter.take(), seconds=seconds)


def _instrument_records(
    butler: Butler, instrument: str, skymap: str | None
) -> dict[str, list[DimensionRecord]]:
    """Read the records of an instrument that every local repo needs."""
    try:
        found = butler.query_dimension_records("instrument", instrument=instrument, explain=False)
    except DataIdError:
        found = []
    if not found:
        raise ConfigurationError(f"The central repo knows no instrument {instrument!r}.")
    records = {"instrument": found}
    for element in ("detector", "physical_filter", "visit_system"):
        records[element] = butler.query_dimension_records(element, instrument=instrument, explain=False)
    if skymap is not None:
        records["skymap"] = butler.query_dimension_records("skymap", skymap=skymap, explain=False)
        if not records["skymap"]:
            raise ConfigurationError(f"The central repo knows no sky map {skymap!r}.")
    return records
