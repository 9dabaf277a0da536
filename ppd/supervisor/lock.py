"""One supervisor to a state directory."""

from __future__ import annotations

__all__ = ["StateLock"]

import fcntl
import os
from pathlib import Path

from ..errors import ConfigurationError


class StateLock:
    """Holds the lock of a state directory until it is closed or the process ends.

    Parameters
    ----------
    state_dir : `pathlib.Path`
        The directory; it exists.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if another supervisor holds it; says which.
    """

    def __init__(self, state_dir: Path):
        path = state_dir / "lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 100).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise ConfigurationError(
                f"Another ppd (pid {holder}) runs on the state directory {state_dir}."
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)
