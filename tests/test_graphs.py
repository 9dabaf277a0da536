"""Quantum graphs the fast way and the general way are the same; which way is taken when."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from demo_support import PIPELINES, RAW_RUN, Field, shared_field
from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.trivial_quantum_graph_builder import TrivialQuantumGraphBuilder

from ppd.demo.central import INSTRUMENT
from ppd.demo.skymap import SKYMAP
from ppd.workers.graphs import Scope, build_graph, prepare_graph

_NAMES = ("Preprocess", "Isr", "SingleFrame", "ApPipe")


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


def _scope(field: Field, name: str, index: int = 0) -> Scope:
    observed = field.observed[index]
    c = observed.conditions
    before = Scope(INSTRUMENT, c.group, observed.detector, SKYMAP)
    if name == "Preprocess":
        return before
    return dataclasses.replace(before, exposures=(c.exposure,), visits=(c.exposure,))


def _build(field: Field, name: str, scope: Scope, fast: bool, run: str = "test/graphs") -> Any:
    field.butler.collections.register(run)
    inputs = ["test/pre", RAW_RUN, f"{INSTRUMENT}/defaults"]
    if name == "Preprocess":
        field.butler.collections.register("test/nothing")
        inputs = ["test/pre", f"{INSTRUMENT}/defaults"]
    scoped = Butler.from_config(butler=field.butler, collections=[run, *inputs], run=run)
    executor = SeparablePipelineExecutor(scoped, skip_existing_in=[run])
    return build_graph(
        prepare_graph(executor, scoped, Pipeline.fromFile(str(PIPELINES / f"{name}.yaml")), fast=fast), scope
    )


def _contents(graph: PredictedQuantumGraph) -> dict[tuple[str, str], Any]:
    """Inputs and outputs by task and data ID; of what does not exist yet, all but the UUID."""
    quanta = graph.build_execution_quanta()
    made = {ref.id for quantum in quanta.values() for refs in quantum.outputs.values() for ref in refs}
    found = {}
    for quantum in quanta.values():
        inputs = {
            (ref.datasetType.name, str(ref.dataId), None if ref.id in made else ref.id)
            for refs in quantum.inputs.values()
            for ref in refs
        }
        outputs = {
            (ref.datasetType.name, str(ref.dataId), ref.run)
            for refs in quantum.outputs.values()
            for ref in refs
        }
        found[str(quantum.taskName), str(quantum.dataId)] = (inputs, outputs)
    return found


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("name", _NAMES)
def test_both_ways_are_the_same(field: Field, name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = _scope(field, name, index)
    general = _contents(_build(field, name, scope, fast=False))
    taken = []
    process = TrivialQuantumGraphBuilder.process_subgraph
    monkeypatch.setattr(
        TrivialQuantumGraphBuilder,
        "process_subgraph",
        lambda self, graph: (taken.append(graph), process(self, graph))[1],
    )
    assert _contents(_build(field, name, scope, fast=True)) == general
    assert taken, "the fast way was not taken"
    pipeline = Pipeline.fromFile(str(PIPELINES / f"{name}.yaml"))
    assert len(general) == len(pipeline.task_labels)
    assert all(inputs and outputs for inputs, outputs in general.values())


@pytest.mark.parametrize("fast", [True, False])
def test_without_its_raw(field: Field, fast: bool) -> None:
    """Nothing can be made of an exposure whose raw is not there."""
    scope = dataclasses.replace(_scope(field, "Isr"), detector=0)
    assert len(_build(field, "Isr", scope, fast)) == 0


def test_two_exposures_take_the_general_way(field: Field) -> None:
    first, second = (o.conditions.exposure for o in field.seen_by(field.observed[0].detector))
    scope = dataclasses.replace(_scope(field, "Isr"), exposures=(first, second), visits=(first, second))
    assert scope.data_id is None
    # They are of two groups here, and the query says one.
    assert len(_build(field, "Isr", scope, fast=True)) == 1
