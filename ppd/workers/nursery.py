"""The nursery: imports and builds once, then forks children on request.

It is single-threaded and holds no socket, thread or database: only the pipe
to the supervisor, on standard input and output.  One loop reads requests and
reaps children; the idea is that of the standard library's fork server.
"""

from __future__ import annotations

__all__ = ["main"]

import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import astropy.time
from lsst.pipe.base import Pipeline

from .. import landlock
from ..config import Settings
from ..crash_points import here
from ..errors import ConfigurationError
from ..instruments.description import InstrumentDescription, find_description
from ..logs import setup_logging
from ..messages import (
    DetectorKey,
    Exited,
    Forked,
    ForkRequest,
    MessageError,
    NurseryReady,
    NurserySetup,
    PipelineSummary,
    PrepareNursery,
    Retire,
    SetupFailed,
    ShutDown,
    decode,
    encode,
)
from ..pipelines import all_pipelines, load_pipeline, summarize
from .child import run_child
from .ingest import load_translators
from .ingesting import choose_ingest
from .inherited import Inherited
from .parting import fork_apart
from .rehearsal import Rehearsal

_LOG = logging.getLogger(__name__)

# What children need anyway; each import before the fork is one that no child
# pays for.
_PRELOAD = (
    "_posixshmem",
    "astropy.io.fits",
    "astropy.io.misc.yaml",
    "astropy.wcs",
    "lsst.daf.butler.datastores.chainedDatastore",
    "lsst.daf.butler.datastores.fileDatastore",
    "lsst.daf.butler.direct_butler",
    "lsst.daf.butler.formatters.json",
    "lsst.daf.butler.formatters.logs",
    "lsst.daf.butler.formatters.parquet",
    "lsst.daf.butler.formatters.yaml",
    "lsst.daf.butler.queries.overlaps",
    "lsst.daf.butler.registry.attributes",
    "lsst.daf.butler.registry.collections.synthIntKey",
    "lsst.daf.butler.registry.databases.sqlite",
    "lsst.daf.butler.registry.datasets.byDimensions",
    "lsst.daf.butler.registry.dimensions.static",
    "lsst.images.formatters",
    "lsst.pipe.base.all_dimensions_quantum_graph_builder",
    "lsst.pipe.base.quantum_graph.formatter",
    "lsst.resources.http",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "stringprep",
)
_PRELOAD_APDB = ("lsst.dax.apdb", "lsst.dax.apdb.sql", "lsst.sdm.schemas")
# As nice as can be.
_LAST_PRIORITY = 19
_SHUTDOWN_GRACE = 5.0


class _Pipe:
    """JSON lines to and from the supervisor."""

    def __init__(self, read_fd: int, write_fd: int):
        self.read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = b""

    def send(self, message: Any) -> None:
        data = encode(message) + b"\n"
        while data:
            data = data[os.write(self._write_fd, data) :]

    def receive(self) -> list[Any] | None:
        """Read what is there; `None` when the supervisor is gone."""
        data = os.read(self.read_fd, 1 << 20)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = []
        for line in lines:
            try:
                messages.append(decode(line))
            except MessageError as e:
                _LOG.error("Nursery: %s", e)
        return messages


