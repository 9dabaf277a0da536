"""Files that this process, and all that it starts, can't open any more.

Landlock is the kernel's way for a process without rights to give some up for
good. It knows only what is allowed, so all is allowed that is not hidden and not
on the way there: a new file beside something hidden can't be opened either. A
process in it can't read memory or environment of one that is outside (root can
read the environment all the same).

Source: Linux, Documentation/userspace-api/landlock.rst. The three system calls
have the same numbers on every architecture.
"""

from __future__ import annotations

__all__ = ["abi", "hide", "not_hidden"]

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_WRITE_FILE, _READ_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 2, 1 << 13, 1 << 14
# Before it, nothing could be linked from one folder to another.
_LINKS_SINCE = 2
_TRUNCATE_SINCE = 3
_MAX_RULES = 100_000


def abi() -> int:
    """Return the version of what the kernel can do.

    Returns
    -------
    version : `int`
        0: too little for us. What is needed came with Linux 5.19.
    """
    version = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return version if version >= _LINKS_SINCE else 0


def hide(hidden: Collection[Path]) -> None:
    """Give up the right to read or write some files and folders, for good.

    Parameters
    ----------
    hidden : collection of `pathlib.Path`
        The files and folders, without symbolic links. Of none only the memory of
        processes outside is hidden.

    Raises
    ------
    OSError
        Raised if the kernel can't do it.
    """
    version = abi()
    if not version:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no Landlock, or it is switched off")
    of_file = _READ_FILE | _WRITE_FILE | (_TRUNCATE if version >= _TRUNCATE_SINCE else 0)
    attributes = struct.pack("=Q", of_file | _REFER)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        # The kernel itself allows no link or new name by which more could be opened than before.
        _allow(ruleset, "/", _REFER)
        for path in not_hidden(hidden):
            _allow(ruleset, path, of_file)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            _raise()
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        # It is gone, or nothing that we could open anyway.
        return
    try:
        rule = struct.pack("=Qi", rights, place)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(place)


def not_hidden(hidden: Collection[Path]) -> Iterator[str]:
    """List what is to be allowed so that all is allowed but what is hidden.

    Parameters
    ----------
    hidden : collection of `pathlib.Path`
        Files and folders.

    Yields
    ------
    path : `str`
        A file or folder that is neither hidden nor on the way to something hidden.

    Raises
    ------
    OSError
        Raised if there is far too much beside what is hidden.
    """
    names = {str(path) for path in hidden}
    on_the_way = {str(above) for path in hidden for above in path.parents}
    if "/" not in on_the_way:
        yield "/"
        return
    folders, count = ["/"], 0
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.path in names or entry.is_symlink():
                        continue
                    if entry.path in on_the_way:
                        folders.append(entry.path)
                        continue
                    count += 1
                    if count > _MAX_RULES:
                        raise OSError(
                            errno.E2BIG, f"more than {_MAX_RULES} files beside what is hidden", folder
                        )
                    yield entry.path
        except PermissionError:
            # Nothing in it can be opened by name that could be listed.
            continue


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        _raise()
    return int(result)


def _raise() -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"Landlock: {os.strerror(code)}")
