"""Whether a visit would be taken now, and could be processed."""

from __future__ import annotations

__all__ = ["why_not_able", "why_not_accepting", "why_not_hearing"]

from typing import TYPE_CHECKING

from ..errors import PpdError

if TYPE_CHECKING:
    from .daemon import Supervisor


def why_not_able(supervisor: Supervisor) -> str | None:
    """Try what an announcement has to get past that is not an operator's will, nor its own content.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.

    Returns
    -------
    reason : `str` or `None`
        What keeps ppd from taking a visit and processing it; `None`: nothing does.
    """
    if not supervisor.central.started:
        return "the first nursery is being built"
    if not supervisor.nursery.ready:
        return f"the nursery: {supervisor.nursery.trouble or 'it is starting'}"
    return _why_not_durable(supervisor)


def _why_not_durable(supervisor: Supervisor) -> str | None:
    if supervisor.journal.trouble:
        return f"the journal: {supervisor.journal.trouble}"
    try:
        supervisor.spool_watch.check_room("to come")
    except (PpdError, OSError) as e:
        return str(e)
    return None


def why_not_hearing(supervisor: Supervisor) -> str | None:
    """Say why announcements should stay where they are, for others or for later; `None`: they may come.

    Without a nursery they may: they wait in the journal.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    """
    return _why_not_wanted(supervisor) or _why_not_durable(supervisor)


def why_not_accepting(supervisor: Supervisor) -> str | None:
    """Say why a visit would be refused now, whoever's will that is; `None`: it would be taken.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    """
    return _why_not_wanted(supervisor) or why_not_able(supervisor)


def _why_not_wanted(supervisor: Supervisor) -> str | None:
    if supervisor.stopping:
        return "ppd stops"
    if supervisor.draining:
        return "ppd is draining"
    return None if supervisor.pauses.all is None else str(supervisor.pauses.all)