def main() -> int:
    """Run the nursery until the supervisor closes the pipe.

    Returns
    -------
    code : `int`
        0, or 2 if the configuration can't be used.
    """
    # The protocol keeps descriptors of its own, so that a task module that
    # prints on import can't disturb it.
    pipe = _Pipe(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = _first_message(pipe)
    if setup is None:
        return 0
    settings = Settings.from_dict(setup.settings)
    setup_logging(settings)
    begin = time.monotonic()
    try:
        _hide(setup, settings)
        pipelines, summaries = _build(settings)
        description = find_description(settings.instrument, settings.instrument_description)
        _import_early(_PRELOAD if settings.apdb_config is None else (*_PRELOAD, *_PRELOAD_APDB))
        if settings.raw_bucket is not None:
            _prepare_s3(settings)
        load_translators()
        # The table of leap seconds is read at the first use of a time.
        astropy.time.Time.now().tai.utc.isot  # noqa: B018
        _import_formatter(description)
        choose_ingest(settings.ingest, description)
        if settings.trace_endpoint is not None:
            _import_early(("opentelemetry.propagate",))
    except Exception as e:
        # Task modules and configs are other people's code: anything may come.
        reason = str(e)
        if not isinstance(e, ConfigurationError):
            _LOG.exception("The nursery can't be set up.")
            reason = f"{type(e).__name__}: {e}"
        pipe.send(SetupFailed(reason=reason))
        return 2
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads > 1:
        # A lock that a thread holds at the fork stays locked in the child.
        _LOG.error("Some module has started %d threads on import; forks are not safe.", threads - 1)
    gc.collect()
    gc.freeze()
    pipe.send(NurseryReady(pid=os.getpid(), seconds=time.monotonic() - begin, pipelines=summaries))
    inherited = Inherited(settings.local_repos, Rehearsal(settings, pipelines, description))
    try:
        return _serve(pipe, settings, pipelines, description, inherited)
    finally:
        inherited.close()


def _hide(setup: NurserySetup, settings: Settings) -> None:
    """Keep this process, and so all children, from what is not theirs."""
    if setup.hidden is None:
        return
    try:
        landlock.hide(tuple(map(Path, setup.hidden)))
    except OSError as e:
        if settings.landlock == "require":
            raise ConfigurationError(
                f"landlock is 'require', and files can't be hidden from tasks: {e}."
            ) from e
        _LOG.warning(
            "Tasks can read configuration and credentials of ppd's user: %s. See docs/security.md.", e
        )


def _import_early(modules: Iterable[str]) -> None:
    """Import what children will use; what this version has not, they do without."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as e:
            _LOG.info("Not imported before the fork: %s", e)


def _prepare_s3(settings: Settings) -> None:
    """Read what S3 clients are made of; the clients themselves are born in the children."""
    from .. import s3

    _import_early(("ppd.workers.s3_object",))
    try:
        s3.warm(settings.s3_endpoint)
    except Exception:
        # Children would be slower; what is wrong they will meet and tell.
        _LOG.exception("S3 clients can't be prepared before the fork.")


def _import_formatter(description: InstrumentDescription) -> None:
    name = description.raw_formatter
    try:
        importlib.import_module(name.rpartition(".")[0])
    except ImportError as e:
        raise ConfigurationError(
            f"Raws of {description.name} are read by {name}, which is not installed here: {e}."
        ) from e


def _first_message(pipe: _Pipe) -> NurserySetup | None:
    while True:
        messages = pipe.receive()
        if messages is None:
            return None
        for message in messages:
            if isinstance(message, NurserySetup):
                return message


def _build(settings: Settings) -> tuple[dict[str, Pipeline], tuple[PipelineSummary, ...]]:
    pipelines: dict[str, Pipeline] = {}
    summaries = []
    for path in dict.fromkeys(
        [*all_pipelines(settings.preprocessing_pipelines), *all_pipelines(settings.main_pipelines)]
    ):
        pipeline = load_pipeline(path, settings)
        # Building the graph imports the task modules.
        summaries.append(summarize(path, pipeline.to_graph()))
        pipelines[path] = pipeline
    return pipelines, tuple(summaries)


def _serve(
    pipe: _Pipe,
    settings: Settings,
    pipelines: Mapping[str, Pipeline],
    description: InstrumentDescription,
    inherited: Inherited,
) -> int:
    children: dict[int, DetectorKey] = {}
    supervisor = os.getppid()
    retiring = False
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    stopping = False
    stop_at = 0.0
    signal.signal(signal.SIGTERM, lambda *_: None)
    while True:
        # What is to be read is read piece by piece, when nobody waits.
        ready, _, _ = select.select([pipe.read_fd, wake_read], [], [], inherited.pause)
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                # A SIGTERM ends the nursery as a closed pipe does.
                stopping |= signal.SIGTERM in os.read(wake_read, 4096)
        _reap(pipe, children)
        if pipe.read_fd in ready and not stopping:
            messages = pipe.receive()
            if messages is None:
                stopping = True
            for message in messages or ():
                if isinstance(message, ForkRequest) and not stopping:
                    here("nursery.fork-request-read")
                    pid = _fork(
                        message, settings, pipelines, description, inherited, pipe, (wake_read, wake_write)
                    )
                    children[pid] = message.job.key
                    here("nursery.forked")
                    pipe.send(Forked(key=message.job.key, pid=pid))
                    here("nursery.fork-said")
                elif isinstance(message, PrepareNursery):
                    inherited.begin(message)
                elif isinstance(message, Retire):
                    retiring = True
                elif isinstance(message, ShutDown):
                    stopping = True
        elif inherited.busy and not stopping:
            report = inherited.step()
            if report is not None:
                here("nursery.inputs-held")
                pipe.send(report)
        if retiring and not children:
            return 0
        if stopping:
            if not stop_at:
                stop_at = time.monotonic() + _SHUTDOWN_GRACE
                if os.getppid() != supervisor:
                    _step_aside(children)
                _signal_all(children, signal.SIGTERM)
            elif time.monotonic() > stop_at:
                _signal_all(children, signal.SIGKILL)
            if not children:
                return 0
            time.sleep(0.05)


def _step_aside(children: Iterable[int]) -> None:
    """Leave the processors to the next supervisor: all children end at once, and nobody can wait for it."""
    for pid in (0, *children):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _LAST_PRIORITY)


def _fork(
    request: ForkRequest,
    settings: Settings,
    pipelines: Mapping[str, Pipeline],
    description: InstrumentDescription,
    inherited: Inherited,
    pipe: _Pipe,
    wake: tuple[int, int],
) -> int:
    begin = time.time()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()  # or each child would say it again
    pid = fork_apart()
    if pid:
        return pid
    code = 70
    try:
        for descriptor in (pipe.read_fd, pipe._write_fd, *wake):
            os.close(descriptor)
        code = run_child(request.job, settings, pipelines, description, inherited, begin)
    except BaseException:
        with contextlib.suppress(BaseException):
            _LOG.exception("The child failed outside its own error handling.")
    finally:
        try:
            # A task may have closed them, or the disk may be full.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
        finally:
            # No exit handlers of the nursery's modules, no second reaping.
            os._exit(code)


def _reap(pipe: _Pipe, children: dict[int, DetectorKey]) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            key = children.pop(pid)
            here("nursery.child-reaped")
            with contextlib.suppress(BrokenPipeError):
                pipe.send(Exited(key=key, pid=pid, code=os.waitstatus_to_exitcode(status)))
            here("nursery.exit-said")


def _signal_all(children: Mapping[int, DetectorKey], signum: int) -> None:
    for pid in children:
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:  # not settled yet, or just gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)


if __name__ == "__main__":
    sys.exit(main())
