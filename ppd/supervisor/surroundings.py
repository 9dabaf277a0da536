"""What the supervisor needs of its machine before it begins: folders and open files."""

from __future__ import annotations

__all__ = ["allow_files", "prepare_folders"]

import contextlib
import resource

from ..config import Settings
from ..errors import ConfigurationError


def prepare_folders(settings: Settings) -> None:
    """Make the folders that are not there.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if one can't be made.
    """
    logs = settings.state_dir / "logs"
    try:
        for folder in (settings.state_dir, settings.local_repos, settings.spool_dir, logs):
            folder.mkdir(parents=True, exist_ok=True)
        settings.socket_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.socket_dir.chmod(0o700)
    except OSError as e:
        raise ConfigurationError(f"A folder that ppd needs can't be made: {e}.") from e


def allow_files() -> None:
    """Have as many open files as we may: ZeroMQ aborts the process that can't accept a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
