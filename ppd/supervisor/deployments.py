"""A deployment: one set of pipelines and settings, and what became of its visits."""

from __future__ import annotations

__all__ = ["Deployment"]

import dataclasses

from ..config import Settings
from ..messages import PipelineSummary


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What the visits of some time are processed with."""

    id: str
    """As it is in the names of runs; see `ppd.deployment.deployment_id`."""
    settings: Settings
    """Those that its nursery was built with."""
    pipelines: tuple[PipelineSummary, ...] = ()
    """What its nursery has built."""
    generation: int = 0
    """Which nursery works for it: two may have the same ID, and different limits."""
