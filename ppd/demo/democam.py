"""DemoCam as a Butler instrument."""

from __future__ import annotations

__all__ = ["DemoCam", "describe"]

from typing import Any, ClassVar

from lsst.daf.butler import FormatterV2, Registry
from lsst.pipe.base import Instrument

from ..instruments.description import InstrumentDescription
from .camera import INSTRUMENT, focal_plane


class DemoCam(Instrument):
    """The demo observatory's camera."""

    filterDefinitions = None
    filters: ClassVar[dict[str, str]] = {"demo-g": "g", "demo-r": "r"}
    """Band by physical filter."""

    @classmethod
    def getName(cls) -> str:
        return INSTRUMENT

    def register(self, registry: Registry, *, update: bool = False) -> None:
        with registry.transaction():
            registry.syncDimensionData(
                "instrument",
                {
                    "name": INSTRUMENT,
                    "class_name": "ppd.demo.democam.DemoCam",
                    "detector_max": 9,
                    "visit_max": 10**15,
                    "exposure_max": 10**15,
                    "visit_system": 0,
                },
                update=update,
            )
            for name, band in self.filters.items():
                registry.syncDimensionData(
                    "physical_filter", {"instrument": INSTRUMENT, "name": name, "band": band}, update=update
                )
            for outline in focal_plane().detectors:
                registry.syncDimensionData(
                    "detector",
                    {
                        "instrument": INSTRUMENT,
                        "id": outline.id,
                        "full_name": outline.name,
                        "name_in_raft": outline.name.partition("_")[2],
                        "raft": outline.name.partition("_")[0],
                        "purpose": "SCIENCE",
                    },
                    update=update,
                )
            registry.syncDimensionData(
                "visit_system", {"instrument": INSTRUMENT, "id": 0, "name": "one-to-one"}, update=update
            )

    def getRawFormatter(self, dataId: Any) -> type[FormatterV2]:
        from .rawformatter import DemoCamRawFormatter

        return DemoCamRawFormatter


def describe() -> InstrumentDescription:
    """Describe DemoCam to ppd.

    Returns
    -------
    description : `ppd.instruments.description.InstrumentDescription`
        The description.
    """
    return InstrumentDescription(
        name=INSTRUMENT,
        focal_plane=focal_plane(),
        raw_formatter="ppd.demo.rawformatter.DemoCamRawFormatter",
        raw_storage_class="ImageV2",
    )
