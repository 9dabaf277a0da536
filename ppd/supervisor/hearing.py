"""What the supervisor hears in a turn of its loop, and who is told.

Nothing that arrives may end the loop: what can't be understood is answered or
logged, and counted, and takes nothing else with it.
"""

from __future__ import annotations

__all__ = ["hear_children", "hear_inbox", "hear_nursery", "hear_requests"]

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._sockets import LOOKING
from ..crash_points import here
from ..errors import ConfigurationError
from ..logs import bound
from ..messages import (
    ControlReply,
    ControlRequest,
    MessageError,
    NurseryReady,
    PrepareNursery,
    SetupFailed,
    decode,
)
from ..sources.raws import Candidate
from ..sources.visits import Heard, Undelivered
from .announcements import take_announcements
from .callers import Caller, refusal, who
from .commands import answer
from .requests import AskCache, CacheSaid, DayKnown, Learned, Released, Resolved

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)


def hear_children(supervisor: Supervisor) -> None:
    """Take what children have said."""
    counters = supervisor.counters
    for identity, body in supervisor.sockets.from_children():
        try:
            supervisor.lifecycle.child_said(identity, decode(body))
        except MessageError as e:
            counters.error("child_messages_refused", repr(identity), str(e))
        except Exception:
            counters.add("internal_errors")
            _LOG.exception("A message of %r could not be taken.", identity)


def hear_nursery(supervisor: Supervisor) -> None:
    """Take what nurseries have said, and see whether one has ended unasked."""
    nursery, central, lifecycle = supervisor.nursery, supervisor.central, supervisor.lifecycle
    for message in nursery.receive():
        if isinstance(message, NurseryReady) and not central.started:
            here("supervisor.nursery-ready")
            supervisor.begin_work(message)
        elif isinstance(message, SetupFailed) and not central.started:
            supervisor.fatal = ConfigurationError(message.reason)
        else:
            lifecycle.nursery_said(message)
    for holder in nursery.take_released():
        central.request(Released(holder))
    for generation, orphans in nursery.check():
        if not central.started and not nursery.was_killed:
            # What is wrong with the first one will not go away.
            supervisor.fatal = supervisor.fatal or ConfigurationError(
                "The nursery ended before it was ready; its error is in the log."
            )
            return
        supervisor.counters.error("nursery_restarts", "nursery", "the nursery ended unasked")
        lifecycle.nursery_lost(generation, orphans)


def hear_inbox(supervisor: Supervisor) -> None:
    """Take what other threads have said."""
    for item in supervisor.inbox.drain():
        # One that fails takes none of the others with it.
        supervisor.guarded(functools.partial(_take, supervisor, item))


def _take(supervisor: Supervisor, item: Any) -> None:
    if isinstance(item, Candidate):
        supervisor.lifecycle.raw_seen(item)
    elif isinstance(item, Heard):
        take_announcements(supervisor, item)
    elif isinstance(item, Undelivered) and item.gone:
        supervisor.counters.error("visits_gone", item.ticket, f"{item.source}: {item.text}")
        _LOG.error("Announcement %s of %s is lost: %s.", item.ticket, item.source, item.text)
    elif isinstance(item, Undelivered):
        supervisor.counters.error("visits_undeliverable", item.ticket, f"{item.source}: {item.text}")
        _LOG.error("Announcement %s of %s is set aside: %s.", item.ticket, item.source, item.text)
    elif isinstance(item, Resolved):
        supervisor.lifecycle.inputs.resolved(item)
    elif isinstance(item, DayKnown):
        if supervisor.rollover.looked(item):
            supervisor.lifecycle.inputs.ask_now(item.day_obs, item.deployment)
    elif isinstance(item, CacheSaid):
        supervisor.answers += supervisor.questions.answered(item.number, item.reply)
    elif isinstance(item, Learned):
        supervisor.reloader.learned(item)
    elif isinstance(item, PrepareNursery):
        supervisor.nursery.prepare(item)


def hear_requests(supervisor: Supervisor) -> None:
    """Take what was asked; the answers are sent when the journal has what they promise."""
    counters = supervisor.counters
    # Looked for once a turn, and only if somebody asks: many announcements may come together.
    task_pids = functools.cache(supervisor.task_pids)
    for caller, body in supervisor.sockets.requests():
        try:
            request = decode(body)
            if not isinstance(request, ControlRequest):
                raise MessageError(f"{type(request).__name__} is no request")
            reply = _answer(supervisor, caller, request, task_pids)
            if reply is None:
                # The thread that owns the cache answers.
                number = supervisor.questions.ask(caller)
                supervisor.central.request(AskCache(number, request))
                continue
        except MessageError as e:
            counters.error("requests_refused", "control", str(e))
            reply = ControlReply(ok=False, code="malformed", error=str(e))
        except Exception as e:
            counters.add("internal_errors")
            _LOG.exception("A command failed.")
            reply = ControlReply(ok=False, code="unavailable", error=f"{type(e).__name__}: {e}")
        supervisor.answers.append((caller, reply))
    supervisor.answers += supervisor.questions.overdue()


def _answer(
    supervisor: Supervisor, caller: Caller, request: ControlRequest, task_pids: Callable[[], set[int]]
) -> ControlReply | None:
    """Answer a request, if it is of one who may ask for that; who changes something is in the log."""
    with bound(**who(caller)):
        why = refusal(caller, request.command, supervisor.groups, task_pids())
        if why is not None:
            supervisor.counters.error("requests_forbidden", request.command, why)
            _LOG.warning("A request to %s is refused: %s", request.command, why)
            return ControlReply(ok=False, code="forbidden", error=why)
        # A player submits and a command waits for the end of draining: each once is enough.
        silent = request.command in ("submit", "announce") or (
            request.command == "drain" and supervisor.draining
        )
        if request.command not in LOOKING and not silent:
            _LOG.info("Asked to %s.", request.command)
        return answer(supervisor, request)
