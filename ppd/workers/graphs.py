"""Quantum graphs of one detector-visit: the fast way where it holds, else the general one."""

from __future__ import annotations

__all__ = ["GraphMaker", "Scope", "build_graph", "prepare_graph"]

import dataclasses
import logging
from collections.abc import Iterable

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DimensionGroup
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskNode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_builder import QuantumGraphBuilder
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


@dataclasses.dataclass(frozen=True)
class GraphMaker:
    """What of making a pipeline's quantum graph can be done before its inputs are there."""

    executor: SeparablePipelineExecutor
    butler: Butler
    """The executor's Butler."""
    pipeline: Pipeline
    graph: PipelineGraph | None
    """The pipeline's graph, resolved in the repo; `None` if it can't be."""
    builder: QuantumGraphBuilder | None
    """Used once; `None` where the fast way can't be taken."""


def prepare_graph(
    executor: SeparablePipelineExecutor, butler: Butler, pipeline: Pipeline, fast: bool = True
) -> GraphMaker:
    """Do what can be done while nobody waits.

    Parameters
    ----------
    executor : `lsst.pipe.base.separable_pipeline_executor.SeparablePipelineExecutor`
        Will execute the quantum graph.
    butler : `lsst.daf.butler.Butler`
        The executor's Butler.
    pipeline : `lsst.pipe.base.Pipeline`
        The pipeline.
    fast : `bool`, optional
        Whether the fast way may be taken.

    Returns
    -------
    maker : `GraphMaker`
        For `build_graph`.
    """
    graph, builder = None, None
    try:
        graph = pipeline.to_graph(butler.registry)
        if fast:
            builder = executor.make_quantum_graph_builder(
                pipeline, builder_class=TrivialQuantumGraphBuilder, data_ids={}
            )
    except Exception as e:
        # Also a mistake in a task's connections: raised again when it counts.
        _LOG.info("No quantum graph can be prepared: %s: %s", type(e).__name__, e)
    return GraphMaker(executor, butler, pipeline, graph, builder)


def build_graph(maker: GraphMaker, scope: Scope) -> PredictedQuantumGraph:
    """Build the quantum graph of a pipeline, once.

    Parameters
    ----------
    maker : `GraphMaker`
        What was prepared.
    scope : `Scope`
        What it is run on.

    Returns
    -------
    graph : `lsst.pipe.base.quantum_graph.PredictedQuantumGraph`
        The graph; without quanta if nothing can be run.

    Notes
    -----
    Where all quanta have one data ID, the graph follows from it, with a query
    for each input of other dimensions (such as templates by patch) alone.
    """
    butler, builder = maker.butler, maker.builder
    graph = maker.graph or maker.pipeline.to_graph(butler.registry)
    with butler.registry.caching_context():
        found = _find_inputs(butler, graph, scope) if builder is not None else None
        if isinstance(builder, TrivialQuantumGraphBuilder) and found is not None:
            builder.data_ids.update(found.data_ids)
            builder.input_refs = found.refs
            metadata = {"skip_existing_in": builder.skip_existing_in, "skip_existing": True, "data_query": ""}
            return builder.finish(metadata=metadata, attach_datastore_records=False).assemble()
        where = scope.where(_names(graph.tasks.values()))
        return maker.executor.build_quantum_graph(maker.pipeline, where=where)


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
