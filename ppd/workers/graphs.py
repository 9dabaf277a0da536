"""Quantum graphs of one detector-visit: the fast way where it holds, else the general one."""

from __future__ import annotations

__all__ = ["GraphMaker", "Scope", "build_graph", "prepare_graph"]

import dataclasses
import logging
from collections.abc import Iterable

from lsst.daf.butler import Butler, DataCoordinate, DimensionGroup
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_builder import QuantumGraphBuilder, QuantumGraphBuilderError
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
    except (QuantumGraphBuilderError, LookupError, FileNotFoundError) as e:
        # It is raised again when there are inputs, and then it counts.
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
    Where all quanta and all datasets (but for prerequisites, which tasks look
    up by themselves) have one data ID, the graph follows from it without a
    query for its rows.  Templates by patch, for example, take the general way.
    """
    butler, builder = maker.butler, maker.builder
    graph = maker.graph or maker.pipeline.to_graph(butler.registry)
    data_ids = _data_ids(butler, graph, scope) if builder is not None else None
    with butler.registry.caching_context():
        if isinstance(builder, TrivialQuantumGraphBuilder) and data_ids is not None:
            builder.data_ids.update(data_ids)
            metadata = {"skip_existing_in": builder.skip_existing_in, "skip_existing": True, "data_query": ""}
            return builder.finish(metadata=metadata, attach_datastore_records=False).assemble()
        dimensions = {name for task in graph.tasks.values() for name in task.dimensions.names}
        return maker.executor.build_quantum_graph(maker.pipeline, where=scope.where(dimensions))


def _data_ids(
    butler: Butler, graph: PipelineGraph, scope: Scope
) -> dict[DimensionGroup, DataCoordinate] | None:
    """Data ID by dimensions, if there is one for all that the graph needs."""
    own = scope.data_id
    if own is None:
        return None
    needed = {task.dimensions for task in graph.tasks.values()}
    needed |= {node.dimensions for node in graph.dataset_types.values() if not node.is_prerequisite}
    names = set().union(*(dimensions.required for dimensions in needed))
    if not names <= own.keys():
        return None
    whole = butler.registry.expandDataId(
        {name: value for name, value in own.items() if name in names or name in ("instrument", "detector")}
    )
    return {dimensions: whole.subset(dimensions) for dimensions in needed}
