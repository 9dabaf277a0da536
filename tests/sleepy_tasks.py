"""A task that takes its time, so that a test can do something to its process meanwhile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import lsst.pipe.base.connectionTypes as cT
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct

from ppd.control import ControlClient, NoSupervisorError
from ppd.messages import ControlRequest

_DIMENSIONS = ("instrument", "exposure", "detector")


class SleepConnections(PipelineTaskConnections, dimensions=_DIMENSIONS):
    """Connections of `SleepTask`."""

    image = cT.Input(
        doc="Image.", name="post_isr_image", storageClass="MaskedImageV2", dimensions=_DIMENSIONS
    )
    slept = cT.Output(
        doc="How long, and who.", name="slept", storageClass="StructuredDataDict", dimensions=_DIMENSIONS
    )


class SleepConfig(PipelineTaskConfig, pipelineConnections=SleepConnections):
    """Config of `SleepTask`."""

    flags = Field[str](doc="Folder for a file that says that it has begun.", default="")
    seconds = Field[float](doc="How long to sleep.", default=1.0)


class SleepTask(PipelineTask):
    """Says that it has begun, and sleeps; a second one in the same folder does not.

    A file ``wake`` beside the folder ends the sleep. One called ``try`` has paths, and
    a folder of sockets in its last line: what became of the trial is in ``tried``.
    """

    ConfigClass = SleepConfig
    _DefaultName = "sleep"

    def run(self, image: Any) -> Struct:
        flags = Path(self.config.flags)
        first = not any(flags.iterdir())
        (flags / str(os.getpid())).touch()
        if first and (flags.parent / "try").exists():
            *paths, sockets = (flags.parent / "try").read_text().splitlines()
            found = {path: _try_to_read(path) for path in paths} | {"steer": _try_to_steer(Path(sockets))}
            (flags.parent / "tried").write_text(json.dumps(found))
        if first:
            end = time.monotonic() + self.config.seconds
            while time.monotonic() < end and not (flags.parent / "wake").exists():
                time.sleep(0.05)
        return Struct(slept={"pid": os.getpid(), "first": first})


def _try_to_read(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            stream.read(16)
        return "read"
    except OSError as e:
        return type(e).__name__


def _try_to_steer(sockets: Path) -> str:
    try:
        with ControlClient(sockets, 10.0) as client:
            return client.request(ControlRequest(command="pause", reason="a task")).code
    except NoSupervisorError:
        return "silence"
