"""Looking for what a night has left behind."""

from __future__ import annotations

__all__ = ["count_leftovers"]

from pathlib import Path

import psutil

from ..cache.place import place_name
from ..config import Settings


def count_leftovers(settings: Settings) -> dict[str, int]:
    """Count what should be gone once ppd has ended.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration that ppd ran with.

    Returns
    -------
    counts : `dict` [ `str`, `int` ]
        ``processes``, ``shm_files`` (caches, also where they go when shared
        memory is short), ``sockets``, ``local_repos``.
    """
    state = str(settings.state_dir)
    config = str(settings.config_path)
    processes = 0
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any("ppd" in word for word in words) and (state in words or config in words):
            processes += 1
    cache = place_name(settings.instrument, settings.state_dir)
    return {
        "processes": processes,
        "shm_files": sum(_count(place, cache) for place in {settings.shm_dir, settings.shm_fallback}),
        "sockets": _count(settings.socket_dir, "*.ipc"),
        "local_repos": _count(settings.local_repos, "ppd-*"),
    }


def _count(folder: Path | None, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern)) if folder is not None and folder.is_dir() else 0
