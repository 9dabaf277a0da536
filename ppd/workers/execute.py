"""Running pipelines in the child, in order of preference."""

from __future__ import annotations

__all__ = [
    "Candidate",
    "NoPipelineError",
    "PipelineFailedError",
    "Ran",
    "graph_executor",
    "prepare",
    "provenance_ref",
    "run_first_possible",
]

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsst.daf.butler import Butler, DatasetRef, DatasetType, LimitedButler
from lsst.pipe.base import (
    AnnotatedPartialOutputsError,
    InvalidQuantumError,
    NoWorkFound,
    Pipeline,
    PipelineTask,
    RepeatableQuantumError,
    TaskFactory,
)
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor, MPGraphExecutorError
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from ..crash_points import here
from ..errors import with_cause
from .containment import Terminated, contained
from .graphs import GraphMaker, Scope, build_graph, prepare_graph
from .inherited import Inherited
from .read_through import ReadThroughButler

_LOG = logging.getLogger(__name__)

_NO_TIMEOUT = 2_592_000.0
_EXITED_ON = (InvalidQuantumError, RepeatableQuantumError)


class NoPipelineError(RuntimeError):
    """Raised when no pipeline of a list can be run on the inputs there are."""


class PipelineFailedError(RuntimeError):
    """Raised when a pipeline started and a task of it failed, in whatever way."""

    def __init__(self, pipeline: str, cause: BaseException):
        # The executor wraps what it catches.
        cause = (cause.__cause__ or cause) if isinstance(cause, MPGraphExecutorError) else cause
        if isinstance(cause, SystemExit) and isinstance(cause.__context__, _EXITED_ON):
            # So it ends the process when it runs a graph for a command.
            cause = cause.__context__
        super().__init__(_named(cause))
        self.pipeline = pipeline
        self.repeatable = isinstance(cause, _EXITED_ON)
        """Whether another try would fail in the same way."""


class _WatchingFactory(TaskFactory):
    """A task factory that tells when the first task begins, and notes what tasks say of missing outputs."""

    def __init__(self, first: Callable[[str], None], remarks: list[str]):
        self._first: Callable[[str], None] | None = first
        self._remarks = remarks

    def makeTask(self, task_node: Any, *args: object, **kwargs: object) -> PipelineTask:
        first, self._first = self._first, None
        task = super().makeTask(task_node, *args, **kwargs)
        task.runQuantum = functools.partial(self._run, task.runQuantum, task_node.label)
        if first is not None:
            first(task.getName())
        return task

    def _run(self, run: Callable[..., None], label: str, *args: object, **kwargs: object) -> None:
        try:
            run(*args, **kwargs)
        except (NoWorkFound, AnnotatedPartialOutputsError) as e:
            # The executor takes both for successes, and keeps the reason to its log.
            cause = (e.__cause__ or e) if isinstance(e, AnnotatedPartialOutputsError) else e
            self._remarks.append(f"{label}: {_named(cause)}")
            raise


class _Executor(SingleQuantumExecutor):
    """An executor of quanta that notes which had nothing to work on."""

    def __init__(self, remarks: list[str], **kwargs: object):
        super().__init__(**kwargs)
        self._remarks = remarks

    def execute(self, task_node: Any, *args: object, **kwargs: object) -> Any:
        result = super().execute(task_node, *args, **kwargs)
        if result.adjusted_no_work:
            self._remarks.append(f"{task_node.label}: its inputs are not there")
        return result


@dataclasses.dataclass(frozen=True)
class Ran:
    """A pipeline that ran to its end."""

    path: str
    remarks: str = ""
    """Why there are fewer outputs than there might be, by task; empty: there are all."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pipeline that may be run, with what can be prepared before its inputs are all there."""

    path: str
    maker: GraphMaker
    """With the executor, and its Butler, which reads the pipeline's inputs and writes to its run."""


def prepare(
    butler: Butler,
    pipelines: Mapping[str, Pipeline],
    order: Sequence[str],
    runs: Mapping[str, str],
    inputs: Sequence[str],
) -> list[Candidate]:
    """Prepare to run one of several pipelines.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo, which has all these collections.
    pipelines : `~collections.abc.Mapping` [ `str`, `lsst.pipe.base.Pipeline` ]
        Pipelines by path, as the nursery has built them.
    order : sequence of `str`
        Paths in order of preference.
    runs : `~collections.abc.Mapping` [ `str`, `str` ]
        Output run by path.
    inputs : sequence of `str`
        Input collections, first searched first.

    Returns
    -------
    candidates : `list` [ `Candidate` ]
        In order of preference.
    """
    candidates = []
    for path in order:
        run = runs[path]
        # The run itself comes first: init-outputs were written by ppd-init.
        scoped = Butler.from_config(butler=butler, collections=[run, *inputs], run=run)
        executor = SeparablePipelineExecutor(scoped, skip_existing_in=[run], raise_on_partial_outputs=False)
        maker = prepare_graph(executor, scoped, pipelines[path])
        candidates.append(Candidate(path, maker))
    return candidates


