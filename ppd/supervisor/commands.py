"""What ``ppdctl`` and players may ask of the supervisor, and the answers."""

from __future__ import annotations

__all__ = ["answer"]

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..crash_points import here
from ..deployment import day_obs
from ..errors import PpdError
from ..messages import ControlReply, ControlRequest, Pointing
from .announcements import announce
from .inputs import describe_inputs
from .metrics import exposition
from .overview import describe_detectors
from .redelivery import deal_with
from .refusals import refusal_of
from .requests import Prefetch
from .second_tries import try_again
from .status import describe
from .steering import cancel, pause_or_resume
from .table import State
from .visits_in_hand import describe_visits

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)


def answer(supervisor: Supervisor, request: ControlRequest) -> ControlReply | None:
    """Do what a request asks for.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    request : `ppd.messages.ControlRequest`
        The request.

    Returns
    -------
    reply : `ppd.messages.ControlReply` or `None`
        To be sent once the journal is durable; `None`: the thread that owns
        the cache has to be asked.
    """
    if request.command == "submit":
        return _submit(supervisor, request)
    if request.command == "announce":
        return announce(supervisor, request)
    if request.command in ("show_cache", "evict", "pin", "unpin"):
        return None
    if request.command == "visits":
        night = day_obs(time.time())
        return ControlReply(ok=True, result={"night": night, "visits": describe_visits(supervisor)})
    if request.command in ("retry", "replay"):
        return _accepting(supervisor, lambda: try_again(supervisor, request))
    if request.command == "inputs":
        return _inputs(supervisor, request)
    if request.command == "prefetch":
        return _prefetch(supervisor, request.pointings)
    if request.command in ("retry_dead_letters", "drop_dead_letters"):
        return deal_with(supervisor.lifecycle, supervisor.settings.spool_dir, request)
    if request.command == "reload":
        number, refusal = supervisor.reloader.begin("ppdctl")
        if refusal is not None:
            return ControlReply(ok=False, code="unavailable", error=refusal)
        return ControlReply(ok=True, result=supervisor.reloader.describe(number))
    if request.command == "reloading":
        return ControlReply(ok=True, result=supervisor.reloader.describe(request.number))
    if request.command in ("pause", "resume"):
        return pause_or_resume(supervisor, request)
    if request.command == "cancel":
        return cancel(supervisor, request)
    if request.command == "metrics":
        return ControlReply(ok=True, result={"text": exposition(supervisor)})
    if request.command == "detectors":
        return ControlReply(ok=True, result=describe_detectors(supervisor))
    if request.command == "drain":
        supervisor.drain()
        return ControlReply(ok=True, result={"drained": supervisor.idle()})
    if request.command == "stop":
        supervisor.stop(now=request.now)
        return ControlReply(ok=True)
    return ControlReply(ok=True, result=describe(supervisor))


def _submit(supervisor: Supervisor, request: ControlRequest) -> ControlReply:
    def accept() -> ControlReply:
        entry = supervisor.admit(request.visit, among=request.detectors or None)
        supervisor.spool_watch.check_room(entry.visit.identity)
        here("supervisor.visit-validated")
        supervisor.lifecycle.accept(entry, "control")
        result = {"group": entry.visit.groupId, "detectors": sorted(entry.detectors)}
        return ControlReply(ok=True, result=result)

    return _accepting(supervisor, accept)


def _accepting(supervisor: Supervisor, accept: Callable[[], ControlReply]) -> ControlReply:
    """Accept something if visits are taken at all, and count what is refused."""
    if supervisor.draining or supervisor.stopping:
        what = "stops" if supervisor.stopping else "is draining"
        return ControlReply(ok=False, code="unavailable", error=f"ppd {what} and takes no visits.")
    here("supervisor.visit-received")
    try:
        supervisor.pauses.check()
        return accept()
    except PpdError as e:
        refusal = refusal_of(e)
        if refusal is None:
            raise
        _note(supervisor, *refusal, str(e))
        return ControlReply(ok=False, code=refusal.code, error=str(e))


def _inputs(supervisor: Supervisor, request: ControlRequest) -> ControlReply:
    entry = supervisor.lifecycle.table.visits.get(request.group or "")
    if entry is None:
        return ControlReply(
            ok=False, code="unknown", error=f"No visit {request.group!r} is among those at work or just over."
        )
    if request.detector is not None and request.detector not in entry.detectors:
        return ControlReply(
            ok=False, code="unknown", error=f"Visit {request.group!r} has no detector {request.detector}."
        )
    if not entry.inputs and not any(d.state is State.ACCEPTED for d in entry.detectors.values()):
        return ControlReply(
            ok=False,
            code="unknown",
            error=f"What visit {request.group!r} got was not found, or is not kept any more.",
        )
    result = describe_inputs(entry.inputs, request.detector)
    looking = [d.detector for d in entry.detectors.values() if str(d.detector) not in result["detectors"]]
    if request.detector is not None:
        looking = [d for d in looking if d == request.detector]
    return ControlReply(ok=True, result={"group": request.group, **result, "looking": sorted(looking)})


def _prefetch(supervisor: Supervisor, pointings: tuple[Pointing, ...]) -> ControlReply:
    filters = supervisor.central.filters
    for pointing in pointings:
        if pointing.physical_filter is not None and pointing.physical_filter not in filters:
            reason = (
                f"Unknown filter {pointing.physical_filter!r}; "
                f"{supervisor.settings.instrument} has {', '.join(sorted(filters))}."
            )
            supervisor.counters.error("requests_refused", "prefetch", reason)
            return ControlReply(ok=False, code="malformed", error=reason)
    supervisor.central.request(Prefetch(pointings))
    return ControlReply(ok=True, result={"pointings": len(pointings)})


def _note(supervisor: Supervisor, name: str, code: str, text: str) -> None:
    if code == "ignored":
        supervisor.counters.add(name)
        _LOG.info("%s", text)
    else:
        supervisor.counters.error(name, "submit", text)
        _LOG.error("Refused: %s", text)
