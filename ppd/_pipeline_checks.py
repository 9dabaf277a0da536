"""What can be wrong with the configured pipelines, found before anything is written."""

from __future__ import annotations

__all__ = ["build_graphs", "check_runs", "resolve_graphs"]

from collections.abc import Mapping

import yaml
from lsst.daf.butler import Butler, DatasetType, MissingDatasetTypeError
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.utils import doImportType

from .config import Settings
from .errors import ConfigurationError
from .pipelines import all_pipelines, load_pipeline, pipeline_inputs, summarize

_OWN_DIMENSIONS = ("instrument", "group", "detector")
_OWN_TYPES = {"regionTimeInfo": "RegionTimeInfo", "prompt_provenance": "ProvenanceQuantumGraph"}


def build_graphs(settings: Settings) -> dict[str, PipelineGraph]:
    """Read all configured pipelines and import their tasks.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.

    Returns
    -------
    graphs : `dict` [ `str`, `lsst.pipe.base.pipeline_graph.PipelineGraph` ]
        Unresolved graph by path.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if anything is wrong with any of them; the message names each
        file and task.
    """
    mistakes: list[str] = []
    graphs: dict[str, PipelineGraph] = {}
    paths = (*all_pipelines(settings.preprocessing_pipelines), *all_pipelines(settings.main_pipelines))
    for path in dict.fromkeys(paths):
        try:
            pipeline = load_pipeline(path, settings)
        except ConfigurationError as e:
            mistakes.append(str(e))
            continue
        faults = _missing_tasks(path, pipeline)
        if not faults:
            try:
                graphs[path] = pipeline.to_graph()
            except Exception as e:
                # Configs are Python: anything may be raised.
                faults.append(f"Pipeline {path} can't be built: {type(e).__name__}: {e}{_notes(e)}")
        mistakes += faults
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return graphs


def _notes(error: BaseException) -> str:
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def _missing_tasks(path: str, pipeline: Pipeline) -> list[str]:
    faults = []
    tasks = (yaml.safe_load(str(pipeline)) or {}).get("tasks") or {}
    for label, task in tasks.items():
        name = task if isinstance(task, str) else task["class"]
        try:
            doImportType(name)
        except Exception as e:
            # Importing a module runs its code.
            faults.append(
                f"Pipeline {path}: task {label} ({name}) can't be imported: {type(e).__name__}: {e}"
            )
    return faults


def check_runs(graphs: Mapping[str, PipelineGraph], runs: Mapping[str, str]) -> None:
    """Refuse two pipelines that would share a run but not their configs.

    Parameters
    ----------
    graphs : `~collections.abc.Mapping` [ `str`, `PipelineGraph` ]
        Graph by path.
    runs : `~collections.abc.Mapping` [ `str`, `str` ]
        Run by path.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if there are such.
    """
    first: dict[tuple[str, str], str] = {}
    for path, graph in graphs.items():
        for label, task in graph.tasks.items():
            other = first.setdefault((runs[path], label), path)
            if other != path and graphs[other].tasks[label].get_config_str() != task.get_config_str():
                raise ConfigurationError(
                    f"Pipelines {other} and {path} have the same file name, hence the same run, but task "
                    f"{label} is configured differently in them; rename one."
                )


def resolve_graphs(butler: Butler, graphs: Mapping[str, PipelineGraph]) -> dict[str, DatasetType]:
    """Resolve the graphs against the central repo, and against each other.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo; only read.
    graphs : `~collections.abc.Mapping` [ `str`, `PipelineGraph` ]
        Graph by path; resolved in place.

    Returns
    -------
    types : `dict` [ `str`, `lsst.daf.butler.DatasetType` ]
        Every dataset type that ppd or a pipeline may write, by name.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if a definition contradicts the repo or another pipeline, or
        if the repo lacks the dataset type of an input that a pipeline needs.
    """
    universe = butler.dimensions
    mistakes: list[str] = []
    types = {
        name: DatasetType(name, _OWN_DIMENSIONS, storage_class, universe=universe)
        for name, storage_class in _OWN_TYPES.items()
    }
    types["packages"] = DatasetType("packages", (), "Packages", universe=universe)
    known: dict[str, DatasetType] = {}
    for name, own in types.items():
        found = _registered(butler, name)
        known[name] = found or own
        if found is not None and found != own:
            mistakes.append(f"The central repo has {found}; ppd needs {own}.")
    for path, graph in graphs.items():
        summary = summarize(path, graph)
        for name in {
            *(i.name for i in summary.inputs),
            *summary.outputs,
            *summary.init_outputs,
        } - known.keys():
            found = _registered(butler, name)
            if found is not None:
                known[name] = found
        try:
            graph.resolve(dimensions=universe, dataset_types=known)
        except Exception as e:
            mistakes.append(
                f"Pipeline {path} does not fit the central repo: {type(e).__name__}: {e}{_notes(e)}"
            )
            continue
        for node in graph.dataset_types.values():
            if graph.producer_of(node.name) is not None:
                dataset_type = node.dataset_type.conform_to(universe)
                types[node.name] = known[node.name] = dataset_type
    mistakes = mistakes or _lacking_inputs(graphs, known)
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return types


def _registered(butler: Butler, name: str) -> DatasetType | None:
    try:
        return butler.get_dataset_type(name)
    except MissingDatasetTypeError:
        return None


def _lacking_inputs(graphs: Mapping[str, PipelineGraph], known: Mapping[str, DatasetType]) -> list[str]:
    return [
        f"Pipeline {path} reads {info.name}, which neither the central repo knows nor any pipeline writes."
        for path, graph in graphs.items()
        for info in pipeline_inputs(graph)
        if not info.optional and info.name not in known
    ]
