"""Secrets that are in files: of the one who runs ppd, or credentials of systemd."""

from __future__ import annotations

__all__ = ["FILES", "FOR_TASKS", "SECRET_FILES", "VALUES", "take_credentials"]

import os
import stat
from collections.abc import MutableMapping
from pathlib import Path

from ._settings_sources import ENVIRONMENT
from .errors import ConfigurationError

VALUES = (
    *ENVIRONMENT,
    "PGPASSWORD",
    "LSST_DB_AUTH_CREDENTIALS",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "REDIS_USERNAME",
    "REDIS_PASSWORD",
)
"""Variables whose value may be in the file that ``NAME_FILE`` names, or in a credential."""

FOR_TASKS = "PPD_TASKS_"
"""What names of variables begin with that tasks get, without it; what they name is not hidden from them."""

SECRET_FILES = "PPD_SECRET_FILES"
"""Variable that has the paths of the files that were read, for those who hide them from tasks."""

FILES = ("PGPASSFILE", "LSST_DB_AUTH", "AWS_SHARED_CREDENTIALS_FILE")
"""Variables that name a file; it may be a credential itself."""

# LoadCredential=ppd:FOLDER puts its name before that of each file.
_PREFIXES = ("", "ppd_")
_MAX_BYTES = 1 << 20


def take_credentials(environ: MutableMapping[str, str]) -> None:
    """Put into the environment what files have; they are read once, at the start.

    What is there already, and is not empty, wins over a credential. It may not be
    given twice, by ``NAME`` and by ``NAME_FILE``.

    Parameters
    ----------
    environ : `~collections.abc.MutableMapping` [ `str`, `str` ]
        The environment of this process.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if a file can't be read, or something is given twice; no value is in the message.
    """
    mistakes: list[str] = []
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    for name in VALUES:
        given = environ.get(f"{name}_FILE", "")
        credential = _find(folder, name)
        try:
            if given and environ.get(name):
                mistakes.append(f"environment: {name} and {name}_FILE are both set")
            elif given:
                environ[name] = _read(Path(given))
                del environ[f"{name}_FILE"]
                known = [path for path in environ.get(SECRET_FILES, "").split(os.pathsep) if path]
                environ[SECRET_FILES] = os.pathsep.join([*known, str(Path(given).absolute())])
            elif credential is not None and not environ.get(name):
                environ[name] = _read(credential)
        except (OSError, ValueError) as e:
            where = f"environment {name}_FILE: {given}" if given else f"credential {name}"
            mistakes.append(f"{where}: can't be read: {getattr(e, 'strerror', None) or e}")
    for name in FILES:
        credential = _find(folder, name)
        if credential is None or environ.get(name):
            continue
        try:
            environ[name] = str(_private(credential, environ.get("RUNTIME_DIRECTORY", "")))
        except OSError as e:
            mistakes.append(f"credential {name}: can't be used: {e.strerror or e}")
    if mistakes:
        raise ConfigurationError("\n".join(["The configuration can't be used:", *mistakes]))


def _find(folder: str, name: str) -> Path | None:
    if not folder:
        return None
    candidates = (Path(folder) / f"{prefix}{name}" for prefix in _PREFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("it has more than a megabyte")
    text = data.decode()
    if "\0" in text:
        raise ValueError("it has a NUL character")
    # Editors and kubectl put a line's end there that is no part of the secret.
    return text.rstrip("\r\n")


def _private(credential: Path, runtime: str) -> Path:
    """Return a file that is this user's alone: libpq and the middleware want no other.

    Systemd gives the user the right to read by an access list, which looks as if
    the group had it.
    """
    info = credential.stat()
    if not stat.S_IMODE(info.st_mode) & (stat.S_IRWXG | stat.S_IRWXO) or not runtime:
        return credential
    # Several folders are separated by colons. All are in memory, and end with the service.
    folder = Path(runtime.split(":")[0]) / "credentials"
    folder.mkdir(mode=0o700, exist_ok=True)
    copy = folder / credential.name
    new = copy.with_name(f".{copy.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(credential.read_bytes())
    new.replace(copy)
    return copy
