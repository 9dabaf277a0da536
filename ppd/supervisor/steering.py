"""What an operator tells ppd to do with visits and detectors: pause, go on, cancel."""

from __future__ import annotations

__all__ = ["cancel", "describe_pauses", "pause_or_resume"]

import logging
import signal
from collections.abc import Set
from typing import TYPE_CHECKING

from ..errors import PpdError
from ..logs import bound
from ..messages import ControlReply, ControlRequest
from .deadlines import terminate
from .table import LIVE, PAST_CHILDREN, DetectorVisit

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)


def pause_or_resume(supervisor: Supervisor, request: ControlRequest) -> ControlReply:
    """Take no visits, or take them without some detectors, until told otherwise.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    request : `ppd.messages.ControlRequest`
        Says which of the two; has the detectors (none: all of ppd) and the reason.

    Returns
    -------
    reply : `ppd.messages.ControlReply`
        What is paused now.
    """
    there = {d.id for d in supervisor.focal_plane.detectors}
    refusal = _refuse_strange(request, there, supervisor.settings.instrument)
    if refusal is not None:
        return refusal
    pauses = supervisor.pauses
    try:
        if request.command == "pause":
            pauses.pause(request.detectors, request.reason)
        else:
            pauses.resume(request.detectors)
    except PpdError as e:
        return ControlReply(ok=False, code="unavailable", error=str(e))
    what = f"detectors {', '.join(map(str, request.detectors))}" if request.detectors else "all"
    _LOG.warning("An operator has told ppd to %s: %s. %s", request.command, what, request.reason)
    return ControlReply(ok=True, result=describe_pauses(supervisor))


def describe_pauses(supervisor: Supervisor) -> dict[str, object]:
    """What is paused, as JSON."""
    pauses = supervisor.pauses
    return {
        "all": pauses.all and pauses.all.model_dump(),
        "detectors": {str(number): p.model_dump() for number, p in pauses.detectors.items()},
    }


def cancel(supervisor: Supervisor, request: ControlRequest) -> ControlReply:
    """End detector-visits of a visit that are not over; they are failures, with that as the reason.

    What a child has stored in the APDB stays there, and what it has made until
    then is exported, as of any final failure.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    request : `ppd.messages.ControlRequest`
        Has the group, the detectors (none: all) and the reason.

    Returns
    -------
    reply : `ppd.messages.ControlReply`
        The detectors that are cancelled, and those that were over.
    """
    entry = supervisor.lifecycle.table.visits.get(request.group or "")
    if entry is None:
        error = f"No visit {request.group!r} is among those at work or just over."
        return ControlReply(ok=False, code="unknown", error=error)
    refusal = _refuse_strange(request, entry.detectors.keys(), f"Visit {request.group!r}")
    if refusal is not None:
        return refusal
    reason = "cancelled by an operator" + (f": {request.reason}" if request.reason else "")
    wanted = [entry.detectors[n] for n in sorted(set(request.detectors) or entry.detectors)]
    over = [d.detector for d in wanted if d.state in PAST_CHILDREN]
    ended = [d for d in wanted if d.state not in PAST_CHILDREN]
    for d in ended:
        _cancel(supervisor, d, reason)
    result = {"cancelled": [d.detector for d in ended], "over": over}
    if not ended:
        return ControlReply(ok=False, code="unknown", error="All of that is over.", result=result)
    return ControlReply(ok=True, result=result)


def _refuse_strange(request: ControlRequest, there: Set[int], whose: str) -> ControlReply | None:
    """Refuse a request that names detectors which are not there."""
    strange = sorted(set(request.detectors) - there)
    if not strange:
        return None
    error = f"{whose} has no detectors {', '.join(map(str, strange))}."
    return ControlReply(ok=False, code="unknown", error=error)


def _cancel(supervisor: Supervisor, d: DetectorVisit, reason: str) -> None:
    d.may_retry = False
    if d.state in LIVE:
        terminate(d, reason, signal.SIGTERM)
    elif d.predecessor is not None:
        # A killed attempt may have reached the APDB: that is found out, and nothing is run.
        why = f"{reason}; {d.predecessor.reason}"
        d.predecessor = d.predecessor.model_copy(update={"last": True, "reason": why})
    else:
        with bound(group=d.group, detector=d.detector):
            _LOG.warning("Detector-visit %s is %s.", d.key, reason)
        supervisor.lifecycle.endings.fail(d, reason)
