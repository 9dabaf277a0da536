"""The thread that reads the central repo and owns the cache.

It holds the read Butler for the supervisor's whole life.  Requests come
through a queue, answers go to the loop's inbox; the loop never waits for a
database.
"""

from __future__ import annotations

__all__ = ["CentralReader", "Released", "Resolve", "Resolved", "open_butler"]

import dataclasses
import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import astropy.time
import sqlalchemy.exc
from lsst.daf.butler import (
    Butler,
    DimensionRecord,
    MissingDatasetTypeError,
    Timespan,
)
from lsst.daf.butler.registry import DataIdError

from ..cache.place import choose_place, remove_place
from ..cache.repo import CacheRepo, CacheStatistics
from ..cache.stores import site_formatters
from ..config import Settings
from ..deployment import date_string, run_name
from ..errors import CentralUnavailableError, ConfigurationError, NotInitializedError, SharedMemoryError
from ..initializer import check_initialized, initialize
from ..instruments.description import InstrumentDescription
from ..messages import CacheView, InputType, PipelineSummary
from ..visit import BareVisit
from .inbox import Inbox
from .input_collections import find_collections
from .resolve import Resolution, VisitConstraints, resolve_inputs
from .statements import StatementCounter

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Resolve:
    """Request: find and hold the inputs of a visit's detectors."""

    visit: BareVisit
    preprocessing: Mapping[int, tuple[str, ...]]
    """Pre-processing pipelines that each detector may run."""
    main: Mapping[int, tuple[str, ...]]
    """Main pipelines that each detector may run."""
    day_obs: int
    deployment: str
    runs: tuple[str, ...]
    """Output runs of the visit."""


