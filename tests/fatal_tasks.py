"""Tasks that store in a real APDB and are told by files when and how to come to grief."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import lsst.pipe.base.connectionTypes as cT
from astropy.table import Table
from lsst.pex.config import Field
from lsst.pipe.base import (
    AnnotatedPartialOutputsError,
    InvalidQuantumError,
    NoWorkFound,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
)

from bench.soak_tasks import SoakStoreTask

SOURCES = 2
"""Rows that one detector-visit has in the APDB."""

_GROUP = ("instrument", "group", "detector")
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")
_DEED_SECONDS = 90.0


class FatalConfig(PipelineTaskConfig, pipelineConnections=PipelineTaskConnections):
    """What all of them are told."""

    folder = Field[str](doc="Has a file for each deed that is to be done.", default="")


class EarlyConnections(PipelineTaskConnections, dimensions=_GROUP):
    """Connections of `EarlyTask`."""

    info = cT.Input(
        doc="Where and when.", name="regionTimeInfo", storageClass="RegionTimeInfo", dimensions=_GROUP
    )
    early = cT.Output(
        doc="Was before.", name="fatal_early", storageClass="StructuredDataDict", dimensions=_GROUP
    )


class EarlyConfig(FatalConfig, pipelineConnections=EarlyConnections):
    """Config of `EarlyTask`."""


class EarlyTask(PipelineTask):
    """Runs before the raw comes."""

    ConfigClass = EarlyConfig
    _DefaultName = "early"

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        _do(self.config.folder, "early", butlerQC)
        butlerQC.put(Struct(early={"pid": os.getpid()}), outputRefs)


class FirstConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    """Connections of `FirstTask`."""

    raw = cT.Input(doc="Raw.", name="raw", storageClass="ImageV2", dimensions=_EXPOSURE)
    first = cT.Output(
        doc="Which process it was.",
        name="fatal_first",
        storageClass="StructuredDataDict",
        dimensions=_EXPOSURE,
    )


class FirstConfig(FatalConfig, pipelineConnections=FirstConnections):
    """Config of `FirstTask`."""


class FirstTask(PipelineTask):
    """Has an output before anything is stored."""

    ConfigClass = FirstConfig
    _DefaultName = "first"

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        butlerQC.put(Struct(first={"pid": os.getpid()}), outputRefs)


class StoreConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `StoreTask`."""

    firsts = cT.Input(
        doc="Of the exposures.",
        name="fatal_first",
        storageClass="StructuredDataDict",
        dimensions=_EXPOSURE,
        multiple=True,
    )
    stored = cT.Output(
        doc="That it is stored.", name="fatal_stored", storageClass="StructuredDataDict", dimensions=_VISIT
    )


class StoreConfig(FatalConfig, pipelineConnections=StoreConnections):
    """Config of `StoreTask`."""

    apdbConfigUrl = Field[str](doc="URI of the APDB's configuration.", optional=False)


class StoreTask(PipelineTask):
    """Stores in the APDB; what it was told comes before or after that."""

    ConfigClass = StoreConfig
    _DefaultName = "store"

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        _do(self.config.folder, "before", butlerQC)
        config = SoakStoreTask.ConfigClass()
        config.apdbConfigUrl, config.seconds = self.config.apdbConfigUrl, 0.0
        numbers = [float(n) for n in range(SOURCES)]
        sources = Table(dict.fromkeys(("x", "y", "ra", "dec", "flux"), numbers))
        data_id = butlerQC.quantum.dataId
        SoakStoreTask(config=config).run(sources, data_id["visit"], data_id["detector"], data_id["band"])
        _do(self.config.folder, "after", butlerQC)
        butlerQC.put(Struct(stored={"pid": os.getpid()}), outputRefs)


class LastConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `LastTask`."""

    stored = cT.Input(
        doc="That it is stored.", name="fatal_stored", storageClass="StructuredDataDict", dimensions=_VISIT
    )
    last = cT.Output(
        doc="Says nothing.", name="fatal_last", storageClass="StructuredDataDict", dimensions=_VISIT
    )


class LastConfig(PipelineTaskConfig, pipelineConnections=LastConnections):
    """Config of `LastTask`."""


class LastTask(PipelineTask):
    """Can do nothing if nothing was stored."""

    ConfigClass = LastConfig
    _DefaultName = "last"

    def run(self, stored: dict) -> Struct:
        return Struct(last=stored)


class UnfitConnections(FirstConnections, dimensions=_EXPOSURE):
    """Connections that fit nothing, by a mistake of their own."""

    def adjust_all_quanta(self, adjuster: Any) -> None:
        raise ValueError("these connections have a mistake")


class UnfitConfig(FatalConfig, pipelineConnections=UnfitConnections):
    """Config of `UnfitTask`."""


class UnfitTask(FirstTask):
    """No quantum graph can be built of it."""

    ConfigClass = UnfitConfig
    _DefaultName = "unfit"


class UnfitEarlyConnections(EarlyConnections, dimensions=_GROUP):
    """The same, before the raw comes."""

    def adjust_all_quanta(self, adjuster: Any) -> None:
        raise ValueError("these connections have a mistake")


class UnfitEarlyConfig(FatalConfig, pipelineConnections=UnfitEarlyConnections):
    """Config of `UnfitEarlyTask`."""


class UnfitEarlyTask(EarlyTask):
    """No quantum graph can be built of it."""

    ConfigClass = UnfitEarlyConfig
    _DefaultName = "unfitEarly"


class WantingConnections(FirstConnections, dimensions=_EXPOSURE):
    """Connections that need what nobody has."""

    unobtainable = cT.PrerequisiteInput(
        doc="Is nowhere.",
        name="unobtainable",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )


class WantingConfig(FatalConfig, pipelineConnections=WantingConnections):
    """Config of `WantingTask`."""


class WantingTask(FirstTask):
    """Its inputs are never found."""

    ConfigClass = WantingConfig
    _DefaultName = "wanting"


def _do(folder: str, when: str, butlerQC: Any) -> None:
    """Do what a file says; a file that says ``once`` is gone afterwards."""
    path = Path(folder) / f"{when}-{int(butlerQC.quantum.dataId['detector'])}"
    if not path.exists():
        return
    deed, _, once = path.read_text().partition(" ")
    if once:
        path.unlink()
    # Others may act now: by this file they know that it has come so far.
    (Path(folder) / f"pid-{when}-{path.name.rpartition('-')[2]}").write_text(str(os.getpid()))
    _DEEDS[deed]()


def _sleep() -> None:
    time.sleep(_DEED_SECONDS)


def _sleep_through_signals() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    _sleep()


def _hold_the_gil() -> None:
    # Unlike `CDLL`, it keeps the lock of the interpreter: no other thread runs.
    ctypes.PyDLL(None).sleep(int(_DEED_SECONDS))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise RuntimeError("it was told to fail")


def _find_no_work() -> None:
    raise NoWorkFound("there is nothing to do here")


def _say_invalid() -> None:
    raise InvalidQuantumError("this quantum makes no sense")


def _do_a_part() -> None:
    raise AnnotatedPartialOutputsError("only a part") from RuntimeError("half of the stars are missing")


_DEEDS = {
    "sleep": _sleep,
    "sleep_through_signals": _sleep_through_signals,
    "hold_the_gil": _hold_the_gil,
    "die": _die,
    "fail": _fail,
    "find_no_work": _find_no_work,
    "say_invalid": _say_invalid,
    "do_a_part": _do_a_part,
}
