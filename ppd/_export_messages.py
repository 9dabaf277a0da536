"""What supervisor and exporter say to each other."""

from __future__ import annotations

from typing import Any, Literal

from ._jobs import DetectorKey, Message, Time

Fault = Literal["corrupt", "conflict", "refused"]
"""Why a hand-over can't be exported: not what was written; another writer was there; central refuses it."""


class ExporterSetup(Message):
    """First line that the supervisor writes to the exporter."""

    kind: Literal["exporter_setup"] = "exporter_setup"
    settings: dict[str, Any]


class ExporterState(Message):
    """How the exporter is; it says so every second or two, but within an export."""

    kind: Literal["exporter_state"] = "exporter_state"
    entries: int
    """Hand-overs that wait in the spool, also those that were exported and may not be discarded yet."""
    bytes: int
    """Bytes of their files."""
    letters: int = 0
    """Dead letters."""
    letter_bytes: int = 0
    """Bytes of their files."""
    exporting: int = 0
    """How many an export that begins now has; 0: none begins."""
    deferred: int = 0
    """Hand-overs whose own export fails and is tried again, apart from the others."""
    trouble: str | None = None
    """Why nothing is exported."""


class ExportedEntry(Message):
    """A hand-over whose outputs central has."""

    entry: str
    """Its name in the spool."""
    key: DetectorKey
    datasets: int
    success: bool
    """Whether its pipeline ran to its end."""
    reason: str = ""
    """Why not."""


class Exported(Message):
    """Central has the outputs of these hand-overs; they stay in the spool until `Discard`."""

    kind: Literal["exported"] = "exported"
    entries: tuple[ExportedEntry, ...]
    seconds: Time


class Discard(Message):
    """That these hand-overs are exported is in the journal: they may go."""

    kind: Literal["discard"] = "discard"
    entries: tuple[str, ...]


class SetAside(Message):
    """A hand-over can't be exported and is among the dead letters now."""

    kind: Literal["set_aside"] = "set_aside"
    entry: str
    key: DetectorKey | None
    """`None`: its manifest can't be read."""
    fault: Fault
    reason: str


class Hurry(Message):
    """Export what is there without waiting for fuller batches."""

    kind: Literal["hurry"] = "hurry"
