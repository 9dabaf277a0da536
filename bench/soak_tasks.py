"""Tasks of the soak: quick, and yet they read, measure, store and write like real ones."""

from __future__ import annotations

__all__ = ["SoakIsrTask", "SoakMeasureTask", "SoakPredictTask", "SoakStoreTask"]

import os
import time
from typing import Any

import astropy.units as u
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import pandas
from astropy.table import Table
from astropy.time import Time
from lsst.dax.apdb import Apdb, ApdbTables
from lsst.images import Image
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, QuantumContext, Struct

from ppd.demo.tasks.database import open_apdb, retried

_GROUP = ("instrument", "group", "detector")
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")


def _work(seconds: float) -> None:
    """Use a processor, as real tasks do."""
    end = time.thread_time() + seconds
    numbers = np.linspace(0.0, 1.0, 2000)
    while time.thread_time() < end:
        numbers = np.sqrt(numbers + 1.0)


class SoakPredictConnections(PipelineTaskConnections, dimensions=_GROUP):
    """Connections of `SoakPredictTask`."""

    info = cT.Input(
        doc="Where and when.", name="regionTimeInfo", storageClass="RegionTimeInfo", dimensions=_GROUP
    )
    predicted = cT.Output(
        doc="What may be there.", name="soak_predicted", storageClass="ArrowAstropy", dimensions=_GROUP
    )


class SoakPredictConfig(PipelineTaskConfig, pipelineConnections=SoakPredictConnections):
    """Config of `SoakPredictTask`."""

    seconds = Field[float](doc="Processor time to use, s.", default=0.02)


class SoakPredictTask(PipelineTask):
    """Predicts positions while the telescope slews."""

    ConfigClass = SoakPredictConfig
    _DefaultName = "soakPredict"

    def run(self, info: Any) -> Struct:
        _work(self.config.seconds)
        centre = info.region.getBoundingBox().getCenter()
        lon, lat = centre.getLon().asDegrees(), centre.getLat().asDegrees()
        return Struct(predicted=Table({"ra": [lon], "dec": [lat], "mjd": [info.timespan.begin.mjd]}))


class SoakIsrConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    """Connections of `SoakIsrTask`."""

    raw = cT.Input(doc="Raw image, ADU.", name="raw", storageClass="ImageV2", dimensions=_EXPOSURE)
    bias = cT.PrerequisiteInput(
        doc="Bias, ADU.",
        name="bias",
        storageClass="ImageV2",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    flat = cT.PrerequisiteInput(
        doc="Relative response.",
        name="flat",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "detector", "physical_filter"),
        isCalibration=True,
    )
    image = cT.Output(doc="Electrons.", name="soak_image", storageClass="ImageV2", dimensions=_EXPOSURE)


class SoakIsrConfig(PipelineTaskConfig, pipelineConnections=SoakIsrConnections):
    """Config of `SoakIsrTask`."""

    seconds = Field[float](doc="Processor time to use, s.", default=0.02)


class SoakIsrTask(PipelineTask):
    """Subtracts the bias and divides by the flat."""

    ConfigClass = SoakIsrConfig
    _DefaultName = "soakIsr"

    def run(self, raw: Image, bias: Image, flat: dict) -> Struct:
        if raw.array.shape != bias.array.shape:
            raise RuntimeError(f"the raw has shape {raw.array.shape}, its bias {bias.array.shape}")
        _work(self.config.seconds)
        electrons = (raw.array - bias.array) / np.float32(flat["response"])
        # What the header says goes with the pixels.
        kept = {name: raw.metadata[name] for name in ("RA", "DEC", "EXPID")}
        return Struct(image=Image(electrons.astype(np.float32), unit=u.electron, metadata=kept))


class SoakMeasureConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `SoakMeasureTask`."""

    images = cT.Input(
        doc="Electrons.", name="soak_image", storageClass="ImageV2", dimensions=_EXPOSURE, multiple=True
    )
    predicted = cT.Input(
        doc="What may be there.",
        name="soak_predicted",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
        minimum=0,
    )
    sources = cT.Output(
        doc="What is there.", name="soak_sources", storageClass="ArrowAstropy", dimensions=_VISIT
    )


class SoakMeasureConfig(PipelineTaskConfig, pipelineConnections=SoakMeasureConnections):
    """Config of `SoakMeasureTask`."""

    threshold = Field[float](doc="A pixel above is a source, electrons.", default=5000.0)
    seconds = Field[float](doc="Processor time to use, s.", default=0.02)


class SoakMeasureTask(PipelineTask):
    """Finds the bright pixels."""

    ConfigClass = SoakMeasureConfig
    _DefaultName = "soakMeasure"

    def run(self, images: list[Image], predicted: Table | None = None) -> Struct:
        (image,) = images
        _work(self.config.seconds)
        y, x = np.nonzero(image.array > self.config.threshold)
        return Struct(
            sources=Table(
                {
                    "x": x.astype(float),
                    "y": y.astype(float),
                    "ra": float(image.metadata["RA"]) + x / 36000.0,
                    "dec": float(image.metadata["DEC"]) + y / 36000.0,
                    "flux": image.array[y, x].astype(float),
                }
            )
        )


class SoakStoreConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `SoakStoreTask`."""

    sources = cT.Input(
        doc="What is there.", name="soak_sources", storageClass="ArrowAstropy", dimensions=_VISIT
    )
    summary = cT.Output(
        doc="Number and flux of what the APDB has now.",
        name="soak_summary",
        storageClass="StructuredDataDict",
        dimensions=_VISIT,
    )


class SoakStoreConfig(PipelineTaskConfig, pipelineConnections=SoakStoreConnections):
    """Config of `SoakStoreTask`."""

    apdbConfigUrl = Field[str](doc="URI of the APDB's configuration.", optional=False)
    seconds = Field[float](doc="Processor time to use after it has stored, s.", default=0.02)


class SoakStoreTask(PipelineTask):
    """Stores sources in the APDB.

    IDs have the process in them: a detector-visit that is stored twice can
    be seen, where real IDs would make the second time an error.
    """

    ConfigClass = SoakStoreConfig
    _DefaultName = "soakStore"

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        data_id = butlerQC.quantum.dataId
        sources = butlerQC.get(inputRefs)["sources"]
        result = self.run(sources, int(data_id["visit"]), int(data_id["detector"]), str(data_id["band"]))
        butlerQC.put(result, outputRefs)

    def run(self, sources: Table, visit: int, detector: int, band: str) -> Struct:
        now = Time.now().tai
        first = ((visit % 10_000 * 16 + detector) << 40) + (os.getpid() << 12)
        ids = first + np.arange(len(sources), dtype=np.int64)
        apdb = open_apdb(self.config.apdbConfigUrl)
        columns = {
            "diaSourceId": ids,
            "diaObjectId": ids,
            "visit": visit,
            "detector": detector,
            "band": band,
            "midpointMjdTai": now.mjd,
            "timeProcessedMjdTai": now.mjd,
            "validityStartMjdTai": now.mjd,
            "firstDiaSourceMjdTai": now.mjd,
            "lastDiaSourceMjdTai": now.mjd,
            "nDiaSources": 1,
            "psfFlux": np.asarray(sources["flux"]),
            **{name: np.asarray(sources[name]) for name in ("ra", "dec", "x", "y")},
        }
        objects, rows = (_frame(apdb, t, columns, ids) for t in (ApdbTables.DiaObject, ApdbTables.DiaSource))
        retried(lambda: apdb.store(now, objects, rows))
        _work(self.config.seconds)
        # By these, the pixels that went in can be told from what came out.
        return Struct(summary={"sources": len(ids), "flux": float(np.sum(sources["flux"]))})


def _frame(apdb: Apdb, table: ApdbTables, columns: dict[str, Any], ids: np.ndarray) -> pandas.DataFrame:
    """Make rows that fit the APDB's schema; what it requires and nobody measured is 0."""
    definition = apdb.tableDef(table)
    assert definition is not None
    rows = pandas.DataFrame(index=range(len(ids)))
    for column in definition.columns:
        if column.name in columns:
            rows[column.name] = columns[column.name]
        elif not column.nullable and column.name != "pixelId":
            rows[column.name] = 0
    return rows
