"""Whether and how a nextVisit message becomes work."""

from __future__ import annotations

__all__ = ["DuplicateVisitError", "OtherInstrumentError", "admit"]

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from lsst.sphgeom import LonLat

from ..config import Settings
from ..deployment import NO_PIPELINE, date_string, day_obs, run_name
from ..errors import IgnorableVisitError, InvalidVisitError
from ..focalplane import FocalPlane
from ..pipelines import by_position, choose
from ..visit import BareVisit, FannedOutVisit, check_fresh, parse_visit
from .deployments import Deployment
from .table import DetectorVisit, VisitEntry


class DuplicateVisitError(InvalidVisitError):
    """Raised when every detector of a message was accepted before."""


class OtherInstrumentError(InvalidVisitError):
    """Raised when a message is for an instrument that this ppd does not serve."""


def admit(
    message: Any,
    *,
    settings: Settings,
    deployment: Deployment,
    focal_plane: FocalPlane,
    detectors: frozenset[int],
    filters: Mapping[str, str],
    known: Callable[[str, str], set[int]],
    earlier: Callable[[str], VisitEntry | None] = lambda group: None,
    accepted: float | None = None,
    only: Iterable[int] | None = None,
    paused: Mapping[int, object] = MappingProxyType({}),
    among: Iterable[int] | None = None,
) -> VisitEntry:
    """Validate a message and plan its detector-visits.

    Parameters
    ----------
    message
        The message: text, bytes or object.
    settings : `ppd.config.Settings`
        The configuration.
    deployment : `ppd.supervisor.deployments.Deployment`
        What new visits are processed with.
    focal_plane : `ppd.focalplane.FocalPlane`
        Where the detectors look.
    detectors : `frozenset` [ `int` ]
        Detectors that the central repo has for science.
    filters : `~collections.abc.Mapping` [ `str`, `str` ]
        Band by physical filter.
    known : callable
        Detectors of an instrument's group that were accepted before.
    earlier : callable, optional
        The visit of a group that is known: a detector that is announced
        while others are at work belongs to the same day and deployment.
    accepted : `float`, optional
        When the visit was first accepted, if that was before (recovery).
    only : iterable of `int`, optional
        Just these detectors (recovery).
    paused : `~collections.abc.Mapping` [ `int`, `object` ], optional
        Detectors that new visits are taken without, and why.
    among : iterable of `int`, optional
        Only detectors among these are meant, whatever the message says.

    Returns
    -------
    entry : `ppd.supervisor.table.VisitEntry`
        The visit with the detectors to process.

    Raises
    ------
    ppd.errors.InvalidVisitError
        Raised if the message can't be understood or contradicts the
        instrument; `ppd.errors.StaleVisitError` if it is too old;
        `DuplicateVisitError` if it came before, `OtherInstrumentError` if
        it is for another instrument.
    ppd.errors.IgnorableVisitError
        Raised if the configuration has no pipeline for any of its detectors,
        or all of them are paused.
    """
    now = time.time()
    visit = parse_visit(message)
    if not visit.is_observation:
        raise IgnorableVisitError(f"Visit {visit.identity} is no observation.")
    if visit.instrument != settings.instrument:
        raise OtherInstrumentError(
            f"Visit {visit.identity}: unknown instrument; this ppd serves {settings.instrument}."
        )
    if visit.filters and visit.filters not in filters:
        raise InvalidVisitError(
            f"Visit {visit.identity}: unknown filter {visit.filters!r}; "
            f"{settings.instrument} has {', '.join(sorted(filters))}."
        )
    wanted = detectors & {d.id for d in focal_plane.detectors}
    fanned_out = isinstance(visit, FannedOutVisit)
    if isinstance(visit, FannedOutVisit):
        if visit.detector not in wanted:
            raise InvalidVisitError(
                f"Visit {visit.identity}: {settings.instrument} has no science detector {visit.detector}."
            )
        wanted = frozenset({visit.detector})
        visit = BareVisit.model_validate(visit.model_dump(exclude={"detector"}))
    if among is not None:
        meant = frozenset(among)
        if not wanted & meant:
            named = ", ".join(map(str, sorted(meant)[:5]))
            raise InvalidVisitError(f"Visit {visit.identity} is for no science detector among {named}.")
        wanted &= meant
    if only is None:
        check_fresh(visit, now, settings.message_expiration)
        fresh = wanted - known(visit.instrument, visit.groupId)
        if not fresh:
            raise DuplicateVisitError(f"Visit {visit.identity} was accepted before.")
        without = fresh & paused.keys()
        fresh -= without
        if not fresh:
            some = min(without)
            raise IgnorableVisitError(f"Visit {visit.identity}: detector {some} is {paused[some]}.")
    else:
        fresh = wanted & frozenset(only)
    first = accepted or now
    before = earlier(visit.groupId)
    day = day_obs(first)
    if before is not None and before.unfinished:
        day, deployment = before.day_obs, before.deployment
    pipelines = deployment.settings
    announced = now - visit.age(now)
    expires = announced + settings.message_expiration
    planned = {}
    nodes = (*pipelines.preprocessing_pipelines, *pipelines.main_pipelines)
    centres = _centres(visit, focal_plane, fresh) if by_position(nodes) else {}
    for detector in sorted(fresh):
        main = choose(pipelines.main_pipelines, visit, centres.get(detector))
        if main:
            planned[detector] = DetectorVisit(
                instrument=visit.instrument,
                group=visit.groupId,
                detector=detector,
                preprocessing=choose(pipelines.preprocessing_pipelines, visit, centres.get(detector)),
                main=main,
                accepted=first,
                expires=expires,
                announced=announced,
                child_memory=pipelines.child_memory,
            )
    if not planned:
        raise IgnorableVisitError(f"Visit {visit.identity}: no pipeline is configured for it.")
    paths = {p for d in planned.values() for p in (*d.preprocessing, *d.main)} | {NO_PIPELINE}
    date = date_string(day)
    runs = {path: run_name(visit.instrument, date, path, deployment.id) for path in sorted(paths)}
    return VisitEntry(
        visit=visit,
        accepted=first,
        day_obs=day,
        deployment=deployment,
        runs=runs,
        detectors=planned,
        fanned_out=fanned_out,
    )


def _centres(
    visit: BareVisit, focal_plane: FocalPlane, detectors: Collection[int]
) -> dict[int, tuple[float, float]]:
    if visit.pointing is None:
        return {}
    centres = {}
    for detector, region in focal_plane.regions(*visit.pointing, detectors=detectors).items():
        position = LonLat(region.getCentroid())
        centres[detector] = (position.getLon().asDegrees() % 360.0, position.getLat().asDegrees())
    return centres
