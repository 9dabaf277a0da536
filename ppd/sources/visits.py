"""What a source of visits is: announcements in, judgements out, nothing confirmed that is not durable."""

from __future__ import annotations

__all__ = [
    "Announcement",
    "Heard",
    "Judgement",
    "Undelivered",
    "Verdict",
    "VisitSource",
    "VisitSourceStatus",
]

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Verdict(enum.Enum):
    """What became of an announcement."""

    DONE = "done"
    """It is accounted for: accepted and in the journal, or refused through nobody's fault."""
    REJECTED = "rejected"
    """It can never be taken."""
    LATER = "later"
    """It can't be taken now, which is not its fault."""
    DEFECT = "defect"
    """Taking it has failed as nobody has foreseen; once more may be enough."""


@dataclasses.dataclass(frozen=True)
class Announcement:
    """A nextVisit message as it came."""

    ticket: str
    """By which its source knows it."""
    message: Mapping[str, Any]
    """Its fields; values may be flat strings."""
    delivered: float
    """When the site gave it to the source, Unix seconds."""
    fault: str | None = None
    """Why it can't be read, if so."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the supervisor says to an announcement."""

    ticket: str
    verdict: Verdict
    code: str = "ok"
    """As `ppd.messages.ControlReply` has it, or ``defect``."""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Heard:
    """Announcements that a source has, for the supervisor's loop."""

    source: VisitSource
    announcements: tuple[Announcement, ...]


@dataclasses.dataclass(frozen=True)
class Undelivered:
    """An announcement that the supervisor will not see."""

    ticket: str
    source: str
    """Name of its source."""
    gone: bool
    """Whether its body is gone; else it was given up after too many deliveries."""
    text: str


@dataclasses.dataclass(frozen=True)
class VisitSourceStatus:
    """How a source is, for people and metrics."""

    name: str
    """What it listens to."""
    trouble: str | None = None
    """What is wrong with it now."""
    held: str | None = None
    """Why it does not read now, if it was told not to."""
    lag: int | None = None
    """Announcements that were not given to anybody yet; `None`: not known."""
    pending: int | None = None
    """Announcements that were given to somebody who has not confirmed them; `None`: not known."""
    delay: float = 0.0
    """Seconds from delivery to confirmation, of the last announcement that was confirmed."""
    read: int = 0
    """Announcements read since the start, repeated ones too."""
    confirmed: int = 0
    """Of these, how many were confirmed."""
    claimed: int = 0
    """How many were taken over from those who did not confirm them."""
    set_aside: int = 0
    """How many were set aside with the reason."""
    postponed: int = 0
    """How many could not be taken when they came, and were left for later."""
    gone: int = 0
    """How many had lost their body."""


class VisitSource(Protocol):
    """Where nextVisit messages come from.

    A source reads announcements in threads of its own, gives them to the
    supervisor's loop in batches (`Heard`), and confirms to the site what the
    supervisor has judged: never before.  Trouble of any kind is logged, shown
    in `status` and tried again; it never ends the source.
    """

    @property
    def name(self) -> str:
        """What it listens to, for people."""

    @property
    def kind(self) -> str:
        """What kind of source it is, one word for the journal and metrics."""

    def start(self) -> None:
        """Begin to listen."""

    def stop(self, timeout: float) -> None:
        """Confirm what was judged, and end the threads; bounded."""

    def hold(self, reason: str | None) -> None:
        """Read nothing for a reason, or go on; returns at once."""

    def settle(self, judgements: Sequence[Judgement]) -> None:
        """Take what the supervisor says; it is durable. Returns at once."""

    def status(self) -> VisitSourceStatus:
        """Tell how the source is."""
