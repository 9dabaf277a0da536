"""What supervisor and status page say to each other."""

from __future__ import annotations

from typing import Any, Literal

from ._jobs import Message


class DetectorShape(Message):
    """Where one detector lies, as the page draws it."""

    id: int
    name: str
    x: tuple[float, ...]
    """Of its corners in the focal plane, in their order, millimetres."""
    y: tuple[float, ...]


class WebSetup(Message):
    """First line that the supervisor writes to the process of the status page."""

    kind: Literal["web_setup"] = "web_setup"
    instrument: str
    detectors: tuple[DetectorShape, ...]
    host: str | None
    """Where the page is served; `None`: it is not."""
    port: int
    token_file: str | None
    visits: bool
    """Whether visits may be announced there."""
    socket_dir: str
    state_dir: str
    log: dict[str, Any]
    """Settings whose names begin with ``log_``, all of them."""
    gate_host: str | None = None
    """Where other machines may ask; `None`: nowhere."""
    gate_port: int = 0
    keys: str | None = None
    """Folder of keys of those who may."""
    hidden: tuple[str, ...] | None = None
    """Files and folders that the page can't open; `None`: none are hidden."""


class WebState(Message):
    """How the status page is; it says so every few seconds."""

    kind: Literal["web_state"] = "web_state"
    address: str | None = None
    """Where it is served."""
    gate: str | None = None
    """Where other machines may ask."""
    trouble: str | None = None
    """Why one of them is away."""
