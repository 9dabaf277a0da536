"""DemoCam as a site with a stack of its own would have it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import lsst.obs.base

from ppd.demo.democam import DemoCam


class SiteDemoCam(lsst.obs.base.Instrument, DemoCam):
    """The demo camera as an instrument of ``lsst.obs.base``, with overrides of its own."""

    raw_definition = ("raw", ("instrument", "detector", "exposure"), "ImageV2")
    configPaths: ClassVar[list[str]] = [str(Path(__file__).parent / "overrides")]
