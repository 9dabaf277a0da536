"""Two tasks with the same inputs: one changes what it got, the other says what it got."""

from __future__ import annotations

import os
from typing import Any

import lsst.pipe.base.connectionTypes as cT
import numpy as np
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct

_DIMENSIONS = ("instrument", "exposure", "detector")


class _Connections(PipelineTaskConnections, dimensions=_DIMENSIONS):
    camera = cT.PrerequisiteInput(
        doc="Camera.",
        name="camera",
        storageClass="StructuredDataDict",
        dimensions=("instrument",),
        isCalibration=True,
    )
    bias = cT.PrerequisiteInput(
        doc="Bias.",
        name="bias",
        storageClass="ImageV2",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    image = cT.Input(
        doc="Image.", name="post_isr_image", storageClass="MaskedImageV2", dimensions=_DIMENSIONS
    )


class GreedyConnections(_Connections, dimensions=_DIMENSIONS):
    """Connections of `GreedyTask`."""

    spoilt = cT.Output(
        doc="What it got.", name="spoilt", storageClass="StructuredDataDict", dimensions=_DIMENSIONS
    )


class WatchConnections(_Connections, dimensions=_DIMENSIONS):
    """Connections of `WatchTask`."""

    spoilt = cT.Input(
        doc="It comes after.", name="spoilt", storageClass="StructuredDataDict", dimensions=_DIMENSIONS
    )
    seen = cT.Output(
        doc="What it got.", name="seen", storageClass="StructuredDataDict", dimensions=_DIMENSIONS
    )


class GreedyConfig(PipelineTaskConfig, pipelineConnections=GreedyConnections):
    """Config of `GreedyTask`."""


class WatchConfig(PipelineTaskConfig, pipelineConnections=WatchConnections):
    """Config of `WatchTask`."""


def _summary(camera: dict, bias: Any) -> dict[str, Any]:
    array = bias.array.astype(float)
    return {"pid": os.getpid(), "camera": sorted(map(str, camera)), "bias": float(np.abs(array).sum())}


class GreedyTask(PipelineTask):
    """Spoils its inputs, as nobody should."""

    ConfigClass = GreedyConfig
    _DefaultName = "greedy"

    def run(self, camera: dict, bias: Any, image: Any) -> Struct:
        found = _summary(camera, bias)
        camera.clear()
        bias.array[:] = 0.0
        return Struct(spoilt=found)


class WatchTask(PipelineTask):
    """Says what it got."""

    ConfigClass = WatchConfig
    _DefaultName = "watch"

    def run(self, camera: dict, bias: Any, image: Any, spoilt: dict) -> Struct:
        return Struct(seen=_summary(camera, bias))
