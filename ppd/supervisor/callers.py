"""Who asks something of the supervisor, and whether he may.

The kernel says who is at the other end of a socket (``SO_PEERCRED``, of the moment
at which he connected); ZeroMQ passes it on with each message.
"""

from __future__ import annotations

__all__ = ["Caller", "Groups", "find_groups", "refusal", "who"]

import contextlib
import dataclasses
import grp
import os
from collections.abc import Collection
from typing import Any

import zmq

from .._sockets import LOOKING
from ..config import Settings
from ..errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Groups:
    """Who may talk to us, beside our own user and root."""

    control: int | None = None
    """Group ID of those who may ask for everything."""
    read: int | None = None
    """Of those who may look."""


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who asked: how he is answered, and what is known of him."""

    socket: zmq.Socket[bytes]
    envelope: tuple[bytes, ...]
    looks_only: bool
    """Whether he came by the socket for looking."""
    peer: str = ""
    """As ZeroMQ has it: host, user, group and process ID, with colons between them."""

    @property
    def uid(self) -> int | None:
        """His user ID; `None`: not known."""
        return self._number(1)

    @property
    def pid(self) -> int | None:
        """His process ID, when he connected; `None`: not known."""
        return self._number(3)

    def _number(self, place: int) -> int | None:
        parts = self.peer.split(":")
        return int(parts[place]) if len(parts) == 4 and parts[place].isdecimal() else None


def find_groups(settings: Settings) -> Groups:
    """Find the groups that the settings name.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if one does not exist, or ppd's user is not in it and so can't give it a socket.
    """
    return Groups(_group("control_group", settings.control_group), _group("read_group", settings.read_group))


def _group(setting: str, name: str | None) -> int | None:
    if name is None:
        return None
    try:
        number = grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(f"{setting}: there is no group {name!r} on this machine.") from None
    if os.geteuid() != 0 and number not in {os.getegid(), *os.getgroups()}:
        raise ConfigurationError(
            f"{setting}: ppd's user is not in group {name!r} and can't give it a socket; "
            f"add it (usermod -aG {name} USER, or SupplementaryGroups= in the unit)."
        )
    return number


def refusal(caller: Caller, command: str, groups: Groups, children: Collection[int]) -> str | None:
    """Return why somebody may not ask for something; `None`: he may.

    Parameters
    ----------
    caller : `Caller`
        Who asks.
    command : `str`
        What he asks for.
    groups : `Groups`
        Who else than we and root may.
    children : collection of `int`
        Process IDs of our children: their tasks have no business here.
    """
    if caller.looks_only and command not in LOOKING:
        return f"Who comes by this socket may look, not {command}."
    if caller.uid is None:
        return "The kernel does not say who asks."
    if caller.pid is not None and _is_of(caller.pid, children):
        return "Children and what they start may ask for nothing here."
    # The files' modes have kept others out already, unless somebody has changed them.
    opened = groups.read if caller.looks_only else groups.control
    if caller.uid not in (0, os.geteuid()) and opened is None:
        setting = "read_group" if caller.looks_only else "control_group"
        return f"User {caller.uid} may not: {setting} is not set."
    return None


def _is_of(pid: int, children: Collection[int]) -> bool:
    if pid in children:
        return True
    # Each child leads a session of its own.
    with contextlib.suppress(OSError):
        return os.getsid(pid) in children
    return False


def who(caller: Caller) -> dict[str, Any]:
    """Return what a log should have of somebody who changes something."""
    return {"by_uid": caller.uid, "by_pid": caller.pid}
