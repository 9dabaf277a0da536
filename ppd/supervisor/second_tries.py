"""What an operator has tried again: detector-visits that failed for good, and visits announced anew.

Nothing is made twice: what has outputs in central, in the spool or among the
dead letters is refused, and each attempt but the first asks the APDB.
"""

from __future__ import annotations

__all__ = ["try_again"]

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PpdError
from ..logs import bound
from ..messages import ControlReply, ControlRequest, DetectorKey
from ..visit import parse_visit, renewed
from .dead_letters import entry_names
from .journaled import JournaledVisit, Standing
from .table import State

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)


def try_again(supervisor: Supervisor, request: ControlRequest) -> ControlReply:
    """Have detector-visits that failed for good tried again, or a visit announced anew.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    request : `ppd.messages.ControlRequest`
        Has the group, the detectors (none: all that may be meant) and the
        reason.  With the command ``replay`` detectors are meant too that were
        not accepted when the visit was announced.

    Returns
    -------
    reply : `ppd.messages.ControlReply`
        The detectors that are tried again, those that are accepted for the
        first time, and those that are refused with the reason.

    Raises
    ------
    ppd.errors.PpdError
        Raised if nothing of it can be accepted now.
    """
    journal, instrument, group = supervisor.journal, supervisor.settings.instrument, request.group or ""
    journal.commit()
    known = journal.find(instrument, group)
    # Of an older night it may be forgotten bit by bit, and among that what forbids another try.
    oldest = supervisor.retention.oldest_night(time.time())
    if known is None or known.day_obs < oldest:
        error = f"The journal has no visit {group!r} of the nights from {oldest} on, which are kept."
        return ControlReply(ok=False, code="unknown", error=error)
    message = renewed(parse_visit(known.message), time.time()).model_dump(mode="json")
    supervisor.spool_watch.check_room(f"{instrument} group {group}")
    refused: dict[int, str] = {}
    result: dict[str, list[int]] = {"tried_again": [], "accepted": []}
    failed = _choose(supervisor, group, known, request, refused)
    if failed:
        result["tried_again"] = _accept_again(supervisor, known, message, failed, request.reason, refused)
    if request.command == "replay":
        new = (set(request.detectors) or set(supervisor.central.detectors)) - known.detectors.keys()
        if new:
            result["accepted"] = _accept_new(supervisor, known, message, new, refused, request.detectors)
    if not request.detectors and not failed and not refused and not result["accepted"]:
        what = "has failed, or was not accepted" if request.command == "replay" else "has failed"
        error = f"No detector-visit of visit {group!r} {what}."
        return ControlReply(ok=False, code="unknown", error=error)
    error = _tell(group, refused)
    if error:
        supervisor.counters.error("requests_refused", request.command, error)
    return ControlReply(
        ok=not refused,
        code="unknown" if refused else "ok",
        error=error or None,
        result={"group": group, **result, "refused": {str(d): refused[d] for d in sorted(refused)}},
    )


def _choose(
    supervisor: Supervisor,
    group: str,
    known: JournaledVisit,
    request: ControlRequest,
    refused: dict[int, str],
) -> list[int]:
    """Choose those that failed and have made nothing; say why not of the others that are meant."""
    replay = request.command == "replay"
    if request.detectors:
        wanted = sorted(set(request.detectors))
    else:
        # Of the others nobody has spoken.
        wanted = [d for d, standing in known.detectors.items() if standing.state == State.FAILED]
    waiting = _by_detector_visit(_ready_names(supervisor.settings.spool_dir))
    letters = _by_detector_visit(entry_names(supervisor.settings.spool_dir))
    chosen = []
    for detector in wanted:
        standing = known.detectors.get(detector)
        if standing is None:
            if not replay:
                refused[detector] = "it was not accepted; ppdctl submit --replay announces it anew"
            continue
        key = DetectorKey(instrument=supervisor.settings.instrument, group=group, detector=detector)
        stem = key.file_name.rpartition("-")[0]
        d = supervisor.lifecycle.table.get(group, detector)
        state = standing.state if d is None else d.state.value
        reason = _obstacle(standing, state, stem in waiting, letters.get(stem))
        if reason is None and detector in supervisor.pauses.detectors:
            reason = f"it is {supervisor.pauses.detectors[detector]}"
        if reason is None:
            chosen.append(detector)
        else:
            refused[detector] = reason
    return chosen