@dataclasses.dataclass(frozen=True)
class Released:
    """Request: this holder is done with its inputs."""

    holder: str


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Answer: the inputs are in the cache, or why not."""

    group: str
    views: Mapping[int, CacheView]
    refused: Mapping[int, str]
    """Detectors that lack an input that every one of their pipelines needs."""
    error: str | None = None
    retry: bool = False
    statements: int = 0
    fetched: int = 0
    seconds: float = 0.0


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
        Raised if there is no repo.
    CentralUnavailableError
        Raised if the database did not answer.
    """
    for attempt in range(1, attempts + 1):
        try:
            return Butler.from_config(uri, writeable=writeable)
        except FileNotFoundError as e:
            raise ConfigurationError(f"There is no Butler repo at {uri}: {e}.") from e
        except (sqlalchemy.exc.OperationalError, OSError) as e:
            if attempt == attempts:
                raise CentralUnavailableError(f"The central repo {uri} does not answer: {e}.") from e
            _LOG.warning("The central repo does not answer (%s); try %d of %d.", e, attempt, attempts)
            time.sleep(delay * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


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
        self._description = description
        self._inbox = inbox
        self._requests: queue.SimpleQueue[Resolve | Released | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self.place = choose_place(
            settings.shm_dir,
            settings.shm_fallback,
            settings.shm_min_free,
            settings.instrument,
            settings.state_dir,
        )
        try:
            self._counter = StatementCounter(str(self.place))
            uri = settings.read_central_repo or settings.central_repo
            self.butler = open_butler(uri, writeable=False, attempts=3, delay=1.0)
            self.records = _instrument_records(self.butler, settings.instrument, settings.skymap)
            self._cache = CacheRepo(self.place, self.butler, settings.cache_bytes, site_formatters(uri))
            self._cache.insert_records(self.records)
        except BaseException:
            remove_place(self.place)
            raise
        self._ready_days: set[tuple[int, str]] = set()
        self._init_refs: dict[tuple[int, str], list] = {}
        self._inputs: dict[str, tuple[InputType, ...]] = {}
        self.statistics: CacheStatistics = self._cache.statistics()
        self._thread = threading.Thread(target=self._run, name="central-reader", daemon=True)

    @property
    def detectors(self) -> frozenset[int]:
        """Detectors of the instrument that take science images."""
        return frozenset(r.id for r in self.records["detector"] if r.purpose in (None, "SCIENCE"))

    @property
    def filters(self) -> dict[str, str]:
        """Band by physical filter."""
        return {r.name: r.band for r in self.records["physical_filter"]}

    def start(self, pipelines: tuple[PipelineSummary, ...]) -> None:
        """Learn what the pipelines need, register their dataset types, and begin.

        Parameters
        ----------
        pipelines : `tuple` [ `ppd.messages.PipelineSummary` ]
            What the nursery built.
        """
        names = {"raw", "regionTimeInfo", "prompt_provenance"}
        for pipeline in pipelines:
            self._inputs[pipeline.path] = pipeline.inputs
            names.update(pipeline.outputs, pipeline.init_outputs)
        known = []
        for name in sorted(names):
            try:
                known.append(self.butler.get_dataset_type(name))
            except MissingDatasetTypeError:
                _LOG.debug("Central has no dataset type %s yet.", name)
        self._cache.register_dataset_types(known)
        self._thread.start()

    def request(self, request: Resolve | Released) -> None:
        """Queue a request; returns at once."""
        self._requests.put(request)

    def stop(self, timeout: float) -> bool:
        """End the thread and remove the cache.

        Returns
        -------
        ended : `bool`
            Whether the thread ended in time.
        """
        if self._thread.is_alive():
            self._requests.put(None)
            self._thread.join(timeout)
        ended = not self._thread.is_alive()
        if ended:
            self._cache.close()
            self.butler.close()
            self._counter.close()
        remove_place(self.place)
        return ended

    def _run(self) -> None:
        while True:
            request = self._requests.get()
            if request is None:
                return
            try:
                if isinstance(request, Resolve):
                    self._inbox.put(self._resolve(request))
                elif isinstance(request, Released):
                    self._cache.release(request.holder)
                self.statistics = self._cache.statistics()
            except Exception:
                _LOG.exception("The central reader met something it does not know; it goes on.")

    def _resolve(self, request: Resolve) -> Resolved:
        begin = time.monotonic()
        group = request.visit.groupId
        self._counter.take()
        try:
            self._check_day(request)
            views, refused, fetched = self._gather(request)
        except (NotInitializedError, SharedMemoryError, CentralUnavailableError) as e:
            return Resolved(group, {}, {}, error=str(e), retry=True, statements=self._counter.take())
        except (sqlalchemy.exc.DBAPIError, OSError) as e:
            retry = not isinstance(e, FileNotFoundError)
            text = " ".join(str(e).split())[:500]
            return Resolved(
                group,
                {},
                {},
                error=f"{type(e).__name__}: {text}",
                retry=retry,
                statements=self._counter.take(),
            )
        except Exception as e:
            _LOG.exception("Inputs of visit %s can't be found.", group)
            return Resolved(group, {}, {}, error=f"{type(e).__name__}: {e}", statements=self._counter.take())
        return Resolved(
            group,
            views,
            refused,
            statements=self._counter.take(),
            fetched=fetched,
            seconds=time.monotonic() - begin,
        )

    def _check_day(self, request: Resolve) -> None:
        day = (request.day_obs, request.deployment)
        if day in self._ready_days:
            return
        if self._settings.initialize_automatically:
            initialize(self._settings, request.day_obs)
        # A replica may lag behind what ppd-init wrote to the primary: then
        # this raises, and the visit is tried again.
        self.butler.registry.refresh()
        check_initialized(self.butler, self._settings, request.day_obs, request.deployment)
        self._init_refs[day] = self._find_init_outputs(request)
        self._ready_days.add(day)

    def _find_init_outputs(self, request: Resolve) -> list:
        refs = []
        date = date_string(request.day_obs)
        for path in self._inputs:
            run = run_name(self._settings.instrument, date, path, request.deployment)
            info = self.butler.collections.get_info(run, include_summary=True)
            for name in info.dataset_types or ():
                dataset_type = self.butler.get_dataset_type(name)
                if not dataset_type.dimensions:
                    refs += self.butler.query_datasets(dataset_type, collections=run, explain=False)
        return refs

    def _gather(self, request: Resolve) -> tuple[dict[int, CacheView], dict[int, str], int]:
        visit = request.visit
        detectors = tuple(sorted(request.main))
        collections = self._mirror()
        self._cache.register_runs((*request.runs, f"{visit.instrument}/raw/all"))
        declared: dict[str, InputType] = {}
        asked = [*request.main.values(), *request.preprocessing.values()]
        for path in dict.fromkeys(p for paths in asked for p in paths):
            for input_type in self._inputs[path]:
                declared.setdefault(input_type.name, input_type)
        resolution = resolve_inputs(
            self.butler, collections, declared.values(), self._constraints(visit, detectors)
        )
        refused = {d: r for d in detectors if (r := self._refusal(d, request, resolution))}
        wanted: set[uuid.UUID] = set()
        for detector in detectors:
            if detector not in refused:
                wanted |= resolution.detectors[detector].ids
        init_refs = self._init_refs[request.day_obs, request.deployment]
        refs = [ref for i, ref in resolution.refs.items() if i in wanted] + init_refs
        lasting = resolution.lasting | {ref.id for ref in init_refs}
        fetched = self._cache.fetch(self.butler, refs, lasting)
        for c in resolution.certifications:
            if c.ref.id in wanted:
                self._cache.certify(c.collection, c.ref, c.timespan)
        views = {}
        init_ids = {ref.id for ref in init_refs}
        for detector in detectors:
            if detector in refused:
                continue
            ids = resolution.detectors[detector].ids | init_ids
            snapshot = self._cache.lease(f"{visit.groupId}/{detector}", ids)
            views[detector] = CacheView(
                snapshot=str(snapshot), config=str(self._cache.child_config), collections=tuple(collections)
            )
        return views, refused, fetched

    def _refusal(self, detector: int, request: Resolve, resolution: Resolution) -> str | None:
        """Say why none of the main pipelines can run; the graph builder decides finely."""
        missing = resolution.detectors[detector].missing
        reasons = []
        for path in request.main[detector]:
            lacking = {
                i.name: missing[i.name] for i in self._inputs[path] if i.name in missing and not i.optional
            }
            if not lacking:
                return None
            reasons.append(f"{Path(path).stem} lacks " + ", ".join(f"{n} ({r})" for n, r in lacking.items()))
        return "; ".join(reasons)

    def _mirror(self) -> list[str]:
        """Give the cache central's chains, and say where inputs are searched."""
        self.butler.registry.refresh_collection_summaries()
        found = find_collections(self.butler, self._settings.instrument)
        self._cache.mirror_collections(found.chains, found.calibrations)
        self._cache.register_runs(found.runs)
        return list(found.search)

    def _constraints(self, visit: BareVisit, detectors: tuple[int, ...]) -> VisitConstraints:
        regions: Mapping = {}
        if visit.ra is not None and visit.dec is not None and visit.rotation is not None:
            plane = self._description.focal_plane
            regions = plane.regions(visit.ra, visit.dec, visit.rotation, self._settings.preload_padding)
            regions = {d: regions[d] for d in detectors if d in regions}
        start = astropy.time.Time(visit.startTime or visit.private_sndStamp, format="unix_tai", scale="tai")
        length = astropy.time.TimeDelta(max(visit.duration, 1.0), format="sec", scale="tai")
        return VisitConstraints(
            instrument=visit.instrument,
            physical_filter=visit.filters or None,
            band=self.filters.get(visit.filters),
            skymap=self._settings.skymap,
            timespan=Timespan(start, start + length),
            regions=regions,
            detectors=detectors,
        )


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
