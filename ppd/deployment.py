"""Deployment ID, day_obs, and the names of runs and chain."""

from __future__ import annotations

__all__ = ["NO_PIPELINE", "chain_name", "date_string", "day_obs", "deployment_id", "run_name"]

import datetime
import functools
import hashlib
import json
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .config import Settings
from .errors import ConfigurationError
from .visit import TAI_MINUS_UTC

NO_PIPELINE = "NoPipeline"
"""Stands for the pipeline in the name of the run that preload products go to."""

_HALF_DAY = 12 * 3600.0
_LENGTH = 7


def day_obs(now: float) -> int:
    """Return the day_obs of a time: the TAI date 12 hours earlier.

    Parameters
    ----------
    now : `float`
        Time, UTC Unix seconds.

    Returns
    -------
    day_obs : `int`
        YYYYMMDD.
    """
    date = datetime.datetime.fromtimestamp(now + TAI_MINUS_UTC - _HALF_DAY, datetime.UTC)
    return int(date.strftime("%Y%m%d"))


@functools.lru_cache(maxsize=16)
def date_string(day_obs: int) -> str:
    """Return a day_obs as collection names have it, YYYY-MM-DD.

    Raises
    ------
    ValueError
        Raised if it is not a date.
    """
    return datetime.datetime.strptime(f"{day_obs:08d}", "%Y%m%d").date().isoformat()


def chain_name(instrument: str, date: str) -> str:
    """Return the name of a day's output chain.

    Parameters
    ----------
    instrument : `str`
        Short name.
    date : `str`
        YYYY-MM-DD.

    Returns
    -------
    name : `str`
        Collection name.
    """
    return f"{instrument}/prompt/output-{date}"


@functools.lru_cache(maxsize=256)
def run_name(instrument: str, date: str, pipeline: str, deployment: str) -> str:
    """Return the name of the run that a pipeline's outputs go to.

    Parameters
    ----------
    instrument : `str`
        Short name.
    date : `str`
        YYYY-MM-DD.
    pipeline : `str`
        Path of the pipeline file, or `NO_PIPELINE`.
    deployment : `str`
        Deployment ID.

    Returns
    -------
    name : `str`
        Collection name.
    """
    return f"{chain_name(instrument, date)}/{PurePosixPath(pipeline).stem}/{deployment}"


def deployment_id(settings: Settings) -> str:
    """Return the ID of this installation and configuration.

    Two services have the same ID only if they would write interchangeable
    outputs: the same versions of all installed packages, the same source of
    ppd, the same pipelines with all that they import, the same configuration
    of what goes into outputs.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.

    Returns
    -------
    deployment : `str`
        ``pipelines-<7 hex>-config-<7 hex>``.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if a pipeline file can't be read.
    """
    from .pipelines import all_pipelines

    paths = {*all_pipelines(settings.preprocessing_pipelines), *all_pipelines(settings.main_pipelines)}
    software = hashlib.sha256(_software().encode())
    for content in sorted(_pipeline_content(path) for path in paths):
        software.update(content.encode())
    config = settings.to_dict()
    # Where this service finds things makes no difference to outputs; these do.
    names = ("apdb_config", "pipeline_parameters", "skymap", "preload_padding", "instrument_description")
    relevant = json.dumps({name: config[name] for name in names}, sort_keys=True)
    configuration = hashlib.sha256(relevant.encode())
    return f"pipelines-{software.hexdigest()[:_LENGTH]}-config-{configuration.hexdigest()[:_LENGTH]}"


@functools.cache
def _software() -> str:
    packages = sorted({f"{d.name}=={d.version}" for d in distributions()})
    digest = hashlib.sha256("\n".join(packages).encode())
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _pipeline_content(path: str) -> str:
    # With its imports merged in, and the config files that it names.
    from .pipelines import read_pipeline

    text = str(read_pipeline(path))
    parts = [PurePosixPath(path).stem, text]
    for name in _config_files(yaml.safe_load(text)):
        from lsst.resources import ResourcePath

        try:
            parts.append(ResourcePath(name).read().decode(errors="replace"))
        except OSError as e:
            raise ConfigurationError(f"Pipeline {path}: config file {name} can't be read: {e}.") from e
    return "\n".join(parts)


def _config_files(pipeline: Any) -> list[str]:
    found: list[str] = []
    for task in (pipeline.get("tasks") or {}).values():
        configs = task.get("config") or [] if isinstance(task, dict) else []
        for config in configs if isinstance(configs, list) else [configs]:
            names = config.get("file", []) if isinstance(config, dict) else []
            found += [names] if isinstance(names, str) else names
    return found
