"""``ppd``: run the supervisor.

Exit codes: 0 ended as asked; 2 the configuration can't be used; 3 the
central repo does not answer; 4 ``ppd-init`` has not prepared this deployment
and day; 5 no place for the cache; 6 ended, with detector-visits left for the
next start, and perhaps hand-overs; 7 ended, with nothing but hand-overs left in
the spool; 130 interrupted before it was ready.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import (
    CentralUnavailableError,
    ConfigurationError,
    NotInitializedError,
    PpdError,
    SharedMemoryError,
)
from ..logs import setup_logging
from .options import settings_of

_LOG = logging.getLogger(__name__)

_CODES: tuple[tuple[type[PpdError], int], ...] = (
    (ConfigurationError, 2),
    (CentralUnavailableError, 3),
    (NotInitializedError, 4),
    (SharedMemoryError, 5),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ppd``.

    Parameters
    ----------
    argv : sequence of `str`, optional
        Arguments; those of the process by default.

    Returns
    -------
    code : `int`
        Exit code; see the module's docstring.
    """
    parser = argparse.ArgumentParser(prog="ppd", description="Prompt-processing daemon for telescope images.")
    parser.add_argument("--config", type=Path, help="configuration file (YAML)")
    arguments = parser.parse_args(argv)
    if os.getpid() == 1:
        # In a container: the kernel keeps from process 1 what it has not asked for, and the supervisor
        # asks seconds later. There is nothing yet that would have to be ended with care.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
    if not faulthandler.is_enabled():
        # SIGABRT is what systemd's watchdog sends: the log then has where each thread is stuck.
        faulthandler.enable()
    try:
        settings = settings_of(arguments)
    except ConfigurationError as e:
        print(f"ppd: {e}", file=sys.stderr)
        return 2
    setup_logging(settings)
    # Seconds of imports, which a wrong configuration need not wait for.
    from ..supervisor.daemon import run

    try:
        return run(settings)
    except KeyboardInterrupt:
        return 130
    except PpdError as e:
        print(f"ppd: {e}", file=sys.stderr)
        return next((code for kind, code in _CODES if isinstance(e, kind)), 1)


if __name__ == "__main__":
    sys.exit(main())
