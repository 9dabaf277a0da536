"""A file system of another host, as far as the kernel can tell: FUSE, served by a thread of the test.

What is changed behind it raises no inotify event, and it can stop to answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

_HEADER = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE = 1, 2, 3, 14, 15, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 25, 26, 27, 28, 29, 36, 42
_SILENT = (_FORGET, _INTERRUPT, _BATCH_FORGET)

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="FUSE can't be mounted here"
)


class FarFolder:
    """Shows a folder at a mount point, for reading.

    Parameters
    ----------
    folder : `pathlib.Path`
        What is shown; others change it unseen.
    point : `pathlib.Path`
        Where.
    """

    def __init__(self, folder: Path, point: Path):
        self.folder = folder
        self.point = point
        self._answers = threading.Event()
        self._answers.set()
        self._paths = {1: str(folder)}
        self._nodes = {str(folder): 1}
        self._open: dict[int, list[tuple[str, int]]] = {}
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"ppd-far", os.fsencode(point), b"fuse.ppdfar", 0, options.encode()):
            code = ctypes.get_errno()
            os.close(self._device)
            raise OSError(code, os.strerror(code))
        self._thread = threading.Thread(target=self._serve, name="far-folder", daemon=True)
        self._thread.start()

    def hang(self) -> None:
        """Answer nothing more."""
        self._answers.clear()

    def answer(self) -> None:
        """Answer again, also what was asked meanwhile."""
        self._answers.set()

    def close(self) -> None:
        """Unmount; who waits for an answer gets an error."""
        self._answers.set()
        subprocess.run(["umount", "-l", str(self.point)], check=False, capture_output=True)
        self._thread.join(10.0)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                break  # unmounted
            self._answers.wait(60.0)
            _, code, unique, node, *_ = _HEADER.unpack_from(request)
            if code in _SILENT:
                continue
            try:
                error, data = 0, self._do(code, node, request[_HEADER.size :])
            except OSError as e:
                error, data = -(e.errno or errno.EIO), b""
            with contextlib.suppress(OSError):  # nobody waits for it any more
                os.write(self._device, _OUT.pack(_OUT.size + len(data), error, unique) + data)
        os.close(self._device)

    def _do(self, code: int, node: int, body: bytes) -> bytes:
        if code == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 16, 0, 0)
        path = self._paths.get(node, "/nowhere")
        if code == _LOOKUP:
            child = f"{path}/{os.fsdecode(body.rstrip(bytes(1)))}"
            attributes = _attributes(child)
            number = self._nodes.setdefault(child, len(self._nodes) + 1)
            self._paths[number] = child
            return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + attributes
        if code == _GETATTR:
            return struct.pack("<QII", 0, 0, 0) + _attributes(path)
        if code == _OPEN:
            return struct.pack("<QII", 0, 0, 0)
        if code == _OPENDIR:
            handle = len(self._open) + 1
            with os.scandir(path) as entries:
                self._open[handle] = [(e.name, 4 if e.is_dir() else 8) for e in entries]
            return struct.pack("<QII", handle, 0, 0)
        handle, offset, size = struct.unpack_from("<QQI", body.ljust(20, b"\0"))
        if code == _READ:
            with open(path, "rb") as stream:  # noqa: PTH123
                stream.seek(offset)
                return stream.read(size)
        if code == _READDIR:
            return self._entries(handle, offset, size)
        if code in (_RELEASE, _RELEASEDIR, _FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "not implemented")

    def _entries(self, handle: int, offset: int, size: int) -> bytes:
        data = b""
        for number, (name, kind) in enumerate(self._open.get(handle, [])[offset:], offset + 1):
            encoded = os.fsencode(name)
            entry = struct.pack("<QQII", 1000 + number, number, len(encoded), kind) + encoded
            entry += bytes(-len(entry) % 8)
            if len(data) + len(entry) > size:
                break
            data += entry
        return data


def _attributes(path: str) -> bytes:
    s = os.lstat(path)
    times = [divmod(t, 10**9) for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)]
    kind = stat.S_IFDIR | 0o755 if stat.S_ISDIR(s.st_mode) else stat.S_IFREG | 0o644
    numbers = (s.st_ino, s.st_size, s.st_blocks, *(t[0] for t in times))
    return struct.pack("<6Q10I", *numbers, *(t[1] for t in times), kind, s.st_nlink, 0, 0, 0, 4096, 0)


@contextlib.contextmanager
def far_folder(folder: Path, point: Path) -> Iterator[FarFolder]:
    """Mount a folder as another host's; unmount it at the end."""
    far = FarFolder(folder, point)
    try:
        yield far
    finally:
        far.close()
