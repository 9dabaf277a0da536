"""What ppd-init does: everything that must be in the central repo before work begins."""

from __future__ import annotations

__all__ = ["InitReport", "check_initialized", "expected_runs", "initialize"]

import contextlib
import dataclasses
import fcntl
import logging
import random
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy.exc
from lsst.daf.butler import Butler, CollectionType, DatasetType, MissingCollectionError
from lsst.daf.butler.registry import ConflictingDefinitionError

from .config import Settings
from .deployment import NO_PIPELINE, chain_name, date_string, deployment_id, run_name
from .deployment import day_obs as day_obs_of
from .errors import CentralUnavailableError, ConfigurationError, NotInitializedError, one_line
from .pipelines import all_pipelines

if TYPE_CHECKING:
    from lsst.pipe.base.pipeline_graph import PipelineGraph

_LOG = logging.getLogger(__name__)

# Two ppd-init at once conflict at most once per kind of write.
_ATTEMPTS = 8
_CONNECT_ATTEMPTS = 3
# The first universe that has the group dimension in this form.
_OLDEST_UNIVERSE = 6
_TRANSIENT = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)


@dataclasses.dataclass(frozen=True)
class InitReport:
    """What `initialize` found or did."""

    instrument: str
    day_obs: int
    deployment: str
    chain: str
    runs: tuple[str, ...]
    """Run collections of this deployment and day, in search order."""
    written: bool
    """Whether anything was written; `False`: it had all been done before."""
    dataset_types: tuple[str, ...]
    """Dataset types that were registered now."""
    seconds: float


def expected_runs(settings: Settings, day_obs: int, deployment: str) -> dict[str, str]:
    """Return the run of each configured pipeline.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    day_obs : `int`
        YYYYMMDD.
    deployment : `str`
        Deployment ID.

    Returns
    -------
    runs : `dict` [ `str`, `str` ]
        Run collection by pipeline path, and by `ppd.deployment.NO_PIPELINE`
        for preload products.
    """
    date = date_string(day_obs)
    paths = (*all_pipelines(settings.main_pipelines), *all_pipelines(settings.preprocessing_pipelines))
    return {path: run_name(settings.instrument, date, path, deployment) for path in (*paths, NO_PIPELINE)}


def check_initialized(
    butler: Butler, settings: Settings, day_obs: int, deployment: str | None = None
) -> None:
    """Make sure that `initialize` has been done for a day.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo; only read.
    settings : `ppd.config.Settings`
        The configuration.
    day_obs : `int`
        YYYYMMDD.
    deployment : `str`, optional
        Deployment ID, if the caller knows it already.

    Raises
    ------
    ppd.errors.NotInitializedError
        Raised if not; the message has the command to run.
    """
    deployment = deployment or deployment_id(settings)
    runs = set(expected_runs(settings, day_obs, deployment).values())
    missing = runs - set(_children(butler, chain_name(settings.instrument, date_string(day_obs))))
    if missing:
        command = ["ppd-init"]
        if settings.config_path is not None:
            command += ["--config", str(settings.config_path)]
        command += ["--day-obs", str(day_obs)]
        raise NotInitializedError(
            f"The central repo is not prepared for deployment {deployment} on {day_obs}: "
            f"{len(missing)} of {len(runs)} runs are missing, such as {min(missing)}. "
            f"Run: {shlex.join(command)}"
        )


def initialize(settings: Settings, day_obs: int | None = None) -> InitReport:
    """Prepare the central repo for a day's work.

    After this returns, the dataset types of all configured pipelines are
    registered; each pipeline has its run, with init-outputs, configs and
    package versions in it; and all runs are in the day's chain.  They get
    into the chain last, so that a run in the chain is a complete run.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    day_obs : `int`, optional
        YYYYMMDD; today by default.

    Returns
    -------
    report : `InitReport`
        What was done.  Done again, or by two processes at once, it changes
        nothing that is there.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised, before anything is written, if a pipeline can't be used or
        contradicts the central repo.
    ppd.errors.CentralUnavailableError
        Raised if the central repo does not answer.
    lsst.daf.butler.registry.ConflictingDefinitionError
        Raised if what is in the runs contradicts what would be written.
    """
    begin = time.monotonic()
    day = day_obs_of(time.time()) if day_obs is None else day_obs
    # The supervisor, which only checks, starts a quarter of a second sooner without the pipelines' library.
    from ._pipeline_checks import build_graphs, check_runs, resolve_graphs

    graphs = build_graphs(settings)
    deployment = deployment_id(settings)
    runs = expected_runs(settings, day, deployment)
    check_runs(graphs, runs)
    chain = chain_name(settings.instrument, date_string(day))
    registered: set[str] = set()
    written = False
    with _open_central(settings) as butler:
        _check_repo(
            butler,
            settings,
            {chain: CollectionType.CHAINED, **dict.fromkeys(runs.values(), CollectionType.RUN)},
        )
        if set(runs.values()) - set(_children(butler, chain)):
            types = resolve_graphs(butler, graphs)
            with _local_lock(settings.central_repo):
                written = _retried(lambda: _write(butler, settings, graphs, types, runs, chain, registered))
    return InitReport(
        instrument=settings.instrument,
        day_obs=day,
        deployment=deployment,
        chain=chain,
        runs=tuple(dict.fromkeys(runs.values())),
        written=written,
        dataset_types=tuple(sorted(registered)),
        seconds=time.monotonic() - begin,
    )


