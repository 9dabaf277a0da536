"""What an operator does with dead letters: send them again, or drop them."""

from __future__ import annotations

__all__ = ["deal_with"]

import logging
from pathlib import Path

from ..messages import ControlReply, ControlRequest
from . import dead_letters
from .dead_letters import DeadLetterError, read_letter
from .lifecycle import Lifecycle
from .table import State

_LOG = logging.getLogger(__name__)

# Of what is at work another hand-over may come, and central can have only one.
_MAY_GO_AGAIN = (State.FAILED, State.HANDED_OVER)


def deal_with(lifecycle: Lifecycle, spool: Path, request: ControlRequest) -> ControlReply:
    """Send dead letters again, or drop them.

    Parameters
    ----------
    lifecycle : `ppd.supervisor.lifecycle.Lifecycle`
        Knows the detector-visits.
    spool : `pathlib.Path`
        Root of the spool.
    request : `ppd.messages.ControlRequest`
        Names them, and says which of the two.

    Returns
    -------
    reply : `ppd.messages.ControlReply`
        What was done, and what not with the reason.
    """
    act = _retry if request.command == "retry_dead_letters" else _drop
    done, refused = [], {}
    for name in request.entries:
        try:
            act(lifecycle, spool, name)
            done.append(name)
        except DeadLetterError as e:
            refused[name] = str(e)
    return ControlReply(
        ok=not refused,
        code="unknown" if refused else "ok",
        error=" ".join(refused.values()) or None,
        result={"done": done, "refused": refused},
    )


def _retry(lifecycle: Lifecycle, spool: Path, name: str) -> None:
    letter = read_letter(spool, name)
    journal = lifecycle.ledger.journal
    key, known = letter.key, None
    if key is not None:
        known = journal.state_of(key.instrument, key.group, key.detector)
        if known is not None and known[0] not in _MAY_GO_AGAIN:
            raise DeadLetterError(f"Dead letter {name}: detector-visit {key} is {known[0]}.")
    key = dead_letters.retry(spool, name)
    _LOG.warning("Dead letter %s is sent again; it was set aside because %s", name, letter.reason)
    # Outputs of a failure go to central, and it stays a failure: with its reason.
    reason = known[1] if known is not None and not letter.success else ""
    d = lifecycle.table.of_key(key)
    if d is not None:
        d.exported = False
        lifecycle.ledger.event(d, "dead_letter_retried", entry=name, why=letter.reason)
        lifecycle.ledger.change(d, State.HANDED_OVER, reason=reason or None)
        if not letter.success:
            d.lost_cause = d.lost_cause or reason
        return
    detail = {"attempt": key.attempt, "entry": name, "why": letter.reason}
    journal.event(key.instrument, key.group, key.detector, "dead_letter_retried", detail)
    journal.state(
        key.instrument,
        key.group,
        key.detector,
        State.HANDED_OVER.value,
        attempt=key.attempt,
        reason=reason or None,
    )


def _drop(lifecycle: Lifecycle, spool: Path, name: str) -> None:
    letter = read_letter(spool, name)
    dead_letters.drop(spool, name)
    _LOG.warning("Dead letter %s was dropped; it was set aside because %s", name, letter.reason)
    if letter.key is not None:
        detail = {"attempt": letter.key.attempt, "entry": name, "why": letter.reason}
        key = letter.key
        lifecycle.ledger.journal.event(key.instrument, key.group, key.detector, "dead_letter_dropped", detail)
