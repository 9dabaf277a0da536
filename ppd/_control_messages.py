"""What ``ppdctl`` and players ask of the supervisor, and its answer; little, as they have to wait for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Interval

from ._limits import MAX_ANNOUNCED, MAX_DETECTORS, MAX_ENTRIES, MAX_REASON, MAX_TYPE_NAME, MAX_TYPES


class Message(pydantic.BaseModel):
    """A model that does not change and knows all its fields."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


_TypeName = Annotated[str, pydantic.Field(max_length=MAX_TYPE_NAME)]


class Pointing(Message):
    """Where the telescope may point."""

    ra: Annotated[float, Interval(ge=-360.0, le=360.0)] | None = None
    """ICRS degrees; without a position only what does not depend on it is meant."""
    dec: Annotated[float, Interval(ge=-90.0, le=90.0)] | None = None
    """ICRS degrees."""
    physical_filter: str | None = None
    """Without a filter only what does not depend on it is meant."""


class ControlRequest(Message):
    """A command of ``ppdctl`` or of a player that announces a visit."""

    kind: Literal["control_request"] = "control_request"
    command: Literal[
        "status",
        "submit",
        "announce",
        "visits",
        "retry",
        "replay",
        "inputs",
        "prefetch",
        "retry_dead_letters",
        "drop_dead_letters",
        "drain",
        "stop",
        "reload",
        "reloading",
        "pause",
        "resume",
        "cancel",
        "metrics",
        "detectors",
        "show_cache",
        "evict",
        "pin",
        "unpin",
    ]
    """What is asked for."""
    visit: Any = None
    """The nextVisit message, for ``submit``: text or object, as it came."""
    visits: Annotated[tuple[Any, ...], pydantic.Field(max_length=MAX_ANNOUNCED)] = ()
    """nextVisit messages, for ``announce``; each is answered by itself."""
    group: str | None = None
    """Which visit, for ``inputs``, ``cancel``, ``retry`` and ``replay``."""
    detector: int | None = None
    """Only this detector's, for ``inputs``."""
    detectors: Annotated[tuple[int, ...], pydantic.Field(max_length=MAX_DETECTORS)] = ()
    """Only these, for ``submit``, ``retry``, ``replay``, ``pause``, ``resume`` and ``cancel``; else all."""
    reason: Annotated[str, pydantic.Field(max_length=MAX_REASON)] = ""
    """Why it is paused, cancelled or tried again, for those who read it later."""
    pointings: tuple[Pointing, ...] = ()
    """What to fetch, for ``prefetch``."""
    entries: Annotated[tuple[str, ...], pydantic.Field(max_length=MAX_ENTRIES)] = ()
    """Names of dead letters."""
    types: Annotated[tuple[_TypeName, ...], pydantic.Field(max_length=MAX_TYPES)] = ()
    """Dataset types, for ``evict`` (none: all), ``pin`` and ``unpin``."""
    number: int | None = None
    """Which reload, for ``reloading``; else the last."""
    now: bool = False
    """Whether to wait for nothing, for ``stop``."""


class ControlReply(Message):
    """The answer to a `ControlRequest`."""

    kind: Literal["control_reply"] = "control_reply"
    ok: bool
    """Whether it is done."""
    error: str | None = None
    """Why not, in sentences for people."""
    code: str = "ok"
    """``ok``, ``malformed``, ``stale``, ``duplicate``, ``ignored``, ``unavailable``, ``unknown``."""
    result: dict[str, Any] = pydantic.Field(default_factory=dict)
    """What the command gives."""
