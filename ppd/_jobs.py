"""What a detector-visit is to those who talk of it: its identity, its inputs, its job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ._control_messages import Message

CHILD_VARIABLE = "PPD_CHILD"
"""Environment variable by which a process can be recognised as a child's, or a child's child's."""

MARK_BYTES = 160
"""Room for its value."""

Time = Annotated[float, pydantic.Field(allow_inf_nan=False)]
"""Seconds: a span, or Unix time."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")


class DetectorKey(Message):
    """Identity of one detector-visit and of the attempt at it."""

    instrument: str
    group: str
    detector: int
    attempt: int = 1

    def __str__(self) -> str:
        return f"{self.group}/{self.detector}#{self.attempt}"

    @property
    def line(self) -> bytes:
        """ZeroMQ identity of this attempt's child: 255 bytes at most; the end tells attempts apart."""
        return str(self).encode()[-200:]

    @property
    def file_name(self) -> str:
        """Name for files and folders of this attempt, safe in paths and URIs."""
        return _UNSAFE.sub("_", f"{self.instrument}-{self.group}-{self.detector}-{self.attempt}")


class InputType(Message):
    """One overall input of a set of pipelines, as the graph declares it."""

    name: str
    dimensions: tuple[str, ...]
    storage_class: str
    is_calibration: bool
    is_prerequisite: bool
    optional: bool
    """Whether a pipeline can do without (connection minimum 0)."""
    multiple: bool


class PipelineSummary(Message):
    """What the supervisor must know of one pipeline without importing its tasks."""

    path: str
    inputs: tuple[InputType, ...]
    outputs: tuple[str, ...]
    """Names of all dataset types that the pipeline may write."""
    init_outputs: tuple[str, ...]
    """Names of dataset types written once by ``ppd-init``."""


class CacheView(Message):
    """Where a child finds the inputs that were resolved for its visit."""

    snapshot: str
    """Path of the immutable registry copy to clone (SQLite)."""
    config: str
    """Path of the ``butler.yaml`` that goes with the clone."""
    collections: tuple[str, ...]
    """Input collections, in search order."""


class Predecessor(Message):
    """An attempt that was killed when it may have changed something outside ppd."""

    local_repo: str
    """Its repo, for what is to be exported of it."""
    reason: str
    """How it ended."""
    last: bool
    """Whether no further attempt may be made: only the looking is left to do."""


class Job(Message):
    """All that a child needs to know of its detector-visit."""

    key: DetectorKey
    visit: dict[str, Any]
    """The announcement, as `ppd.visit.BareVisit` dumps it."""
    accepted: float
    """When the visit was accepted, Unix seconds."""
    expires: float
    """When its message expires, Unix seconds."""
    cache: CacheView
    preprocessing: tuple[str, ...]
    """Paths of pre-processing pipelines, in order of preference."""
    main: tuple[str, ...]
    """Paths of main pipelines, in order of preference."""
    runs: dict[str, str]
    """Output run by pipeline path, and ``NoPipeline`` for preload products."""
    deployment: str = ""
    """ID of the deployment, for the log."""
    traceparent: str = ""
    """Context of the detector-visit's trace, as W3C's Trace Context has it; empty: there is none."""
    endpoint: str
    """Where the child connects to the supervisor."""
    local_repo: str
    """Folder that the child makes and removes."""
    spool: str
    """Root of the spool."""
    log_file: str
    """Where the child's output goes."""
    mark: str = ""
    """What its processes are recognised by: the value of `CHILD_VARIABLE`."""
    cgroup: str | None = None
    """Control group that the child joins, if it is to have one."""
    predecessor: Predecessor | None = None
    """What to look into before anything is processed."""

    @property
    def own_folder(self) -> Path:
        """Folder beside the local repo for what tasks leave: temporary files, working directory."""
        return own_folder(Path(self.local_repo))


def own_folder(local_repo: Path) -> Path:
    """Return the folder beside a child's repo that has what its tasks leave."""
    return local_repo.with_name(f"{local_repo.name}.own")
