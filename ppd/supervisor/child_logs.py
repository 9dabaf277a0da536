"""Where children's logs go, and for how long."""

from __future__ import annotations

__all__ = ["log_file", "prune_logs"]

import logging
import re
import shutil
from pathlib import Path

from ..messages import DetectorKey

_LOG = logging.getLogger(__name__)

_DAY = re.compile(r"\d{8}")


def log_file(state_dir: Path, day_obs: int, key: DetectorKey) -> Path:
    """Return the log file of one attempt at a detector-visit: a folder a day."""
    return Path(state_dir) / "logs" / str(day_obs) / f"{key.file_name}.log"


def prune_logs(state_dir: Path, keep_days: int) -> list[int]:
    """Remove the logs of all days but the last few that have any.

    Parameters
    ----------
    state_dir : `pathlib.Path`
        State directory.
    keep_days : `int`
        How many days' logs are kept.

    Returns
    -------
    removed : `list` [ `int` ]
        The days whose logs are gone.
    """
    root = Path(state_dir) / "logs"
    days = sorted(int(p.name) for p in root.iterdir() if p.is_dir() and _DAY.fullmatch(p.name))
    removed = days[: max(0, len(days) - keep_days)]
    for day in removed:
        shutil.rmtree(root / str(day), ignore_errors=True)
        _LOG.info("The children's logs of %d are removed.", day)
    return removed
