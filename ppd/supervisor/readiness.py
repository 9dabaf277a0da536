"""Whether a visit would be taken now, and could be processed."""

from __future__ import annotations

__all__ = ["why_not_able", "why_not_accepting"]

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
    if supervisor.journal.trouble:
        return f"the journal: {supervisor.journal.trouble}"
    try:
        supervisor.spool_watch.check_room("to come")
    except (PpdError, OSError) as e:
        return str(e)
    return None


def why_not_accepting(supervisor: Supervisor) -> str | None:
    """Say why a visit would be refused now, whoever's will that is; `None`: it would be taken.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    """
    if supervisor.stopping:
        return "ppd stops"
    if supervisor.draining:
        return "ppd is draining"
    if supervisor.pauses.all is not None:
        return str(supervisor.pauses.all)
    return why_not_able(supervisor)
