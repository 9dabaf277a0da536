"""Every message between ppd's processes, as frozen models.

Five conversations use them: supervisor and nursery, exporter, status page
(JSON lines on a pipe), supervisor and child (ZeroMQ, `ChildLink`), supervisor
and ``ppdctl`` (ZeroMQ).  Each message carries its ``kind``, so that one call parses any of
them; what does not parse is refused and counted, never acted on.
"""

from __future__ import annotations

__all__ = [
    "CHILD_VARIABLE",
    "MARK_BYTES",
    "MAX_DETECTORS",
    "MAX_ENTRIES",
    "MAX_REASON",
    "CacheView",
    "CancelWork",
    "ChildDone",
    "ChildHeartbeat",
    "ChildReady",
    "ControlReply",
    "ControlRequest",
    "DetectorKey",
    "Discard",
    "Exited",
    "Exported",
    "ExportedEntry",
    "ExporterSetup",
    "ExporterState",
    "FailureClass",
    "Fault",
    "ForkRequest",
    "Forked",
    "Hurry",
    "InputType",
    "Job",
    "MessageError",
    "NoMoreRaws",
    "NurseryPrepared",
    "NurseryReady",
    "NurserySetup",
    "PermitGrant",
    "PermitRequest",
    "PermitReturn",
    "PhaseEvent",
    "PipelineSummary",
    "Pointing",
    "Predecessor",
    "PrepareNursery",
    "RawArrived",
    "Retire",
    "SetAside",
    "SetupFailed",
    "ShutDown",
    "WebSetup",
    "WebState",
    "decode",
    "encode",
    "own_folder",
]

from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Interval

from ._control_messages import ControlReply, ControlRequest, Message, Pointing
from ._export_messages import (
    Discard,
    Exported,
    ExportedEntry,
    ExporterSetup,
    ExporterState,
    Fault,
    Hurry,
    SetAside,
)
from ._jobs import (
    CHILD_VARIABLE,
    MARK_BYTES,
    CacheView,
    DetectorKey,
    InputType,
    Job,
    PipelineSummary,
    Predecessor,
    Time,
    own_folder,
)
from ._limits import MAX_DETECTORS, MAX_ENTRIES, MAX_REASON
from ._web_messages import WebSetup, WebState

FailureClass = Literal["retriable", "final", "ignorable"]
"""What a failure has changed outside ppd (invariant 7 of the design)."""

# What is sent a signal is a process, and never all processes or a group (0, -1).
_Pid = Annotated[int, Interval(gt=1, lt=2**31)]
_MAX_FAULT = 1000


class MessageError(ValueError):
    """Raised when bytes are not a message of ppd."""


class NurserySetup(Message):
    """First line that the supervisor writes to the nursery."""

    kind: Literal["nursery_setup"] = "nursery_setup"
    settings: dict[str, Any]
    hidden: tuple[str, ...] | None = None
    """Files and folders that tasks can't open; `None`: none are hidden."""


class NurseryReady(Message):
    """The nursery has imported and built everything and can fork."""

    kind: Literal["nursery_ready"] = "nursery_ready"
    pid: _Pid
    seconds: Time
    pipelines: tuple[PipelineSummary, ...]


class SetupFailed(Message):
    """The nursery can't be used; the reason is a configuration mistake."""

    kind: Literal["setup_failed"] = "setup_failed"
    reason: str


class ForkRequest(Message):
    """Fork a child for this job."""

    kind: Literal["fork_request"] = "fork_request"
    job: Job


class Forked(Message):
    """A child was forked."""

    kind: Literal["forked"] = "forked"
    key: DetectorKey
    pid: _Pid


class Exited(Message):
    """A child ended and was reaped."""

    kind: Literal["exited"] = "exited"
    key: DetectorKey | None
    """`None`: whoever reaped it did not know whose it was."""
    pid: _Pid
    code: int
    """Exit code; negative: the signal that ended it."""


class PrepareNursery(Message):
    """Read into memory what the children of the next visits will use."""

    kind: Literal["prepare_nursery"] = "prepare_nursery"
    view: CacheView
    """A registry copy to open, as a child would."""
    datasets: tuple[str, ...]
    """UUIDs of the datasets to read; what else was read is forgotten."""
    max_bytes: int
    """Bytes of memory to use at most."""
    holder: str
    """Name of the lease on all this."""


class NurseryPrepared(Message):
    """The nursery has read what it was asked to, as far as it could."""

    kind: Literal["nursery_prepared"] = "nursery_prepared"
    holder: str
    held: int
    """How many datasets it holds in memory now."""
    bytes: int
    """How much memory they take, by the growth of the process."""
    seconds: Time
    quick: bool
    """Whether children open their repos the quick way."""
    trouble: str = ""


