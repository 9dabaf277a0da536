"""A control group for each child, where ppd's own group is its own to divide (cgroup v2)."""

from __future__ import annotations

__all__ = ["Cgroups"]

import contextlib
import logging
import os
import time
from pathlib import Path

_LOG = logging.getLogger(__name__)

_CHILD = "ppd-child-"
_DAEMON = "ppd-daemon"
_NAME_BYTES = 200
_CLOSE_SECONDS = 2.0


class Cgroups:
    """Limits the memory of a child with all that it starts, and ends them all at once.

    Under systemd this takes ``Delegate=`` in ppd's unit.  Where there is no
    group to divide, nothing here does anything.

    Parameters
    ----------
    limit : `int` or `None`
        Bytes that a child may use with all its descendants; `None`: no limit.
    """

    def __init__(self, limit: int | None):
        self.limit = limit
        self._controlled = False
        self.memory = False
        """Whether the kernel keeps children to their limit here."""
        self._root, reason = _own_group()
        if self._root is not None:
            reason = self._divide(self._root)
        if limit is not None and not self.memory:
            _LOG.info(
                "No control groups limit the children's memory (%s); ppd looks at it itself, once a second.",
                reason,
            )

    def _divide(self, root: Path) -> str:
        """Get ready to make groups for children; say why their memory can't be limited by them."""
        for left in root.glob(f"{_CHILD}*"):
            _kill(left)
            _remove(left)
        try:
            if "memory" not in (root / "cgroup.controllers").read_text().split():
                return f"{root} has no memory controller"
            # A group that gives controllers to others can't have processes itself.
            (root / _DAEMON).mkdir(exist_ok=True)
            (root / _DAEMON / "cgroup.procs").write_text("0")
            self._controlled = True
            (root / "cgroup.subtree_control").write_text("+memory")
        except OSError as e:
            return f"{root} can't be divided: {e.strerror}"
        self.memory = True
        return ""

    def make(self, name: str) -> Path | None:
        """Make a group for a child to join.

        Parameters
        ----------
        name : `str`
            Name of the attempt at a detector-visit.

        Returns
        -------
        group : `pathlib.Path` or `None`
            Its folder; `None`: there is none.
        """
        if self._root is None:
            return None
        group = self._root / (_CHILD + os.fsdecode(os.fsencode(name)[-_NAME_BYTES:]))
        try:
            group.mkdir(exist_ok=True)
            if self.memory and self.limit is not None:
                (group / "memory.max").write_text(str(self.limit))
                (group / "memory.oom.group").write_text("1")
                # Absent where the kernel does not count swap.
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
        except OSError as e:
            _LOG.error("There is no control group for %s: %s", name, e)
            return None
        return group

    def processes(self, group: Path) -> list[int]:
        """Process IDs of those in a group that have not ended."""
        try:
            return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def kill(self, group: Path) -> None:
        """Kill all in a group at once, also those that are just being forked."""
        _kill(group)

    def exceeded(self, group: Path) -> int | None:
        """Bytes that a group used if the kernel has ended it for that, else `None`."""
        if not self.memory:
            return None
        try:
            events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
            if int(events.get("oom_kill", 0)) + int(events.get("oom_group_kill", 0)) == 0:
                return None
        except (OSError, ValueError):
            return None
        try:
            return int((group / "memory.peak").read_text())
        except (OSError, ValueError):
            return self.limit or 0

    def remove(self, group: Path) -> bool:
        """Remove a group; `False`: there are processes in it still."""
        return _remove(group)

    def close(self) -> None:
        """Remove what was made; bounded."""
        if self._root is None:
            return
        deadline = time.monotonic() + _CLOSE_SECONDS
        for left in self._root.glob(f"{_CHILD}*"):
            _kill(left)
            while not _remove(left) and time.monotonic() < deadline:
                time.sleep(0.02)
        if self._controlled:
            with contextlib.suppress(OSError):
                (self._root / "cgroup.subtree_control").write_text("-memory")
                (self._root / "cgroup.procs").write_text("0")
                (self._root / _DAEMON).rmdir()


def _own_group() -> tuple[Path | None, str]:
    """Find the folder of this process's group if it is ours to divide, else say why it is not."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        mount = _mount()
    except OSError as e:
        return None, f"{e.filename} can't be read"
    if path is None or mount is None:
        return None, "there is no cgroup v2 here"
    point, root = mount
    relative = os.path.relpath(path, root)
    if relative.startswith(".."):
        return None, f"{path} is not mounted"
    group = (point / relative).resolve()
    if not (group / "cgroup.kill").exists():
        return None, f"{group} is the root of all groups, or the kernel is older than 5.14"
    if not all(os.access(group / name, os.W_OK) for name in (".", "cgroup.procs", "cgroup.subtree_control")):
        return None, f"{group} is not delegated"
    # Others' processes would be in the way, and might be anybody's.
    others = set(map(int, (group / "cgroup.procs").read_text().split())) - {os.getpid()}
    if others:
        return None, f"{group} has other processes too"
    return group, ""


def _mount() -> tuple[Path, str] | None:
    """Where cgroup v2 is mounted, and which group is seen there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            root, point = fields.split()[3:5]
            return Path(point), root
    return None


def _kill(group: Path) -> None:
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError as e:
        _LOG.error("What is in %s can't be killed: %s", group, e)


def _remove(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
