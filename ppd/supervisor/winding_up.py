"""Ending the supervisor: what is finished first, and what is left for the next start."""

from __future__ import annotations

__all__ = ["EXIT_LEFT_OUTPUTS", "EXIT_LEFT_WORK", "exit_code", "wind_up"]

import logging
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .spool import has_ready, ready_entries
from .table import State

if TYPE_CHECKING:
    from .daemon import Supervisor

_LOG = logging.getLogger(__name__)

EXIT_LEFT_WORK = 6
"""Exit code when detector-visits are left for the next start, and perhaps hand-overs."""

EXIT_LEFT_OUTPUTS = 7
"""Exit code when nothing but hand-overs in the spool is left."""

# Signals to children that do not end, until their SIGKILL has worked.
_KILL_SECONDS = 3.0
# When it has to be now, all of it may take some two seconds.
_REAP_SECONDS = 0.7
_AT_ONCE = 0.3


def wind_up(supervisor: Supervisor, serve: Callable[[Callable[[], bool], float], None]) -> int:
    """Let running children finish, then the spool drain, each within its grace.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor; its ``hurried`` ends each wait.
    serve : callable
        Turns its loop until it is enough, for some seconds at most.

    Returns
    -------
    code : `int`
        Exit code.
    """
    settings, life = supervisor.settings, supervisor.lifecycle
    table, begin = life.table, time.monotonic()
    _LOG.info("Stopping: no more visits; children at work have %.0f s.", settings.stop_grace)
    supervisor.notifier.stopping()
    supervisor.drain()
    # From here on what can't be finished is left for the next start.
    life.endings.stopping = True
    supervisor.sources.stop()
    supervisor.visit_sources.stop(supervisor.patience(2.0))

    def patiently(enough: Callable[[], bool], seconds: float) -> None:
        serve(lambda: supervisor.hurried or enough(), seconds)

    # A child that waits for a raw waits for something that nobody looks for.
    patiently(lambda: not any(d.state is State.RUNNING for d in table.live()), settings.stop_grace)
    if not supervisor.hurried:
        life.terminate_all("ppd stops", signal.SIGTERM)
    patiently(lambda: not table.live(), settings.kill_grace + _KILL_SECONDS)
    patiently(lambda: not has_ready(settings.spool_dir), settings.drain_grace)
    if supervisor.hurried:
        _LOG.warning("Told again to stop: children are killed, the rest stays for the next start.")
        life.endings.hurried = True
        life.terminate_all("ppd stops at once", signal.SIGKILL)
        serve(lambda: not table.live(), _REAP_SECONDS)
    supervisor.exports.end(supervisor.patience(10.0))
    supervisor.nursery.stop(supervisor.patience(8.0))
    supervisor.last_words()
    return exit_code(supervisor, time.monotonic() - begin)


def exit_code(supervisor: Supervisor, seconds: float) -> int:
    """Say, also in the log, what is left.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor, all of whose children have ended.
    seconds : `float`
        How long the end took, for the log.

    Returns
    -------
    code : `int`
        0, `EXIT_LEFT_WORK` or `EXIT_LEFT_OUTPUTS`.
    """
    left = [d for d in supervisor.lifecycle.table.unfinished() if d.state is not State.HANDED_OVER]
    outputs = len(ready_entries(supervisor.settings.spool_dir))
    if not left and not outputs:
        _LOG.info("Stopped after %.1f s; nothing is left to do.", seconds)
        return 0
    _LOG.warning(
        "Stopped after %.1f s; %d detector-visits and %d hand-overs are left for the next start.",
        seconds,
        len(left),
        outputs,
    )
    return EXIT_LEFT_WORK if left else EXIT_LEFT_OUTPUTS


def seconds_for(seconds: float, hurried: bool) -> float:
    """How long to wait for something that should end by itself."""
    return min(seconds, _AT_ONCE) if hurried else seconds
