"""How long a child may take, and how it is ended when it takes longer."""

from __future__ import annotations

__all__ = ["check_time", "terminate"]

import contextlib
import logging
import os
import signal
import time

from ..config import Settings
from ..logs import bound
from ..messages import NoMoreRaws
from .strays import kill_family, signal_group
from .table import DetectorVisit, State

_LOG = logging.getLogger(__name__)

# What a busy nursery may need until it comes to a request: it forks one by one.
_FORK_SECONDS = 120.0
# Phases in which a child waits for something that others hold.
_WAITING = ("queued_", "spool_full")


def check_time(d: DetectorVisit, now: float, settings: Settings) -> list[NoMoreRaws]:
    """End a child that is late, and find out whether it should stop waiting for raws.

    Parameters
    ----------
    d : `ppd.supervisor.table.DetectorVisit`
        A detector-visit that has a child.
    now : `float`
        Monotonic seconds.
    settings : `ppd.config.Settings`
        The time-outs.

    Returns
    -------
    messages : `list` [ `ppd.messages.NoMoreRaws` ]
        What to send to the child.
    """
    if d.terminated_at is not None:
        if now > d.terminated_at + settings.kill_grace:
            _kill(d, signal.SIGKILL)
    elif now > d.heard_at + settings.heartbeat_timeout + (_FORK_SECONDS if d.pid is None else 0.0):
        terminate(d, "its child was not heard of for too long", signal.SIGKILL)
    elif now > d.forked_at + settings.worker_timeout and not d.phase.startswith(_WAITING):
        # It took its time; another try would take it again.
        d.may_retry = False
        terminate(d, f"it took longer than {settings.worker_timeout:.0f} s", signal.SIGTERM)
    elif d.phase == "main" and settings.main_timeout and now > d.phase_at + settings.main_timeout:
        d.may_retry = False
        terminate(d, f"its main pipeline took longer than {settings.main_timeout:.0f} s", signal.SIGTERM)
    elif d.phase == "preprocess" and now > d.phase_at + settings.preprocess_timeout:
        _cut_short(d, now, settings)
    elif d.state is State.READY and d.raws_until is not None and now > d.raws_until and not d.told_no_more:
        d.told_no_more = True
        return [NoMoreRaws(reason="the time-out for raws has passed")]
    return []


def _cut_short(d: DetectorVisit, now: float, settings: Settings) -> None:
    """End a child's pre-processing, and the child if it does not let go."""
    reason = f"its pre-processing took longer than {settings.preprocess_timeout:.0f} s"
    if d.cut_at is None:
        d.cut_at = now
        with bound(group=d.group, detector=d.detector):
            _LOG.warning("Detector-visit %s: %s; it goes on without.", d.key, reason)
        if d.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(d.pid, signal.SIGUSR1)
    elif now > d.cut_at + settings.kill_grace:
        d.may_retry = False
        terminate(d, reason, signal.SIGTERM)


def terminate(d: DetectorVisit, reason: str, signum: signal.Signals) -> None:
    """Send a child a signal that ends it; SIGKILL follows from `check_time`.

    Parameters
    ----------
    d : `ppd.supervisor.table.DetectorVisit`
        A detector-visit that has a child.
    reason : `str`
        Why, for the operator.
    signum : `signal.Signals`
        SIGTERM or SIGKILL.
    """
    d.terminated_at = d.terminated_at or time.monotonic()
    d.termination = d.termination or reason
    with bound(group=d.group, detector=d.detector):
        _LOG.warning("Detector-visit %s: %s; its child gets %s.", d.key, reason, signum.name)
    _kill(d, signum)


def _kill(d: DetectorVisit, signum: signal.Signals) -> None:
    if d.pid is not None:
        if signum is signal.SIGKILL:
            kill_family(d.pid)
        else:
            signal_group(d.pid, signum)
    elif d.exited_at is None and signum is signal.SIGKILL:
        # The nursery never said that it forked: there is nothing to wait for.
        d.exited_at = time.monotonic()
