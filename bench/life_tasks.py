"""Tasks with next to nothing to do, for one raw and two calibs."""

from __future__ import annotations

__all__ = ["LifeCalibrateTask", "LifeIsrTask"]

from typing import Any

import lsst.pipe.base.connectionTypes as cT
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct

_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")


def _calib(name: str, *more: str) -> cT.PrerequisiteInput:
    return cT.PrerequisiteInput(
        name=name,
        doc=f"The {name}.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "detector", *more),
        isCalibration=True,
    )


def _result(name: str, dimensions: tuple[str, ...]) -> cT.Output:
    return cT.Output(
        name=name, doc="What was found.", storageClass="StructuredDataDict", dimensions=dimensions
    )


def _earlier(name: str, dimensions: tuple[str, ...], **more: Any) -> cT.Input:
    return cT.Input(
        name=name, doc="What is known.", storageClass="StructuredDataDict", dimensions=dimensions, **more
    )


class LifeIsrConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    """Connections of `LifeIsrTask`."""

    raw = cT.Input(name="raw", doc="The raw.", storageClass="ImageV2", dimensions=_EXPOSURE, deferLoad=True)
    bias = _calib("bias")
    flat = _calib("flat", "physical_filter")
    image = _result("life_image", _EXPOSURE)


class LifeIsrConfig(PipelineTaskConfig, pipelineConnections=LifeIsrConnections):
    """Config of `LifeIsrTask`."""


class LifeIsrTask(PipelineTask):
    """Takes the calibs, and leaves the pixels where they are."""

    ConfigClass = LifeIsrConfig
    _DefaultName = "lifeIsr"

    def run(self, raw: Any, bias: dict, flat: dict) -> Struct:
        return Struct(image={"bias": bias["level"], "flat": flat["response"]})


class LifeCalibrateConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `LifeCalibrateTask`."""

    images = _earlier("life_image", _EXPOSURE, multiple=True)
    image = _result("life_calibrated", _VISIT)


class LifeCalibrateConfig(PipelineTaskConfig, pipelineConnections=LifeCalibrateConnections):
    """Config of `LifeCalibrateTask`."""


class LifeCalibrateTask(PipelineTask):
    """Goes from exposures to their visit."""

    ConfigClass = LifeCalibrateConfig
    _DefaultName = "lifeCalibrate"

    def run(self, images: list[dict]) -> Struct:
        return Struct(image={"snaps": len(images)})