def _children(butler: Butler, chain: str) -> tuple[str, ...]:
    try:
        return tuple(butler.collections.get_info(chain).children)
    except MissingCollectionError:
        return ()


def _type_of(butler: Butler, name: str) -> CollectionType | None:
    try:
        return butler.collections.get_info(name).type
    except MissingCollectionError:
        return None


@contextlib.contextmanager
def _open_central(settings: Settings) -> Iterator[Butler]:
    for attempt in range(1, _CONNECT_ATTEMPTS + 1):
        try:
            butler = Butler.from_config(settings.central_repo, writeable=True)
            break
        except _TRANSIENT as e:
            fault = one_line(e)
            if attempt == _CONNECT_ATTEMPTS:
                raise CentralUnavailableError(f"Central repo {settings.central_repo}: {fault}") from e
            _LOG.warning("Central repo %s does not answer: %s", settings.central_repo, fault)
            time.sleep(settings.repo_retry_delay * random.uniform(0.5, 1.5))
        except (OSError, RuntimeError, ValueError, LookupError) as e:
            raise CentralUnavailableError(f"Central repo {settings.central_repo} can't be opened: {e}") from e
    try:
        yield butler
    except _TRANSIENT as e:
        fault = one_line(e)
        raise CentralUnavailableError(f"Central repo {settings.central_repo}: {fault}") from e
    finally:
        butler.close()


def _check_repo(butler: Butler, settings: Settings, collections: Mapping[str, CollectionType]) -> None:
    universe = butler.dimensions
    if universe.namespace != "daf_butler" or universe.version < _OLDEST_UNIVERSE:
        raise ConfigurationError(
            f"Central repo {settings.central_repo} has dimension universe {universe.namespace} "
            f"{universe.version}; ppd needs daf_butler {_OLDEST_UNIVERSE} or newer."
        )
    for element in ("instrument", "detector"):
        if not butler.query_dimension_records(
            element, instrument=settings.instrument, explain=False, limit=1
        ):
            raise ConfigurationError(
                f"Central repo {settings.central_repo} has no {element} record of {settings.instrument}; "
                "register the instrument first."
            )
    for name, wanted in collections.items():
        found = _type_of(butler, name)
        if found not in (None, wanted):
            raise ConfigurationError(
                f"Central repo {settings.central_repo} has collection {name}, which is of type {found.name}, "
                f"not {wanted.name}."
            )


@contextlib.contextmanager
def _local_lock(repo: str) -> Iterator[None]:
    # Spares two processes on one machine the conflicts; across machines and
    # in remote repos the retries alone make it safe.
    root = Path(repo.removeprefix("file://"))
    path = root / "butler.yaml" if root.is_dir() else root
    try:
        stream = path.open("rb")
    except OSError:
        yield
        return
    with stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _retried(write: Callable[[], bool]) -> bool:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return write()
        except (ConflictingDefinitionError, sqlalchemy.exc.IntegrityError, *_TRANSIENT) as e:
            # Another ppd-init wrote the same thing first: then the next
            # round finds it done.
            if attempt == _ATTEMPTS:
                raise
            _LOG.info("Tried again after %s: %s", type(e).__name__, one_line(e, 200))
            time.sleep(random.uniform(0.05, 0.3) * attempt)
    raise AssertionError


def _write(
    butler: Butler,
    settings: Settings,
    graphs: Mapping[str, PipelineGraph],
    types: Mapping[str, DatasetType],
    runs: Mapping[str, str],
    chain: str,
    registered: set[str],
) -> bool:
    butler.registry.refresh()
    done = _children(butler, chain)
    missing = [run for run in dict.fromkeys(runs.values()) if run not in done]
    if not missing:
        return False
    known = {t.name for t in butler.registry.queryDatasetTypes(...)}
    for name in sorted(types.keys() - known):
        if butler.registry.registerDatasetType(types[name]):
            registered.add(name)
    for path, run in runs.items():
        if run in missing:
            butler.collections.register(run, CollectionType.RUN)
            if path in graphs:
                _write_init_outputs(butler, settings, graphs[path], run)
                _LOG.info("Wrote init-outputs of %s to %s.", path, run)
    butler.collections.register(chain, CollectionType.CHAINED)
    butler.collections.prepend_chain(chain, missing)
    return True


def _write_init_outputs(butler: Butler, settings: Settings, graph: PipelineGraph, run: str) -> None:
    with butler.clone(run=run, collections=[run]) as alone:
        # Alone: or the packages of some input run would be found for ours.
        graph.write_configs(alone)
        graph.write_packages(alone)
    umbrella = f"{settings.instrument}/defaults"
    # For init-inputs, where a task has any.
    inputs = [umbrella] if _type_of(butler, umbrella) else []
    with butler.clone(run=run, collections=[run, *inputs]) as with_inputs:
        graph.write_init_outputs(with_inputs)
