"""Copies of the cache's registry that stay as they are while a child may clone them."""

from __future__ import annotations

__all__ = ["Snapshots"]

import contextlib
import sqlite3
from pathlib import Path


class Snapshots:
    """The registry copies and who uses them.

    Parameters
    ----------
    registry : `pathlib.Path`
        The registry file (SQLite).
    folder : `pathlib.Path`
        Where the copies go; it is made.
    """

    def __init__(self, registry: Path, folder: Path):
        self._registry = registry
        self._folder = folder
        self._users: dict[Path, set[str]] = {}
        self._latest: Path | None = None
        self._count = 0
        folder.mkdir()

    def take(self) -> None:
        """Copy the registry; who asks from now on gets this copy."""
        self._count += 1
        path = self._folder / f"{self._count}.sqlite3"
        # SQLite's own backup sees a consistent registry whatever its journal
        # mode; a plain copy would not have to.
        source = sqlite3.connect(f"file:{self._registry}?mode=ro", uri=True)
        target = sqlite3.connect(path)
        try:
            source.backup(target)
        except BaseException:
            path.unlink()
            raise
        finally:
            target.close()
            source.close()
        old, self._latest = self._latest, path
        self._users[path] = set()
        if old is not None:
            self._drop_unused(old)

    def use(self, holder: str) -> Path:
        """Return the latest copy; it stays until the holder releases it."""
        assert self._latest is not None
        self._users[self._latest].add(holder)
        return self._latest

    def release(self, holder: str) -> None:
        """Give back whatever copies the holder uses."""
        for path, users in list(self._users.items()):
            users.discard(holder)
            if path != self._latest:
                self._drop_unused(path)

    def _drop_unused(self, path: Path) -> None:
        if not self._users[path]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            del self._users[path]
