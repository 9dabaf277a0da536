"""Whether alerts were in time, as it is told everywhere: by ``ppdctl``, on the status page, in the metrics.

`ppd.supervisor.courses` judges, by the shutter's close, and nobody else does.
"""

from __future__ import annotations

__all__ = ["Timeliness", "count_timeliness"]

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import DetectorVisit


class Timeliness(enum.StrEnum):
    """What is said once of each detector-visit, when its processing is over for the first time."""

    ON_TIME = "on_time"
    """Its alerts were out within ``alert_deadline`` of the shutter's close."""
    LATE = "late"
    """They were out later."""
    NEVER = "never"
    """It had its raw, and failed."""
    NOT_JUDGED = "not_judged"
    """Nobody can say: it had no raw, or that of an old visit, or one whose times can't be right."""


def count_timeliness(detectors: Iterable[DetectorVisit]) -> dict[str, int]:
    """Count detector-visits by whether their alerts were in time.

    Parameters
    ----------
    detectors : iterable of `ppd.supervisor.table.DetectorVisit`
        Those of a visit.

    Returns
    -------
    alerts : `dict` [ `str`, `int` ]
        For each `Timeliness` how many; ``expected_late``: not judged yet, and seen to come late when
        they waited for a processor; ``open``: the rest.
    """
    alerts = dict.fromkeys([*(t.value for t in Timeliness), "expected_late", "open"], 0)
    for d in detectors:
        if d.alerts is not None:
            alerts[d.alerts.value] += 1
        else:
            alerts["expected_late" if d.expected_late else "open"] += 1
    return alerts
