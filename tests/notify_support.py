"""A service manager for tests: a real socket that hears what ``sd_notify(3)`` sends."""

from __future__ import annotations

import dataclasses
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from observatory import wait_for

_CREDENTIALS = struct.Struct("3i")


@dataclasses.dataclass(frozen=True)
class Word:
    """One message: when it came, from which process, and its assignments."""

    time: float
    pid: int
    values: dict[str, str]


class Manager:
    """Listens on a socket of its own until it is closed.

    Parameters
    ----------
    path : `pathlib.Path`
        The socket's path.
    """

    def __init__(self, path: Path):
        self.words: list[Word] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        self._socket.settimeout(0.2)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._closing.set()
        self._thread.join(5.0)
        self._socket.close()

    def said(self, name: str, since: float = 0.0) -> list[Word]:
        """Messages with an assignment to a name."""
        return [w for w in list(self.words) if name in w.values and w.time >= since]

    def await_word(
        self,
        name: str,
        timeout: float,
        fits: Callable[[str], bool] = lambda text: True,
        since: float = 0.0,
    ) -> Word:
        """Wait for a message with an assignment that fits."""

        def find() -> Word | None:
            return next((w for w in self.said(name, since) if fits(w.values[name])), None)

        found: Word = wait_for(find, timeout, f"{name}= among {[w.values for w in self.words][-20:]}")
        return found

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except TimeoutError:
                continue
            pid = next(
                (_CREDENTIALS.unpack(d)[0] for _, kind, d in ancillary if kind == socket.SCM_CREDENTIALS), 0
            )
            pairs = (line.partition("=") for line in data.decode().splitlines())
            self.words.append(Word(time.monotonic(), pid, {name: value for name, _, value in pairs}))
