"""From an announced visit to inputs that are held for its detectors."""

from __future__ import annotations

__all__ = ["Gatherer"]

import dataclasses
import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import astropy.time
from lsst.daf.butler import Butler, DatasetRef, Timespan
from lsst.sphgeom import ConvexPolygon

from ..cache.repo import CacheRepo, Fetched
from ..cache.transfer import FetchFailure
from ..config import Settings
from ..crash_points import here
from ..deployment import date_string, run_name
from ..errors import NotInitializedError
from ..initializer import check_initialized
from ..instruments.description import InstrumentDescription
from ..messages import CacheView, InputType, PipelineSummary
from ..visit import BareVisit
from .deployments import Deployment
from .input_collections import InputCollections, find_collections
from .inputs import VisitInputs
from .reading import CentralButlers
from .requests import Resolve, Resolved
from .resolve import Resolution, VisitConstraints, resolve_inputs
from .withdrawn import find_uncertified, find_withdrawn

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Known:
    """What a deployment's visits need."""

    settings: Settings
    inputs: Mapping[str, tuple[InputType, ...]]
    """By path of a pipeline."""


class Gatherer:
    """Finds inputs, brings them into the cache, and promises them to children.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    description : `ppd.instruments.description.InstrumentDescription`
        The instrument.
    central : `ppd.supervisor.reading.CentralButlers`
        The central repo.
    cache : `ppd.cache.repo.CacheRepo`
        The cache.
    filters : `~collections.abc.Mapping` [ `str`, `str` ]
        Band by physical filter.

    Notes
    -----
    Of a night's constants only those are kept that can't change: definitions
    of dataset types, and the init-outputs of a run.  Everything else
    (collections and their order, what is in them, certifications, templates)
    is read at each visit, in one transaction, at one statement per dataset
    type: so a change is seen at the next visit.
    """

    def __init__(
        self,
        settings: Settings,
        description: InstrumentDescription,
        central: CentralButlers,
        cache: CacheRepo,
        filters: Mapping[str, str],
    ):
        self._settings = settings
        self._description = description
        self._central = central
        self._cache = cache
        self._filters = filters
        self._init_refs: dict[tuple[int, str], list[DatasetRef]] = {}
        self._known: dict[str, _Known] = {}
        self._latest = _Known(settings, {})

    def learn(self, pipelines: Iterable[PipelineSummary], deployment: Deployment | None = None) -> None:
        """Learn what the pipelines of a deployment need, of the first one if none is named."""
        inputs = {pipeline.path: pipeline.inputs for pipeline in pipelines}
        known = _Known(self._settings if deployment is None else deployment.settings, inputs)
        if deployment is not None:
            self._known[deployment.id] = known
        if deployment is None or len(self._known) == 1:
            self._latest = known

    def use(self, deployment: str) -> None:
        """Fetch ahead for this deployment from now on."""
        self._latest = self._known[deployment]

    def _of(self, deployment: str) -> _Known:
        return self._known.get(deployment, self._latest)

    def learn_day(self, day_obs: int, deployment: str) -> None:
        """Find the init-outputs of a day, and have them in the cache.

        Raises
        ------
        ppd.errors.PpdError
            Raised if they can't be had, `ppd.errors.NotInitializedError` if
            they are not there.
        """
        refs = self._init_outputs(day_obs, deployment)
        self.fetch(refs, frozenset(ref.id for ref in refs))

    def gather(self, request: Resolve) -> Resolved:
        """Find and hold the inputs of a visit's detectors.

        Parameters
        ----------
        request : `ppd.supervisor.requests.Resolve`
            The visit.

        Returns
        -------
        resolved : `ppd.supervisor.requests.Resolved`
            The answer.

        Raises
        ------
        ppd.errors.PpdError
            Raised if something fails for all detectors.
        """
        visit = request.visit
        init_refs = self._init_outputs(request.day_obs, request.deployment)
        known = self._of(request.deployment)
        declared = self._declared((*request.main.values(), *request.preprocessing.values()), known.inputs)
        padding = known.settings.preload_padding
        constraints = self._constraints(visit, tuple(sorted(request.main)), padding)
        found, resolution = self._find(declared, constraints)
        here("supervisor.inputs-found")
        self._cache.register_runs((*request.runs, f"{visit.instrument}/raw/all"))
        self._cache.withdraw(find_withdrawn(self._cache.refs(), declared, constraints, resolution))
        optional = frozenset(i.name for i in declared.values() if i.optional)
        inputs = VisitInputs(found.search, resolution, {}, optional)
        # What a detector has is of no use to it if something else is missing.
        wanted = set().union(
            *(
                resolution.detectors[d].ids
                for d in constraints.detectors
                if _refusal(request.main[d], known.inputs, inputs.lacking(d)) is None
            )
        )
        refs = [ref for i, ref in resolution.refs.items() if i in wanted]
        lasting = resolution.lasting | {ref.id for ref in init_refs}
        count, failed = self.fetch((*refs, *init_refs), lasting)
        here("supervisor.inputs-fetched")
        inputs = dataclasses.replace(inputs, failed=failed)
        valid = self.mirror(resolution)
        self._cache.decertify(find_uncertified(self._cache.certified(), declared, constraints, valid))
        views: dict[int, CacheView] = {}
        refused: dict[int, str] = {}
        postponed: dict[int, str] = {}
        init_ids = {ref.id for ref in init_refs} - failed.keys()
        for detector in constraints.detectors:
            refusal = _refusal(request.main[detector], known.inputs, inputs.lacking(detector))
            if refusal is None:
                ids = (resolution.detectors[detector].ids - failed.keys()) | init_ids
                views[detector] = self._lease(f"{visit.groupId}/{detector}", ids, found.search)
            else:
                reason, retry = refusal
                (postponed if retry else refused)[detector] = reason
        here("supervisor.inputs-leased")
        return Resolved(
            visit.groupId,
            views=views,
            refused=refused,
            postponed=postponed,
            inputs=inputs,
            fetched=count,
        )

    def overlapping(self, regions: Mapping[int, ConvexPolygon], physical_filter: str | None) -> Resolution:
        """Find the inputs of all detectors for now and some regions.

        Parameters
        ----------
        regions : `~collections.abc.Mapping` [ `int`, `lsst.sphgeom.ConvexPolygon` ]
            Region by detector.
        physical_filter : `str` or `None`
            Filter, if it is known.
        """
        start = astropy.time.Time.now().tai
        constraints = VisitConstraints(
            instrument=self._settings.instrument,
            physical_filter=physical_filter,
            band=self._filters.get(physical_filter or ""),
            skymap=self._settings.skymap,
            timespan=Timespan(start, start + astropy.time.TimeDelta(1.0, format="sec", scale="tai")),
            regions=regions,
            detectors=tuple(d.id for d in self._description.focal_plane.detectors),
        )
        inputs = self._latest.inputs
        return self._find(self._declared([tuple(inputs)], inputs), constraints)[1]

    def fetch(
        self, refs: Iterable[DatasetRef], lasting: frozenset[uuid.UUID], evict: bool = True
    ) -> tuple[int, Mapping[uuid.UUID, FetchFailure]]:
        """Bring datasets into the cache; see `ppd.cache.repo.CacheRepo.fetch`.

        Returns
        -------
        count : `int`
            How many were fetched.
        failed : `~collections.abc.Mapping`
            Those that could not be.
        """

        def fetch(butler: Butler) -> Fetched:
            # No transaction: it would be open for as long as files are copied.
            with butler.registry.caching_context():
                return self._cache.fetch(butler, wanted, lasting, evict)

        wanted = list(refs)
        fetched = self._central.read(fetch)
        if not (fetched.failed and self._central.has_replica):
            return fetched.count, fetched.failed
        # The replica may lag behind the primary in what it knows of files.
        wanted = [ref for ref in wanted if ref.id in fetched.failed]
        again = self._central.read(fetch, primary=True)
        return fetched.count + again.count, again.failed

    def mirror(self, resolution: Resolution) -> set[uuid.UUID]:
        """Give the cache the validity ranges and tags of what it holds.

        Returns
        -------
        valid : `set` [ `uuid.UUID` ]
            The calibs among it.
        """
        lacking = {ref.id for ref in self._cache.lacks(resolution.refs.values())}
        certified = [c for c in resolution.certifications if c.ref.id not in lacking]
        self._cache.certify((c.collection, c.ref, c.timespan) for c in certified)
        self._cache.associate((name, ref) for name, ref in resolution.tagged if ref.id not in lacking)
        return {c.ref.id for c in certified}

    def _find(
        self, declared: Mapping[str, InputType], constraints: VisitConstraints
    ) -> tuple[InputCollections, Resolution]:
        def find(butler: Butler) -> tuple[InputCollections, Resolution]:
            # One transaction: a consistent view, and one BEGIN instead of many.
            with butler.registry.caching_context(), butler.transaction():
                found = find_collections(butler, self._settings.instrument)
                return found, resolve_inputs(butler, found.search, declared.values(), constraints)

        def find_again(butler: Butler) -> tuple[InputCollections, Resolution]:
            try:
                return find(butler)
            except LookupError:
                # A sky map or a filter is younger than the records that a Butler
                # keeps in memory.
                butler.registry.refresh()
                return find(butler)

        found, resolution = self._central.read(find_again)
        self._cache.mirror_collections(found.chains, found.calibrations, found.tagged)
        self._cache.register_runs(found.runs)
        return found, resolution

    def _init_outputs(self, day_obs: int, deployment: str) -> list[DatasetRef]:
        """Return the init-outputs of a day; they are written once, before work begins."""
        day = (day_obs, deployment)
        if day not in self._init_refs:

            def find(butler: Butler) -> list[DatasetRef]:
                butler.registry.refresh()
                with butler.registry.caching_context(), butler.transaction():
                    check_initialized(butler, self._of(deployment).settings, day_obs, deployment)
                    return self._find_init_outputs(butler, day_obs, deployment)

            try:
                self._init_refs[day] = self._central.read(find)
            except NotInitializedError:
                if not self._central.has_replica:
                    raise
                # The replica may lag behind what ppd-init wrote to the primary.
                self._init_refs[day] = self._central.read(find, primary=True)
        return self._init_refs[day]

    def _find_init_outputs(self, butler: Butler, day_obs: int, deployment: str) -> list[DatasetRef]:
        refs = []
        date = date_string(day_obs)
        for path in self._of(deployment).inputs:
            run = run_name(self._settings.instrument, date, path, deployment)
            info = butler.collections.get_info(run, include_summary=True)
            for name in sorted(info.dataset_types or ()):
                dataset_type = butler.get_dataset_type(name)
                if not dataset_type.dimensions:
                    refs += butler.query_datasets(dataset_type, collections=run, explain=False)
        return refs

    def _declared(
        self, orders: Iterable[tuple[str, ...]], inputs: Mapping[str, tuple[InputType, ...]]
    ) -> dict[str, InputType]:
        """Overall inputs of pipelines by name; optional if all can do without."""
        declared: dict[str, InputType] = {}
        for path in dict.fromkeys(path for paths in orders for path in paths):
            for input_type in inputs[path]:
                known = declared.get(input_type.name)
                if known is None or (known.optional and not input_type.optional):
                    declared[input_type.name] = input_type
        return declared

    def _lease(self, holder: str, ids: set[uuid.UUID], collections: tuple[str, ...]) -> CacheView:
        snapshot = self._cache.lease(holder, ids)
        return CacheView(
            snapshot=str(snapshot), config=str(self._cache.child_config), collections=collections
        )

    def _constraints(self, visit: BareVisit, detectors: tuple[int, ...], padding: float) -> VisitConstraints:
        regions: Mapping[int, ConvexPolygon] = {}
        if visit.pointing is not None:
            plane = self._description.focal_plane
            regions = plane.regions(*visit.pointing, padding, detectors)
        start = astropy.time.Time(visit.startTime or visit.private_sndStamp, format="unix_tai", scale="tai")
        length = astropy.time.TimeDelta(max(visit.duration, 1.0), format="sec", scale="tai")
        return VisitConstraints(
            instrument=visit.instrument,
            physical_filter=visit.filters or None,
            band=self._filters.get(visit.filters),
            skymap=self._settings.skymap,
            timespan=Timespan(start, start + length),
            regions=regions,
            detectors=detectors,
        )


def _refusal(
    main: tuple[str, ...],
    inputs: Mapping[str, tuple[InputType, ...]],
    lacking: Mapping[str, tuple[str, bool]],
) -> tuple[str, bool] | None:
    """Say why none of the main pipelines can run, and whether that may change.

    The graph builder in the child decides finely.
    """
    reasons, retry = [], False
    for path in main:
        gone = {i.name: lacking[i.name] for i in inputs[path] if i.name in lacking and not i.optional}
        if not gone:
            return None
        retry |= all(again for _, again in gone.values())
        reasons.append(
            f"{Path(path).stem} lacks " + ", ".join(f"{n} ({reason})" for n, (reason, _) in gone.items())
        )
    return "; ".join(reasons), retry
