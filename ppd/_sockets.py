"""The supervisor's sockets: what they are called, and who may ask for what.

Nothing here is slow to import: ``ppdctl`` needs it.
"""

from __future__ import annotations

__all__ = ["CHILDREN", "CONTROL", "LOOK", "LOOKING", "endpoint_for"]

import os
from pathlib import Path

from .errors import PpdError

CHILDREN = "children.ipc"
"""Where children come to; nobody but ppd's user may connect."""
CONTROL = "control.ipc"
"""Where everything may be asked for: for ppd's user and ``control_group``."""
LOOK = "look.ipc"
"""Where only `LOOKING` is answered: for ``read_group`` too."""

LOOKING = frozenset({"status", "visits", "inputs", "metrics", "detectors", "show_cache", "reloading"})
"""Commands that change nothing."""


def endpoint_for(folder: Path, command: str) -> str:
    """Return where to ask for something.

    Parameters
    ----------
    folder : `pathlib.Path`
        The supervisor's folder of sockets.
    command : `str`
        What is asked for.

    Returns
    -------
    endpoint : `str`
        For ZeroMQ. Where there is no socket yet, one may come.

    Raises
    ------
    ppd.errors.PpdError
        Raised if there is one, and this user may not ask for that.
    """
    control, look = folder / CONTROL, folder / LOOK
    if os.access(control, os.W_OK) or not (control.exists() or _closed(folder)):
        return f"ipc://{control}"
    may_look = os.access(look, os.W_OK)
    if command in LOOKING and may_look:
        return f"ipc://{look}"
    place = control if command not in LOOKING and control.exists() else folder
    what = "look at this ppd, not change anything" if may_look else "not talk to this ppd"
    raise PpdError(f"You may {what}: {place} is for {_owners(place)}.")


def _closed(folder: Path) -> bool:
    """Whether there is such a folder, or one above it, that this user may not look into."""
    return any(place.is_dir() and not os.access(place, os.X_OK) for place in (folder, *folder.parents))


def _owners(path: Path) -> str:
    """Say whose a file is, as far as one may know."""
    import grp
    import pwd

    for place in (path, *path.parents):
        try:
            info = place.stat()
        except OSError:
            continue
        try:
            user = pwd.getpwuid(info.st_uid).pw_name
        except KeyError:
            user = str(info.st_uid)
        if not info.st_mode & 0o070:
            return f"user {user}"
        try:
            group = grp.getgrgid(info.st_gid).gr_name
        except KeyError:
            group = str(info.st_gid)
        return f"user {user} and group {group}"
    return "others"