def run_first_possible(
    candidates: Sequence[Candidate],
    scope: Scope,
    provenance: Mapping[str, object],
    started: Callable[[str, str], None],
    inherited: Inherited,
    memory: int | None = None,
) -> Ran:
    """Run the first pipeline for which a quantum graph can be built.

    Parameters
    ----------
    candidates : sequence of `Candidate`
        Pipelines in order of preference.
    scope : `ppd.workers.graphs.Scope`
        What to run them on.
    provenance : `~collections.abc.Mapping`
        Data ID of the ``prompt_provenance`` dataset; empty: none is kept.
    started : callable
        Called with path and first task's name when the first task begins.
        After it there is no fall-back to another pipeline.
    inherited : `ppd.workers.inherited.Inherited`
        What tasks get from memory.
    memory : `int`, optional
        Bytes that tasks may allocate.

    Returns
    -------
    ran : `Ran`
        The pipeline that ran to its end, and what its tasks had to say.

    Raises
    ------
    NoPipelineError
        Raised if none could be started; says why for each.
    PipelineFailedError
        Raised if the one that started failed.
    """
    refusals: list[str] = []
    for candidate in candidates:
        path = candidate.path
        serving = ReadThroughButler(candidate.maker.butler, inherited)
        try:
            graph = build_graph(candidate.maker, scope)
        except Exception as e:
            # Whatever it is, also a mistake in a task's connections: nothing has begun yet.
            _LOG.debug("No quantum graph of %s.", path, exc_info=True)
            refusals.append(f"{path}: {_named(e)}")
            continue
        if len(graph) == 0:
            refusals.append(f"{path}: no quantum can be made of the inputs")
            continue
        for refusal in refusals:
            _LOG.warning("Fell back: %s", refusal)
        remarks: list[str] = []
        here("child.graph-built", path)
        try:
            with contained(memory):
                candidate.maker.executor.run_pipeline(
                    graph,
                    graph_executor=graph_executor(
                        serving, _WatchingFactory(functools.partial(started, path), remarks), remarks
                    ),
                    provenance_dataset_ref=provenance_ref(candidate.maker.butler, provenance),
                )
        except Terminated:
            raise
        except BaseException as e:
            # A task may raise what is meant to end a process: it ends the pipeline.
            raise PipelineFailedError(path, e) from e
        _LOG.info("%d inputs came from memory.", serving.served)
        return Ran(path, "; ".join(remarks))
    raise NoPipelineError("; ".join(refusals) or "no pipeline is configured")


def graph_executor(
    butler: LimitedButler, factory: TaskFactory, remarks: list[str] | None = None
) -> MPGraphExecutor:
    """Make what executes quanta in this process.

    Parameters
    ----------
    butler : `lsst.daf.butler.LimitedButler`
        Reads and writes datasets.
    factory : `lsst.pipe.base.TaskFactory`
        Makes tasks.
    remarks : `list` [ `str` ], optional
        Where it is noted which quanta had nothing to work on.
    """
    quantum_executor = _Executor(
        [] if remarks is None else remarks,
        butler=butler,
        task_factory=factory,
        skip_existing=True,
        raise_on_partial_outputs=False,
    )
    # The supervisor has the time-outs.
    return MPGraphExecutor(num_proc=1, timeout=_NO_TIMEOUT, quantum_executor=quantum_executor, fail_fast=True)


def provenance_ref(butler: Butler, data_id: Mapping[str, object]) -> DatasetRef | None:
    """Make the reference of the dataset that a pipeline's provenance goes to; none for no data ID."""
    if not data_id:
        return None
    dataset_type: DatasetType = butler.get_dataset_type("prompt_provenance")
    return DatasetRef(dataset_type, butler.registry.expandDataId(data_id), run=butler.run)


def _named(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)[:200]
        return f"a task called sys.exit({code})"
    return with_cause(error, 500)
