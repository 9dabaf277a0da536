"""Tasks with the inputs of Rubin's alert production, and next to nothing to do."""

from __future__ import annotations

__all__ = [
    "CalibrateTask",
    "IsrTask",
    "ReliabilityTask",
    "StepTask",
    "TemplateTask",
    "WarmUpTask",
]

from collections.abc import Iterable
from typing import Any

import lsst.pipe.base.connectionTypes as cT
from astropy.table import Table
from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct

from .datasets import KINDS, MODEL, REFCAT, TEMPLATE

_GROUP = ("instrument", "group", "detector")
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")


def _prerequisite(name: str, **more: Any) -> cT.PrerequisiteInput:
    """Declare an input as the benchmark's repo has it."""
    kind = next(kind for kind in KINDS if kind.name == name)
    return cT.PrerequisiteInput(
        name=name,
        doc=f"The {name}.",
        storageClass=kind.storage_class,
        dimensions=kind.dimensions,
        isCalibration=kind.calibration,
        **more,
    )


def _all_of_type(
    dataset_type: DatasetType, registry: Any, data_id: DataCoordinate, collections: Any
) -> Iterable[DatasetRef]:
    """Take what the repo has: a detector of a group has no region to search by."""
    return registry.queryDatasets(dataset_type, collections=collections, findFirst=True)


def _result(name: str, dimensions: tuple[str, ...]) -> cT.Output:
    return cT.Output(
        name=name, doc="What was found.", storageClass="StructuredDataDict", dimensions=dimensions
    )


def _earlier(name: str, dimensions: tuple[str, ...], **more: Any) -> cT.Input:
    return cT.Input(
        name=name, doc="What is known.", storageClass="StructuredDataDict", dimensions=dimensions, **more
    )


class WarmUpConnections(PipelineTaskConnections, dimensions=_GROUP):
    """Connections of `WarmUpTask`."""

    info = cT.Input(
        name="regionTimeInfo", doc="Where and when.", storageClass="RegionTimeInfo", dimensions=_GROUP
    )
    stars = _prerequisite(REFCAT, multiple=True, deferLoad=True, minimum=0, lookupFunction=_all_of_type)
    templates = _prerequisite(TEMPLATE, multiple=True, deferLoad=True, minimum=0, lookupFunction=_all_of_type)
    known = _result("preloaded_objects", _GROUP)


class WarmUpConfig(PipelineTaskConfig, pipelineConnections=WarmUpConnections):
    """Config of `WarmUpTask`."""

    apdb = Field[str](doc="Where the APDB is.", default="nowhere")


class WarmUpTask(PipelineTask):
    """Looks at a field before its image comes."""

    ConfigClass = WarmUpConfig
    _DefaultName = "warmUp"

    def run(self, info: Any, stars: Any = (), templates: Any = ()) -> Struct:
        return Struct(known={"shards": len(stars), "patches": len(templates)})


class IsrConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    """Connections of `IsrTask`."""

    raw = cT.Input(name="raw", doc="The raw.", storageClass="Exposure", dimensions=_EXPOSURE, deferLoad=True)
    camera = _prerequisite("camera")
    crosstalk = _prerequisite("crosstalk")
    manual_defects = _prerequisite("manual_defects")
    optics = _prerequisite("transmission_optics")
    sensor = _prerequisite("transmission_sensor")
    filter = _prerequisite("transmission_filter_detector")
    bfk = _prerequisite("bfk")
    bias = _prerequisite("bias")
    cti = _prerequisite("cti")
    dark = _prerequisite("dark")
    defects = _prerequisite("defects")
    flat = _prerequisite("flat")
    gain_correction = _prerequisite("gain_correction")
    linearizer = _prerequisite("linearizer")
    ptc = _prerequisite("ptc")
    image = _result("post_isr_image", _EXPOSURE)


class IsrConfig(PipelineTaskConfig, pipelineConnections=IsrConnections):
    """Config of `IsrTask`."""


class IsrTask(PipelineTask):
    """Reads every calib."""

    ConfigClass = IsrConfig
    _DefaultName = "isr"

    def run(self, **inputs: Any) -> Struct:
        return Struct(image={"inputs": len(inputs)})


class CalibrateConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `CalibrateTask`."""

    images = _earlier("post_isr_image", _EXPOSURE, multiple=True)
    camera = _prerequisite("camera")
    stars = _prerequisite(REFCAT, multiple=True, deferLoad=True)
    image = _result("preliminary_visit_image", _VISIT)
    schema = cT.InitOutput(
        name="single_visit_star_schema", doc="Columns of stars.", storageClass="ArrowAstropy"
    )


class CalibrateConfig(PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    """Config of `CalibrateTask`."""


class CalibrateTask(PipelineTask):
    """Takes the reference stars."""

    ConfigClass = CalibrateConfig
    _DefaultName = "calibrateImage"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.schema = Table(names=("ra", "dec"), dtype=(float, float))

    def run(self, images: list[dict], camera: dict, stars: list) -> Struct:
        return Struct(image={"snaps": len(images), "shards": len(stars)})


class TemplateConnections(PipelineTaskConnections, dimensions=(*_VISIT, "skymap")):
    """Connections of `TemplateTask`."""

    image = _earlier("preliminary_visit_image", _VISIT)
    sky_map = _prerequisite("skyMap")
    templates = _prerequisite(TEMPLATE, multiple=True, deferLoad=True)
    template = _result("template_detector", _VISIT)


class TemplateConfig(PipelineTaskConfig, pipelineConnections=TemplateConnections):
    """Config of `TemplateTask`."""


class TemplateTask(PipelineTask):
    """Takes the templates."""

    ConfigClass = TemplateConfig
    _DefaultName = "rewarpTemplate"

    def run(self, image: dict, sky_map: Any, templates: list) -> Struct:
        return Struct(template={"patches": len(templates)})


class ReliabilityConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `ReliabilityTask`."""

    sources = _earlier("dia_source_unfiltered", _VISIT)
    model = _prerequisite(MODEL)
    scores = _result("dia_source_reliability", _VISIT)
    schema = cT.InitOutput(name="dia_source_schema", doc="Columns of sources.", storageClass="ArrowAstropy")


class ReliabilityConfig(PipelineTaskConfig, pipelineConnections=ReliabilityConnections):
    """Config of `ReliabilityTask`."""


class ReliabilityTask(PipelineTask):
    """Takes the model."""

    ConfigClass = ReliabilityConfig
    _DefaultName = "computeReliability"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.schema = Table(names=("ra", "dec", "reliability"), dtype=(float, float, float))

    def run(self, sources: dict, model: Any) -> Struct:
        return Struct(scores={"scores": 0})


class StepConnections(
    PipelineTaskConnections, dimensions=_VISIT, defaultTemplates={"input": "", "output": ""}
):
    """Connections of `StepTask`."""

    before = _earlier("{input}", _VISIT)
    after = _result("{output}", _VISIT)


class StepConfig(PipelineTaskConfig, pipelineConnections=StepConnections):
    """Config of `StepTask`."""


class StepTask(PipelineTask):
    """Any step that reads what an earlier one wrote."""

    ConfigClass = StepConfig
    _DefaultName = "step"

    def run(self, before: dict) -> Struct:
        return Struct(after={"steps": before.get("steps", 0) + 1})
