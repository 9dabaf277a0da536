"""Which files are not for the processes that we start: `ppd.landlock` keeps them out."""

from __future__ import annotations

__all__ = ["hidden_from_page", "hidden_from_tasks"]

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..config import Settings
from ..credentials import SECRET_FILES

_TASKS_OWN = "PPD_TASKS_"
_JOURNAL, _WAL = "journal.sqlite3", ("", "-shm", "-wal")
# What libpq and the middleware look for when nothing is said.
_AT_HOME = (".pgpass", ".pg_service.conf", ".lsst/db-auth.yaml")
_IN_ENVIRONMENT = ("PGPASSFILE", "PGSERVICEFILE", "LSST_DB_AUTH", "DAF_BUTLER_REPOSITORY_INDEX")


def hidden_from_tasks(settings: Settings, environ: Mapping[str, str]) -> tuple[Path, ...] | None:
    """Find what children may neither read nor write.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        The supervisor's environment.

    Returns
    -------
    hidden : `tuple` [ `pathlib.Path`, ... ] or `None`
        Files and folders that are there, without symbolic links: configuration and credentials,
        the journal, keys and token, a central repo that is a folder, and what the settings
        name. `None`: nothing is to be hidden.
    """
    if settings.landlock == "off":
        return None
    hidden = [*_of_central(settings, environ), *_keys(settings), *settings.hidden_from_tasks]
    # What a site has for its tasks is not hidden, even if the supervisor uses it too.
    theirs = {_real(Path(value)) for name, value in environ.items() if name.startswith(_TASKS_OWN)}
    found = {path for path in map(_real, hidden) if path.exists() and path not in theirs}
    # The journal may be made while the nursery begins.
    return tuple(sorted(found | {_real(settings.state_dir / f"{_JOURNAL}{end}") for end in _WAL}))


def hidden_from_page(settings: Settings, environ: Mapping[str, str]) -> tuple[Path, ...] | None:
    """Find what the status page's process may not read, as `hidden_from_tasks` does.

    It reads the journal, the logs, the token and the keys.
    """
    if settings.landlock == "off":
        return None
    return tuple(sorted({path for path in map(_real, _of_central(settings, environ)) if path.exists()}))


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
    needed = [_real(path) for path in _needed(settings)]
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


def _needed(settings: Settings) -> Iterator[Path]:
    """List folders and files that children use; a parent of one can't be hidden."""
    yield from (settings.state_dir, settings.local_repos, settings.spool_dir, settings.shm_dir)
    yield from (path for path in (settings.shm_fallback, _folder(settings.apdb_config)) if path is not None)
    yield from settings.raw_dirs
    for node in (*settings.preprocessing_pipelines, *settings.main_pipelines):
        yield from map(Path, node.pipelines or ())


def _folder(uri: str | None) -> Path | None:
    """Return the folder that a URI or path names, if it is one of this machine."""
    if uri is None:
        return None
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path)) if parts.scheme else Path(uri)
    return path.parent if path.suffix in (".yaml", ".py") else path


def _is_path(value: str) -> bool:
    return bool(value) and not urlsplit(value).scheme


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
