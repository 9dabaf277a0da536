"""A small file system of the soak's own, which can be filled up and slowed down."""

from __future__ import annotations

__all__ = ["SoakDisk", "private_mounts"]

import contextlib
import os
import subprocess
from pathlib import Path

_SECONDS = 30
_THROTTLES = Path("/sys/fs/cgroup/blkio")
# What the slow disk takes in a second: bytes, and requests.
_SLOW = {"write_bps": 384 << 10, "write_iops": 30}


def private_mounts() -> bool:
    """Have what this process mounts be seen by it and its children only, and gone with them.

    Returns
    -------
    private : `bool`
        Whether that is permitted here.
    """
    try:
        os.unshare(os.CLONE_NEWNS)
        _run("mount", "--make-rprivate", "/")
    except (OSError, subprocess.SubprocessError):
        return False
    return True


class SoakDisk:
    """An ext4 file system in a file, mounted by a loop device.

    Parameters
    ----------
    folder : `pathlib.Path`
        Folder for the file and, beside it, the mount point.
    size : `int`
        Bytes.

    Notes
    -----
    Where mounting is not permitted, `path` is a plain folder, and the disk can
    be neither full nor slow; where the kernel does not throttle devices by
    control groups (version 1), it can't be slow.
    """

    def __init__(self, folder: Path, size: int):
        self.path = folder / "disk"
        self.path.mkdir()
        self._image = folder / "disk.img"
        self._filler = self.path / "filler"
        self._device: str | None = None
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._mount(size)

    @property
    def can_be_full(self) -> bool:
        """Whether `fill` works here."""
        return self._device is not None

    @property
    def can_be_slow(self) -> bool:
        """Whether `slow` works here."""
        return self._device is not None and all(self._throttle(name).exists() for name in _SLOW)

    def fill(self) -> None:
        """Take all the room that there is; to be repeated, as others give some back."""
        try:
            descriptor = os.open(self._filler, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return  # so full that there is no room for another file
        try:
            step = 1 << 20
            while step >= 4096:
                try:
                    os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, step)
                except OSError:
                    step //= 2
        finally:
            os.close(descriptor)

    def empty(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def slow(self) -> None:
        """Let the device take only a little in a second, whoever writes."""
        for name, limit in _SLOW.items():
            self._limit(name, limit)

    def quick(self) -> None:
        """Let the device be as fast as it is."""
        if self.can_be_slow:
            for name in _SLOW:
                self._limit(name, 0)

    def close(self) -> None:
        """Unmount."""
        if self._device is None:
            return
        with contextlib.suppress(OSError):
            self.quick()
        # Lazily: should a process be left on it, that is for others to say.
        subprocess.run(["umount", "--lazy", self.path], timeout=_SECONDS, check=False, capture_output=True)
        self._device = None

    def _mount(self, size: int) -> None:
        with self._image.open("wb") as stream:
            stream.truncate(size)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))
        # mount gives the loop device back by itself with the last who uses it.
        _run("mount", "-o", "loop", str(self._image), str(self.path))
        device = self.path.stat().st_dev
        self._device = f"{os.major(device)}:{os.minor(device)}"
        with contextlib.suppress(OSError):
            self.quick()  # of an earlier user of the device

    def _throttle(self, name: str) -> Path:
        return _THROTTLES / f"blkio.throttle.{name}_device"

    def _limit(self, name: str, limit: int) -> None:
        self._throttle(name).write_text(f"{self._device} {limit}\n")


def _run(*command: str) -> None:
    subprocess.run(command, timeout=_SECONDS, check=True, capture_output=True)
