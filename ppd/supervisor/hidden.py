"""Which files are not for the processes that we start: `ppd.landlock` keeps them out."""

from __future__ import annotations

__all__ = ["Hidden", "hidden_from_page", "hidden_from_tasks", "tell_exposed"]

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..config import Settings
from ..credentials import FOR_TASKS, SECRET_FILES

_LOG = logging.getLogger(__name__)

# Also in the form that the APDB writes, sqlite:///file%3A/path?mode=rw&uri=true.
_SQLITE = re.compile(r"\bsqlite[+\w]*:///([^\s'\"?]+)")
_JOURNAL, _WAL = "journal.sqlite3", ("", "-shm", "-wal")
# What libpq and the middleware look for when nothing is said.
_AT_HOME = (".pgpass", ".pg_service.conf", ".lsst/db-auth.yaml")
_IN_ENVIRONMENT = ("PGPASSFILE", "PGSERVICEFILE", "LSST_DB_AUTH", "DAF_BUTLER_REPOSITORY_INDEX")


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What is kept from somebody."""

    paths: tuple[Path, ...]
    """Files and folders, without symbolic links."""
    exposed: tuple[Path, ...] = ()
    """What should be among them, and stands in a folder in which tasks have to make files."""


def hidden_from_tasks(settings: Settings, environ: Mapping[str, str]) -> Hidden | None:
    """Find what children may neither read nor write.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        The supervisor's environment.

    Returns
    -------
    hidden : `Hidden` or `None`
        Configuration and credentials, the journal, keys and token, a central repo that is a
        folder, and what the settings name. `None`: nothing is to be hidden.
    """
    if settings.landlock == "off":
        return None
    hidden = [*_of_central(settings, environ), *_keys(settings), *settings.hidden_from_tasks]
    # What a site has for its tasks is not hidden, even if the supervisor uses it too.
    theirs = {_real(Path(value)) for name, value in environ.items() if name.startswith(FOR_TASKS)}
    found = {path for path in map(_real, hidden) if path.exists() and path not in theirs}
    # The journal may be made while the nursery begins.
    found |= {_real(settings.state_dir / f"{_JOURNAL}{end}") for end in _WAL}
    # New files beside something hidden can't be opened: tasks' work comes first.
    folders = _task_folders(settings)
    exposed = {path for path in found if any(path.is_relative_to(folder) for folder in folders)}
    return Hidden(tuple(sorted(found - exposed)), tuple(sorted(exposed)))


def tell_exposed(settings: Settings) -> None:
    """Log what can't be hidden from tasks where it is."""
    hidden = hidden_from_tasks(settings, os.environ)
    for path in hidden.exposed if hidden is not None else ():
        _LOG.warning(
            "Tasks can open %s: it is in a folder in which they make files (the APDB's, local repos', raws', "
            "or a parameter's of pipelines). Move it, or that; see docs/security.md.",
            path,
        )


def hidden_from_page(settings: Settings, environ: Mapping[str, str]) -> Hidden | None:
    """Find what the status page's process may not read, as `hidden_from_tasks` does.

    It reads the journal, the logs, the token and the keys.
    """
    if settings.landlock == "off":
        return None
    return Hidden(
        tuple(sorted({path for path in map(_real, _of_central(settings, environ)) if path.exists()}))
    )


def _of_central(settings: Settings, environ: Mapping[str, str]) -> Iterator[Path]:
    """Find what opens the central repo."""
    if settings.config_path is not None:
        yield settings.config_path
    home = environ.get("HOME")
    yield from (Path(home) / name for name in _AT_HOME if home)
    if environ.get("CREDENTIALS_DIRECTORY"):
        yield Path(environ["CREDENTIALS_DIRECTORY"])
    # Where `ppd.credentials` puts what libpq wants to have to itself.
    yield from (
        Path(folder) / "credentials" for folder in environ.get("RUNTIME_DIRECTORY", "").split(":") if folder
    )
    yield from (Path(path) for path in environ.get(SECRET_FILES, "").split(os.pathsep) if path)
    yield from (Path(environ[name]) for name in _IN_ENVIRONMENT if _is_path(environ.get(name, "")))
    nodes = (*settings.preprocessing_pipelines, *settings.main_pipelines)
    read = [_real(Path(pipeline)) for node in nodes for pipeline in node.pipelines or ()]
    read += [_real(path) for path in (_local(settings.apdb_config),) if path is not None]
    needed = [*_task_folders(settings), *read]
    for uri in {settings.central_repo, settings.read_central_repo}:
        folder = _folder(uri)
        if folder is None:
            continue
        if not any(path.is_relative_to(_real(folder)) for path in needed):
            yield folder
        else:
            # Somebody keeps in it what tasks need: it is enough that nobody can open it as a repo.
            yield from (*folder.glob("butler.yaml"), *folder.glob("*.sqlite3*"))


def _keys(settings: Settings) -> Iterator[Path]:
    yield from (path for path in (settings.control_keys, settings.http_token_file) if path is not None)


def _task_folders(settings: Settings) -> list[Path]:
    """List folders in which tasks read and write what is not there yet."""
    needed = [settings.local_repos, settings.spool_dir, settings.state_dir / "logs", settings.shm_dir]
    needed += [path for path in (settings.shm_fallback, *settings.raw_dirs) if path is not None]
    needed += [Path(value) for value in settings.pipeline_parameters.values() if value.startswith("/")]
    needed += _apdb_folders(settings.apdb_config)
    return [_there(_real(path)) for path in needed]


def _apdb_folders(uri: str | None) -> list[Path]:
    """Find the folder of the APDB's database, if it is on SQLite: a journal is made beside it."""
    path = _local(uri)
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            databases = [unquote(found).removeprefix("file:") for found in _SQLITE.findall(path.read_text())]
            return [Path(database).parent for database in databases if database.startswith("/")]
    return []


def _there(path: Path) -> Path:
    """Return a folder that is there: this one, or that in which it will be made."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def _folder(uri: str | None) -> Path | None:
    """Return the folder that the URI or path of a repo names, if it is one of this machine."""
    path = _local(uri)
    return path.parent if path is not None and path.suffix in (".yaml", ".py") else path


def _local(uri: str | None) -> Path | None:
    """Return the path that a URI or path names, if it is one of this machine."""
    if uri is None:
        return None
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path)) if parts.scheme else Path(uri)


def _is_path(value: str) -> bool:
    return bool(value) and not urlsplit(value).scheme


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
