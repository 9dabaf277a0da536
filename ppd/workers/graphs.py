"""Quantum graphs of one detector-visit: the fast way where it holds, else the general one."""

from __future__ import annotations

__all__ = ["Scope", "build_graph"]

import dataclasses
import logging
from collections.abc import Iterable

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DimensionGroup
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskNode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.trivial_quantum_graph_builder import TrivialQuantumGraphBuilder

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a pipeline is run on."""

    instrument: str
    group: str
    detector: int
    skymap: str | None = None
    exposures: tuple[int, ...] = ()
    """Exposure IDs; none before the raws are there."""
    visits: tuple[int, ...] = ()
    """IDs of the visits to process."""

    def where(self, dimensions: Iterable[str]) -> str:
        """Return the data query for a pipeline whose tasks have these dimensions."""
        terms = [
            f"instrument='{self.instrument}'",
            f"detector={self.detector}",
            f"group='{self.group}'",
        ]
        if self.exposures:
            terms.append(f"exposure IN ({', '.join(map(str, sorted(self.exposures)))})")
        if self.visits and "visit" in dimensions:
            # Of a group's exposures there may be visits of several systems.
            terms.append(f"visit IN ({', '.join(map(str, sorted(self.visits)))})")
        if self.skymap:
            terms.append(f"skymap='{self.skymap}'")
        return " AND ".join(terms)

    @property
    def data_id(self) -> dict[str, str | int] | None:
        """The one data ID that all quanta can have; `None` if there are several."""
        if len(self.exposures) > 1 or len(self.visits) > 1:
            return None
        found: dict[str, str | int] = {
            "instrument": self.instrument,
            "group": self.group,
            "detector": self.detector,
        }
        if self.exposures:
            found["exposure"] = self.exposures[0]
        if self.visits:
            found["visit"] = self.visits[0]
        if self.skymap:
            found["skymap"] = self.skymap
        return found


def build_graph(
    executor: SeparablePipelineExecutor, butler: Butler, pipeline: Pipeline, scope: Scope, fast: bool = True
) -> PredictedQuantumGraph:
    """Build the quantum graph of a pipeline.

    Parameters
    ----------
    executor : `lsst.pipe.base.separable_pipeline_executor.SeparablePipelineExecutor`
        Will execute it.
    butler : `lsst.daf.butler.Butler`
        The executor's Butler.
    pipeline : `lsst.pipe.base.Pipeline`
        The pipeline.
    scope : `Scope`
        What it is run on.
    fast : `bool`, optional
        Whether the fast way may be taken.

    Returns
    -------
    graph : `lsst.pipe.base.quantum_graph.PredictedQuantumGraph`
        The graph; without quanta if nothing can be run.

    Notes
    -----
    Where all quanta have one data ID, the graph follows from it, with a query
    for each input of other dimensions (such as templates by patch) alone.
    """
    graph = pipeline.to_graph(butler.registry)
    with butler.registry.caching_context():
        found = _find_inputs(butler, graph, scope) if fast else None
        if found is not None:
            return executor.build_quantum_graph(
                pipeline,
                builder_class=TrivialQuantumGraphBuilder,
                data_ids=found.data_ids,
                input_refs=found.refs,
            )
        return executor.build_quantum_graph(pipeline, where=scope.where(_names(graph.tasks.values())))


@dataclasses.dataclass
class _Inputs:
    """What a graph needs to be built without a query for its rows."""

    data_ids: dict[DimensionGroup, DataCoordinate]
    refs: dict[str, dict[str, list[DatasetRef]]] = dataclasses.field(default_factory=dict)
    """Inputs of other dimensions than the data IDs', by task and connection."""


def _find_inputs(butler: Butler, graph: PipelineGraph, scope: Scope) -> _Inputs | None:
    """Find the data ID for each of a graph's dimensions; `None`: the fast way does not hold."""
    own = scope.data_id
    if own is None or not _names(graph.tasks.values()) <= own.keys() | _implied(butler, own):
        return None
    known = {name: value for name, value in own.items() if name != "skymap"}
    whole = butler.registry.expandDataId(known)
    found = _Inputs({})
    for name, node in graph.dataset_types.items():
        if node.is_prerequisite or node.dimensions in found.data_ids:
            continue
        if node.dimensions <= whole.dimensions:
            found.data_ids[node.dimensions] = whole.subset(node.dimensions)
            continue
        if graph.producer_of(name) is not None:
            return None
        refs = butler.query_datasets(
            node.dataset_type,
            where=scope.where(whole.dimensions.names),
            with_dimension_records=True,
            explain=False,
        )
        if not refs:
            return None  # the general way says what is missing
        for edge in graph.consuming_edges_of(name):
            found.refs.setdefault(edge.task_label, {})[edge.connection_name] = refs
        # The builder asks for one data ID also where it has been given references.
        found.data_ids[node.dimensions] = refs[0].dataId
    for task in graph.tasks.values():
        found.data_ids[task.dimensions] = whole.subset(task.dimensions)
    return found


def _names(nodes: Iterable[TaskNode]) -> set[str]:
    return {name for node in nodes for name in node.dimensions.names}


def _implied(butler: Butler, data_id: dict[str, str | int]) -> set[str]:
    """Names of the dimensions that a data ID implies."""
    return set(butler.dimensions.conform(data_id.keys()).names)
