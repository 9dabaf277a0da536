"""What an operator does with dead letters: send them again, or drop them."""

from __future__ import annotations

__all__ = ["deal_with"]

import logging
from pathlib import Path

from ..messages import ControlReply, ControlRequest, DetectorKey
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
    if key is None:
        raise DeadLetterError(f"Dead letter {name}: its manifest can't be read. Mend it first.")
    journal.commit()
    if journal.trouble is not None:
        raise DeadLetterError(f"Dead letter {name}: the journal can't be written: {journal.trouble}.")
    # Outputs of a failure go to central, and it stays a failure: with its reason.
    reason = known[1] if known is not None and not letter.success else ""
    # Noted first: a hand-over of which the journal has that it is over would be discarded unheard.
    detail = {"attempt": key.attempt, "entry": name, "why": letter.reason}
    journal.event(key.instrument, key.group, key.detector, "dead_letter_retried", detail)
    _change(lifecycle, key, State.HANDED_OVER, reason)
    journal.commit()
    try:
        dead_letters.retry(spool, name)
    except DeadLetterError:
        _change(lifecycle, key, State.FAILED, known[1] if known else letter.reason)
        raise
    _LOG.warning("Dead letter %s is sent again; it was set aside because %s", name, letter.reason)
    d = lifecycle.table.of_key(key)
    if d is not None:
        d.exported, d.set_aside = False, ""
        if not letter.success:
            d.lost_cause = d.lost_cause or reason


def _change(lifecycle: Lifecycle, key: DetectorKey, state: State, reason: str) -> None:
    d = lifecycle.table.of_key(key)
    if d is not None:
        lifecycle.ledger.change(d, state, reason=reason or None)
        return
    lifecycle.ledger.journal.state(
        key.instrument, key.group, key.detector, state.value, attempt=key.attempt, reason=reason or None
    )


def _drop(lifecycle: Lifecycle, spool: Path, name: str) -> None:
    letter = read_letter(spool, name)
    dead_letters.drop(spool, name)
    _LOG.warning("Dead letter %s was dropped; it was set aside because %s", name, letter.reason)
    if letter.key is not None:
        detail = {"attempt": letter.key.attempt, "entry": name, "why": letter.reason}
        key = letter.key
        lifecycle.ledger.journal.event(key.instrument, key.group, key.detector, "dead_letter_dropped", detail)