def _obstacle(standing: Standing, state: str, waits: bool, letter: str | None) -> str | None:
    """Say why a detector-visit may not be tried again, if so."""
    if state == State.EXPORTED:
        return "it was exported"
    if state != State.FAILED:
        return f"it is at work ({state})"
    if letter is not None:
        return f"its hand-over is among the dead letters: ppdctl dead-letters retry {letter}"
    if waits:
        return "outputs of it are in the spool, and will be exported"
    if standing.exported:
        return f"it failed, but {standing.exported} outputs of it were exported: they would be made twice"
    return None


def _accept_again(
    supervisor: Supervisor,
    known: JournaledVisit,
    message: Mapping[str, Any],
    detectors: Iterable[int],
    reason: str,
    refused: dict[int, str],
) -> list[int]:
    """Take detector-visits on again, as their next attempts."""
    wanted = set(detectors)
    try:
        # The night that it was accepted for stays, and so do its output runs' dates.
        entry = supervisor.admit(message, accepted=known.accepted, only=wanted)
    except PpdError as e:
        refused.update(dict.fromkeys(wanted, str(e)))
        return []
    for detector in wanted - entry.detectors.keys():
        refused[detector] = "the configuration has no pipeline for it any more"
    for number, d in entry.detectors.items():
        last = known.detectors[number].attempt
        # Not the first attempt, so that the APDB is asked; and all before it are forgiven.
        d.attempt, d.put_backs = last + 1, last
    seen = {number: known.detectors[number].raws for number in entry.detectors}
    supervisor.lifecycle.accept_again(entry, seen, reason)
    with bound(group=entry.visit.groupId):
        _LOG.warning(
            "An operator has %d detectors of visit %s tried again. %s",
            len(entry.detectors),
            entry.visit.identity,
            reason,
        )
    return sorted(entry.detectors)


def _accept_new(
    supervisor: Supervisor,
    known: JournaledVisit,
    message: Mapping[str, Any],
    detectors: set[int],
    refused: dict[int, str],
    named: Iterable[int],
) -> list[int]:
    """Accept detectors that were not accepted when the visit was announced."""
    try:
        entry = supervisor.admit(message, accepted=known.accepted, among=detectors)
        supervisor.lifecycle.accept(entry, "replay")
    except PpdError as e:
        # Nobody has asked for each that there is: some are paused, or have no pipeline.
        refused.update(dict.fromkeys(detectors & set(named), str(e)))
        return []
    for detector in (detectors & set(named)) - entry.detectors.keys():
        refused[detector] = "it is paused, or no pipeline is configured for it"
    return sorted(entry.detectors)


def _ready_names(spool: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError), os.scandir(spool / "ready") as entries:
        return [entry.name for entry in entries]
    return []


def _by_detector_visit(names: Iterable[str]) -> dict[str, str]:
    """Names of hand-overs by what is the same for all attempts at a detector-visit."""
    return {name.partition("~")[0].rpartition("-")[0]: name for name in names}


def _tell(group: str, refused: Mapping[int, str]) -> str:
    """Say what is refused, together where the reason is the same."""
    together: dict[str, list[int]] = {}
    for detector in sorted(refused):
        together.setdefault(refused[detector], []).append(detector)
    return "; ".join(
        f"{group} detector{'s' if len(d) > 1 else ''} {', '.join(map(str, d))}: {reason}"
        for reason, d in together.items()
    )
