"""Forking the nursery so that child and nursery have nothing in common but memory."""

from __future__ import annotations

__all__ = ["fork_apart"]

import os
import signal

# What the nursery handles, and hears of through its wake-up pipe.
_SIGNALS = (signal.SIGTERM, signal.SIGCHLD)


def fork_apart() -> int:
    """Fork; signals to the child reach the child alone, from its first moment on.

    Returns
    -------
    pid : `int`
        As `os.fork` returns it.

    Notes
    -----
    A child has the nursery's handlers and its wake-up pipe.  A SIGTERM that
    came before it let go of them would be told to the nursery, which would
    end with all its children.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for signum in _SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
    finally:
        # What came meanwhile is delivered now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return pid
