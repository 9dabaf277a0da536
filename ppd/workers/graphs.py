"""Quantum graphs of one detector-visit: the fast way where it holds, else the general one."""

from __future__ import annotations

__all__ = ["Scope", "build_graph"]

import dataclasses
import logging
from collections.abc import Iterable

from lsst.daf.butler import Butler, DataCoordinate, DimensionGroup
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph
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
    Where all quanta and all datasets (but for prerequisites, which tasks look
    up by themselves) have one data ID, the graph follows from it without a
    query for its rows.  Templates by patch, for example, take the general way.
    """
    graph = pipeline.to_graph(butler.registry)
    data_ids = _data_ids(butler, graph, scope) if fast else None
    with butler.registry.caching_context():
        if data_ids is not None:
            return executor.build_quantum_graph(
                pipeline, builder_class=TrivialQuantumGraphBuilder, data_ids=data_ids
            )
        dimensions = {name for task in graph.tasks.values() for name in task.dimensions.names}
        return executor.build_quantum_graph(pipeline, where=scope.where(dimensions))


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
