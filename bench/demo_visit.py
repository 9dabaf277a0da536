"""A visit of DemoCam for the benches, and its nextVisit message."""

from __future__ import annotations

__all__ = ["FILTER", "DemoVisit"]

import dataclasses
import time
from typing import Any

from ppd.demo.democam import INSTRUMENT
from ppd.visit import TAI_MINUS_UTC

FILTER = "demo-r"
"""Physical filter of all of them."""


@dataclasses.dataclass(frozen=True)
class DemoVisit:
    """A visit of one exposure."""

    number: int
    group: str
    exposure: int
    ra: float
    dec: float
    rotation: float

    def message(self) -> dict[str, Any]:
        """Make its nextVisit message, stamped now."""
        now = time.time() + TAI_MINUS_UTC
        return {
            "salIndex": 1,
            "scriptSalIndex": self.number,
            "instrument": INSTRUMENT,
            "groupId": self.group,
            "coordinateSystem": 2,
            "position": [self.ra, self.dec],
            "startTime": now,
            "rotationSystem": 2,
            "cameraAngle": self.rotation,
            "filters": FILTER,
            "dome": 2,
            "duration": 0.0,
            "nimages": 1,
            "survey": "BENCH",
            "totalCheckpoints": 1,
            "private_sndStamp": now,
        }
