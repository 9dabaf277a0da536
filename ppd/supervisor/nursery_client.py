"""The supervisor's end of the pipe to the nursery."""

from __future__ import annotations

__all__ = ["NurseryClient", "nursery_environment"]

import os
import sys
from collections.abc import Mapping

from ..config import Settings
from ..credentials import FOR_TASKS, SECRET_FILES
from ..messages import CHILD_VARIABLE, MARK_BYTES, NurserySetup
from .hidden import hidden_from_tasks
from .line_process import LineProcess

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# What names the central repo or may open it: no child sees it (invariant 1).
_CENTRAL_VARIABLES = (
    "CENTRAL_REPO",
    "READ_CENTRAL_REPO",
    "DAF_BUTLER_REPOSITORY_INDEX",
    "DAF_BUTLER_REPOSITORIES",
    "LSST_DB_AUTH",
    "LSST_DB_AUTH_CREDENTIALS",
    "PGPASSFILE",
    "PGPASSWORD",
    "PGUSER",
    "PPD_CONFIG",
)
# Nor what opens the stream that visits come by.
_STREAM_VARIABLES = ("REDIS_STREAM_HOST", "REDIS_USERNAME", "REDIS_PASSWORD")
_SECRET_VARIABLES = (*_CENTRAL_VARIABLES, *_STREAM_VARIABLES)
# Systemd's credentials are for the supervisor and what it starts beside the nursery.
_HIDDEN = {
    *_SECRET_VARIABLES,
    *(f"{name}_FILE" for name in _SECRET_VARIABLES),
    "CREDENTIALS_DIRECTORY",
    SECRET_FILES,
}


def nursery_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of the nursery, which its children inherit.

    Parameters
    ----------
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        That of the supervisor.

    Returns
    -------
    environment : `dict` [ `str`, `str` ]
        Without what opens the central repo or the stream of visits; ``PPD_TASKS_NAME`` is ``NAME``
        there, for what tasks may open themselves: ``PPD_TASKS_LSST_DB_AUTH``, with the APDB's password alone.
    """
    environment = {k: v for k, v in environ.items() if k not in _HIDDEN and not k.startswith(FOR_TASKS)}
    environment |= {k.removeprefix(FOR_TASKS): v for k, v in environ.items() if k.startswith(FOR_TASKS)}
    # A library that starts threads of its own in the nursery would make
    # the fork unsafe, and one processor is what a child gets anyway.
    environment.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    # Arrow's allocator would start one when it is imported.
    environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    # Room in which each child writes who it is.
    environment[CHILD_VARIABLE] = "-" * MARK_BYTES
    return environment


class NurseryClient(LineProcess):
    """Starts the nursery and talks to it; with it end all its children.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Passed on, without what names the central repo.
    """

    def __init__(self, settings: Settings):
        environment = nursery_environment(os.environ)
        data = settings.to_dict()
        data["central_repo"] = "hidden:"
        data["read_central_repo"] = None
        data["redis_url"] = None
        data["config_path"] = None
        # The state directory tells people whose nursery this is.
        command = [sys.executable, "-m", "ppd.workers.nursery", str(settings.state_dir)]
        hidden = hidden_from_tasks(settings, os.environ)
        setup = NurserySetup(settings=data, hidden=None if hidden is None else tuple(map(str, hidden.paths)))
        # Ctrl-C on a terminal is the supervisor's to handle.
        super().__init__("nursery", command, environment, setup, own_session=True)
