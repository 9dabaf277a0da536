"""Which file system a folder is on, and whether the kernel sees all that changes there.

Only ``/proc/self/mountinfo`` is read: a mount that does not answer can't stop it.
"""

from __future__ import annotations

__all__ = ["Mount", "is_remote", "is_within", "mounts_around", "read_mounts"]

import re
from pathlib import Path
from typing import NamedTuple

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")

# Others than this kernel may change what is on them, and inotify does not say so.
_REMOTE = frozenset(
    (
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs2",
        "fhgfs",
        "fuse",
        "gfs2",
        "glusterfs",
        "gpfs",
        "kafs",
        "lizardfs",
        "lustre",
        "mfs",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "quobyte",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
        "wekafs",
    )
)


class Mount(NamedTuple):
    """A mounted file system."""

    id: int
    """Number of the mount; another one is another mount, though its place be the same."""
    point: str
    """Where it is mounted."""
    type: str
    """Type of the file system (``ext4``, ``nfs4``, ``fuse.sshfs``)."""


def is_remote(kind: str) -> bool:
    """Tell whether files of a type of file system may change unseen by inotify.

    Parameters
    ----------
    kind : `str`
        Type of the file system, as the kernel calls it.

    Returns
    -------
    remote : `bool`
        Whether it is a network or user-space file system.
    """
    # fuseblk is not among them: it is for disks of this machine.
    return kind in _REMOTE or kind.startswith("fuse.")


def read_mounts(text: str | None = None) -> list[Mount]:
    """Read what is mounted.

    Parameters
    ----------
    text : `str`, optional
        Text in the form of ``/proc/self/mountinfo``, which is read if absent.

    Returns
    -------
    mounts : `list` [ `Mount` ]
        In the order of mounting; empty where there is no such file.
    """
    if text is None:
        try:
            text = _MOUNTINFO.read_text(errors="surrogateescape")
        except OSError:
            return []
    found = []
    for line in text.splitlines():
        # id, parent, device, root, point, options, any number of fields, "-", type, ...
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) >= 5 and after and fields[0].isdigit():
            point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
            found.append(Mount(int(fields[0]), point, after.split(" ")[0]))
    return found


def mounts_around(path: str, mounts: list[Mount]) -> tuple[Mount, ...]:
    """Find the file system that a folder is on, and those mounted below it.

    Parameters
    ----------
    path : `str`
        Absolute path without symbolic links.
    mounts : `list` [ `Mount` ]
        What is mounted, in the order of mounting.

    Returns
    -------
    around : `tuple` [ `Mount`, ... ]
        The folder's own file system first; empty if it is not known.
    """
    own: Mount | None = None
    below = []
    for mount in mounts:
        if mount.point != path and is_within(mount.point, path):
            below.append(mount)
        # Of several at one place the last is on top.
        elif is_within(path, mount.point) and (own is None or len(mount.point) >= len(own.point)):
            own = mount
    return () if own is None else (own, *below)


def is_within(path: str, folder: str) -> bool:
    """Tell whether a path is a folder's, or below it, by their names alone."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
