"""PipelineTasks as small as they come, and a central repo that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lsst.pipe.base.connectionTypes as cT
from astropy.table import Table
from lsst.daf.butler import Butler, DatasetType
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct

from ppd.config import Settings

INSTRUMENT = "TinyCam"


class PredictConnections(PipelineTaskConnections, dimensions=("instrument", "group", "detector")):
    """Connections of `PredictTask`."""

    info = cT.Input(
        name="regionTimeInfo",
        doc="Where and when.",
        storageClass="RegionTimeInfo",
        dimensions=("instrument", "group", "detector"),
    )
    orbits = cT.PrerequisiteInput(
        name="orbits", doc="Orbits.", storageClass="StructuredDataDict", dimensions=(), minimum=0
    )
    predicted = cT.Output(
        name="predicted",
        doc="What may be there.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "group", "detector"),
    )


class PredictConfig(PipelineTaskConfig, pipelineConnections=PredictConnections):
    """Config of `PredictTask`."""

    apdb = Field(dtype=str, doc="Where the APDB is.", default="nowhere")


class PredictTask(PipelineTask):
    """Says where and when."""

    ConfigClass = PredictConfig
    _DefaultName = "predict"

    def run(self, info: Any, orbits: Any = None) -> Struct:
        return Struct(predicted={"begin": info.timespan.begin.mjd})


class MeasureConnections(PipelineTaskConnections, dimensions=("instrument", "exposure", "detector")):
    """Connections of `MeasureTask`."""

    raw = cT.Input(
        name="raw",
        doc="Raw.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "exposure", "detector"),
    )
    bias = cT.PrerequisiteInput(
        name="bias",
        doc="Bias.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    predicted = cT.Input(
        name="predicted",
        doc="What may be there.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "group", "detector"),
        minimum=0,
    )
    level = cT.Output(
        name="level",
        doc="Level.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "exposure", "detector"),
    )
    schema = cT.InitOutput(name="level_schema", doc="Empty table of levels.", storageClass="ArrowAstropy")


class MeasureConfig(PipelineTaskConfig, pipelineConnections=MeasureConnections):
    """Config of `MeasureTask`."""

    offset = Field(dtype=float, doc="Added to each level.", default=0.0)


class MeasureTask(PipelineTask):
    """Subtracts the bias."""

    ConfigClass = MeasureConfig
    _DefaultName = "measure"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.schema = Table(names=("level",), dtype=(float,))

    def run(self, raw: dict, bias: dict, predicted: Any = None) -> Struct:
        return Struct(level={"level": raw["level"] - bias["level"] + self.config.offset})


PREDICT_YAML = """\
description: Predict
parameters:
  apdb_config: nowhere
tasks:
  predict:
    class: tiny_tasks.PredictTask
    config:
      apdb: parameters.apdb_config
"""

MEASURE_YAML = """\
description: Measure
tasks:
  measure:
    class: tiny_tasks.MeasureTask
"""


def make_central(root: Path) -> None:
    """Make a central repo with an instrument of two detectors."""
    with Butler.from_config(Butler.makeRepo(str(root)), writeable=True) as butler:
        butler.registry.insertDimensionData(
            "instrument",
            {
                "name": INSTRUMENT,
                "class_name": "none",
                "visit_max": 1000,
                "visit_system": 0,
                "exposure_max": 1000,
                "detector_max": 2,
            },
        )
        for detector in range(2):
            butler.registry.insertDimensionData(
                "detector",
                {"instrument": INSTRUMENT, "id": detector, "full_name": f"D{detector}", "purpose": "SCIENCE"},
            )
        for name, dimensions, calib in (
            ("raw", ("instrument", "exposure", "detector"), False),
            ("bias", ("instrument", "detector"), True),
        ):
            dataset_type = DatasetType(
                name, dimensions, "StructuredDataDict", universe=butler.dimensions, isCalibration=calib
            )
            butler.registry.registerDatasetType(dataset_type)


def write_pipelines(folder: Path) -> tuple[Path, Path]:
    """Write the two pipelines; their paths: pre-processing, main."""
    folder.mkdir(exist_ok=True)
    predict, measure = folder / "Predict.yaml", folder / "Measure.yaml"
    predict.write_text(PREDICT_YAML)
    measure.write_text(MEASURE_YAML)
    return predict, measure


def tiny_settings(root: Path, **changes: Any) -> Settings:
    """Settings for a central repo and pipelines in a folder."""
    predict, measure = root / "pipelines" / "Predict.yaml", root / "pipelines" / "Measure.yaml"
    values: dict[str, Any] = {
        "instrument": INSTRUMENT,
        "central_repo": str(root / "central"),
        "state_dir": root / "state",
        "socket_dir": "/tmp/ppd-sockets",
        "preprocessing_pipelines": [{"pipelines": [str(predict)]}],
        "main_pipelines": [{"survey": "calib", "pipelines": None}, {"pipelines": [str(measure)]}],
        "apdb_config": "apdb.yaml",
        "repo_retry_delay": 0.01,
    }
    return Settings.model_validate({**values, **changes})
