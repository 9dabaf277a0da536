"""What makes a process of its own of a child, and undoes what a task has done to it.

Tasks are other people's code.  What they change in their process is put back
when their pipeline has ended, so that the rest of the child's life is as
planned; what they leave outside of it is the supervisor's to remove, and here
it is made findable.
"""

from __future__ import annotations

__all__ = ["Terminated", "contained", "leave_folder", "leave_if_copied", "settle_process", "uninterrupted"]

import contextlib
import ctypes
import faulthandler
import fcntl
import io
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from ..messages import CHILD_VARIABLE, MARK_BYTES, Job
from .phases import ignore_cuts
from .segments import record_segments
from .tracing import join_trace

_LOG = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_NICE = 10
_PR_SET_CHILD_SUBREAPER = 36
# Beyond the numbers of which a task might think that they are the next ones.
_HIGH_DESCRIPTOR = 64
_COPY_EXIT_CODE = 71
_FOLDERS = ("tmp", "work")
_holding = False
_held_back = False
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Terminated(BaseException):
    """Raised in the child's main thread by SIGTERM."""


def settle_process(job: Job) -> TextIO:
    """Make a process of its own of what the fork left.

    Parameters
    ----------
    job : `ppd.messages.Job`
        The detector-visit.

    Returns
    -------
    log : file-like
        The child's log, by a descriptor that is not standard error: a task
        may close that, and the next file that is opened would get the log.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # If the nursery dies, nobody would reap or feed this child.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # What a task's processes leave comes to this child while it lives, and is
    # of the supervisor's concern only then.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Supervisor, nursery and exporter come first when processors are short: they need little, and all
    # children wait for them.
    os.nice(_NICE)
    # Signals to the group reach all that a task has started, and not the nursery.
    os.setsid()
    _mark(libc, job.mark)
    log = _open_log(Path(job.log_file))
    _join(job.cgroup)
    for name in _FOLDERS:
        (job.own_folder / name).mkdir(parents=True, mode=0o700, exist_ok=True)
    tempfile.tempdir = str(job.own_folder / "tmp")
    os.environ.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), tempfile.tempdir))
    os.chdir(job.own_folder / "work")
    join_trace(job.traceparent)
    record_segments(job.own_folder / "segments")
    # A core may be larger than the disk, and there may be one per detector.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_cuts()
    return log


def leave_folder(job: Job) -> None:
    """Remove what tasks have left in the child's own folder; the supervisor removes the rest.

    Parameters
    ----------
    job : `ppd.messages.Job`
        The detector-visit.
    """
    os.chdir("/")
    for name in _FOLDERS:
        shutil.rmtree(job.own_folder / name, ignore_errors=True)


@contextlib.contextmanager
def contained(memory: int | None = None) -> Iterator[None]:
    """Undo at the end of a ``with`` block what was done to the process in it.

    Parameters
    ----------
    memory : `int`, optional
        Bytes that may be allocated in the block; more is a `MemoryError`.

    Notes
    -----
    Working directory, environment, umask, signals, timers, standard output
    and error, logging and the place of temporary files are as before
    afterwards.  A copy of the process that was forked in the block ends with
    it.
    """
    pid = os.getpid()
    ground = _Ground()
    try:
        with _limited(memory):
            yield
    finally:
        leave_if_copied(pid)
        ground.restore()


def leave_if_copied(pid: int) -> None:
    """End this process if it is not the one with this ID: a task has forked, and its copy came back.

    Parameters
    ----------
    pid : `int`
        Process ID of the child.
    """
    if os.getpid() != pid:
        with contextlib.suppress(Exception):
            _LOG.error("A copy of process %d, forked by a task, has returned from it; it ends.", pid)
        os._exit(_COPY_EXIT_CODE)


class _Ground:
    """The state of this process that tasks may change and should not."""

    def __init__(self) -> None:
        self.cwd = Path.cwd()
        self.environment = dict(os.environ)
        self.umask = os.umask(0o077)
        os.umask(self.umask)
        self.handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.temporary = tempfile.tempdir
        self.streams = (sys.stdout, sys.stderr)
        self.output = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR)
        self.disabled = logging.root.manager.disable
        self.level = logging.root.level
        self.loggers = logging.root.handlers[:]

    def restore(self) -> None:
        """Put everything back; each for itself, for any may fail."""
        for step in (
            self._restore_signals,
            self._restore_output,
            self._restore_logging,
            self._restore_environment,
            lambda: os.chdir(self.cwd),
            lambda: os.umask(self.umask),
        ):
            try:
                step()
            except Exception as e:
                _LOG.error("What a task has changed can't be put back: %s: %s", type(e).__name__, e)

    def _restore_signals(self) -> None:
        for timer in _TIMERS:
            signal.setitimer(timer, 0.0)
        signal.set_wakeup_fd(-1)
        for number, handler in self.handlers.items():
            # Without a handler in Python, nobody could have been put in its place.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def _restore_output(self) -> None:
        for stream in {sys.stdout, sys.stderr, *self.streams}:
            with contextlib.suppress(Exception):
                stream.flush()
        try:
            for standard in (1, 2):
                os.dup2(self.output, standard)
        finally:
            with contextlib.suppress(OSError):
                os.close(self.output)
        sys.stdout, sys.stderr = (
            _open_text(number) if stream.closed else stream for number, stream in enumerate(self.streams, 1)
        )

    def _restore_logging(self) -> None:
        logging.disable(self.disabled)
        logging.root.setLevel(self.level)
        logging.root.handlers[:] = self.loggers

    def _restore_environment(self) -> None:
        tempfile.tempdir = self.temporary
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextlib.contextmanager
def _limited(memory: int | None) -> Iterator[None]:
    """Limit private memory to what there is and some more.

    Private and writable is what tasks allocate (``RLIMIT_DATA``); the whole
    address space would count the libraries and inputs that are mapped too.
    """
    if memory is None:
        yield
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _private_bytes() + memory
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        # What the task holds still must not keep the child from reporting it.
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _mark(libc: Any, mark: str) -> None:
    """Write a mark where others read this process's environment, and its descendants'.

    ``/proc/PID/environ`` is the memory that the nursery was started with: a
    variable that is set later does not come there, a changed byte does.
    """
    libc.getenv.restype = ctypes.c_void_p
    address = libc.getenv(CHILD_VARIABLE.encode())
    data = mark.encode()[:MARK_BYTES]
    if address and len(ctypes.string_at(address)) == MARK_BYTES:
        ctypes.memmove(address, data.ljust(MARK_BYTES, b"\0"), MARK_BYTES)
    os.environ[CHILD_VARIABLE] = os.fsdecode(data)


def _open_log(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    own = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    sys.stdout, sys.stderr = _open_text(1), _open_text(2)
    faulthandler.enable(own)
    return _open_text(own)


def _open_text(descriptor: int) -> TextIO:
    """Open for lines: what a process said before it was killed should be in its log."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _join(cgroup: str | None) -> None:
    if cgroup is not None:
        try:
            (Path(cgroup) / "cgroup.procs").write_text("0")
        except OSError as e:
            print(f"This child has no cgroup of its own: {e}", file=sys.stderr)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGTERM back within a ``with`` block.

    If the block succeeds, what it did counts, and the child ends soon anyway;
    if it raises, `Terminated` takes the place of what it raised.  A signal
    mask would not do: the child's other thread would take the signal.
    """
    global _holding, _held_back
    _holding, _held_back = True, False
    try:
        yield
    except Exception:
        _holding = False
        if _held_back:
            raise Terminated from None
        raise
    finally:
        _holding = False


def _terminate(signum: int, frame: FrameType | None) -> None:
    global _held_back
    if _holding:
        _held_back = True
        return
    raise Terminated