class Retire(Message):
    """Fork no more, and end when the last child has ended: another nursery has taken over."""

    kind: Literal["retire"] = "retire"


class ShutDown(Message):
    """End; children still alive are ended too."""

    kind: Literal["shut_down"] = "shut_down"


class ChildReady(Message):
    """The child's Butler is open on its clone."""

    kind: Literal["child_ready"] = "child_ready"
    key: DetectorKey
    pid: _Pid
    seconds: Time
    """From the fork to here."""
    opened: Time
    """From the fork to the open Butler, seconds."""


class ChildHeartbeat(Message):
    """The child is alive."""

    kind: Literal["child_heartbeat"] = "child_heartbeat"
    key: DetectorKey
    phase: str


class PhaseEvent(Message):
    """Something worth a line in the journal happened in the child."""

    kind: Literal["phase_event"] = "phase_event"
    key: DetectorKey
    name: Literal[
        "preprocess_start",
        "preprocess_end",
        "ingested",
        "raw_refused",
        "raw_repeated",
        "raw_not_fetched",
        "exposure_dropped",
        "main_start",
        "first_task",
        "pipeline_end",
        "spool_full",
        "handed_over",
    ]
    time: Time
    detail: dict[str, Any] = pydantic.Field(default_factory=dict)


class PermitRequest(Message):
    """The child has work for a processor and waits for a permit."""

    kind: Literal["permit_request"] = "permit_request"
    key: DetectorKey
    work: Literal["preprocess", "main"]


class PermitReturn(Message):
    """The child only waits now; another may have its permit."""

    kind: Literal["permit_return"] = "permit_return"
    key: DetectorKey


class PermitGrant(Message):
    """The child may use a processor until it gives it back or ends."""

    kind: Literal["permit_grant"] = "permit_grant"


class ChildDone(Message):
    """The child's last word: how its detector-visit ended."""

    kind: Literal["child_done"] = "child_done"
    key: DetectorKey
    success: bool
    reason: str = ""
    failure: FailureClass | None = None
    pipeline: str | None = None
    """The main pipeline that ran."""
    entry: str | None = None
    """Name of the spool entry, if outputs were handed over."""
    datasets: int = 0
    retry: bool = True
    """Whether the same inputs might give something else another time."""


class RawArrived(Message):
    """A raw of this detector-visit is complete."""

    kind: Literal["raw_arrived"] = "raw_arrived"
    uri: str
    """Absolute path, or URI of an object to fetch."""
    snap: int
    exposure: int | None = None
    """Exposure ID, where its name says it."""
    size: int | None = None
    """Bytes, where the source knows."""
    stamp: str = ""
    """Tells one content of the same URI from another, as an ETag does."""


class NoMoreRaws(Message):
    """No further raw will come; go on with what there is."""

    kind: Literal["no_more_raws"] = "no_more_raws"
    reason: str


class CancelWork(Message):
    """Stop at the next safe moment."""

    kind: Literal["cancel_work"] = "cancel_work"
    reason: str


_AnyMessage = Annotated[
    NurserySetup
    | NurseryReady
    | SetupFailed
    | ForkRequest
    | Forked
    | Exited
    | PrepareNursery
    | NurseryPrepared
    | Retire
    | ShutDown
    | ExporterSetup
    | ExporterState
    | Exported
    | Discard
    | SetAside
    | Hurry
    | WebSetup
    | WebState
    | ChildReady
    | ChildHeartbeat
    | PhaseEvent
    | PermitRequest
    | PermitReturn
    | PermitGrant
    | ChildDone
    | RawArrived
    | NoMoreRaws
    | CancelWork
    | ControlRequest
    | ControlReply,
    pydantic.Field(discriminator="kind"),
]

_ADAPTER: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(_AnyMessage)


def encode(message: pydantic.BaseModel) -> bytes:
    """Encode a message as JSON, without a line break.

    Parameters
    ----------
    message : `pydantic.BaseModel`
        One of this module's messages.

    Returns
    -------
    data : `bytes`
        UTF-8 JSON.
    """
    return message.model_dump_json().encode()


def decode(data: bytes) -> Any:
    """Decode a message.

    Parameters
    ----------
    data : `bytes`
        What `encode` made.

    Returns
    -------
    message : `pydantic.BaseModel`
        A message of this module; its class tells which.

    Raises
    ------
    MessageError
        Raised if the bytes are not one of these messages.
    """
    try:
        return _ADAPTER.validate_json(data)
    except pydantic.ValidationError as e:
        # Without what was sent, which may be megabytes; a place in it may be as long.
        faults = str(e.errors(include_url=False, include_input=False)[:3])
        raise MessageError(f"not a message of ppd: {faults[:_MAX_FAULT]}") from None
