"""Reading /proc: whose child a process is, what it is, and what it uses."""

from __future__ import annotations

__all__ = [
    "Process",
    "age_of_this_process",
    "all_processes",
    "command_of",
    "family",
    "mark_of",
    "own_children",
    "private_bytes",
    "resident_bytes",
]

import dataclasses
import os
import time
from pathlib import Path
from typing import Self

from ..messages import CHILD_VARIABLE

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_FAMILY = 10_000
_PRIVATE = ("Private_Clean:", "Private_Dirty:", "Swap:")
_PREFIX = CHILD_VARIABLE.encode() + b"="


@dataclasses.dataclass(frozen=True)
class Process:
    """What the kernel says of a process."""

    pid: int
    state: str
    """One letter; ``Z``: it has ended and was not reaped."""
    parent: int
    session: int
    """The session is the ID of the process that began it: a child's, for all that it has started."""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Read it; `None`: there is none."""
        try:
            text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        # The name before it may have any character, closing brackets too.
        state, parent, _, session = text.rpartition(")")[2].split()[:4]
        return cls(pid, state, int(parent), int(session))


def age_of_this_process() -> float:
    """Seconds since this process was begun, its imports included; 0 where the kernel does not tell."""
    try:
        text = (_PROC / "self" / "stat").read_text(errors="replace")
        # Field 22, in ticks since the machine was started; the clock may have been set since.
        ticks = int(text.rpartition(")")[2].split()[19])
        since = ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since)
    except (OSError, ValueError, IndexError):
        return 0.0


def own_children() -> list[int]:
    """Process IDs of the direct children of this process, ended ones too."""
    return _children(os.getpid())


def family(pid: int) -> list[int]:
    """Process IDs of a process and of all that descend from it, parents first."""
    found = [pid]
    for member in found:
        if len(found) > _MAX_FAMILY:
            break
        found += [child for child in _children(member) if child not in found]
    return found


def all_processes() -> list[int]:
    """Process IDs of all processes that can be seen."""
    return [int(folder.name) for folder in _PROC.iterdir() if folder.name.isdigit()]


def mark_of(pid: int) -> str:
    """The mark that a child has put on itself and its descendants; empty: none."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return ""
    for variable in environment.split(b"\0"):
        if variable.startswith(_PREFIX):
            return os.fsdecode(variable[len(_PREFIX) :])
    return ""


def command_of(pid: int) -> str:
    """The command line of a process, cut for people."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(os.fsdecode(word) for word in words).strip()[:200]


def resident_bytes(pid: int) -> int:
    """Memory that a process uses or shares with others: cheap to have."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def private_bytes(pid: int) -> int:
    """Memory that a process uses alone, also what of it is swapped out; the kernel walks its pages."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(_PRIVATE))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
    return found
