"""A task that does what no task should, and one that looks whether anything of it is left."""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import lsst.pipe.base.connectionTypes as cT
from lsst.pex.config import Field
from lsst.pipe.base import (
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    RepeatableQuantumError,
    Struct,
)

_GROUP = ("instrument", "group", "detector")
_EXPOSURE = ("instrument", "exposure", "detector")


class RudeConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    """Connections of `RudeTask`."""

    image = cT.Input(doc="Image.", name="post_isr_image", storageClass="MaskedImageV2", dimensions=_EXPOSURE)
    ground = cT.Output(
        doc="State of the process.", name="ground", storageClass="StructuredDataDict", dimensions=_EXPOSURE
    )


class EarlyConnections(PipelineTaskConnections, dimensions=_GROUP):
    """Connections of `EarlyTask`."""

    info = cT.Input(
        doc="Where and when.", name="regionTimeInfo", storageClass="RegionTimeInfo", dimensions=_GROUP
    )
    early = cT.Output(
        doc="State of the process.", name="early", storageClass="StructuredDataDict", dimensions=_GROUP
    )


class RudeConfig(PipelineTaskConfig, pipelineConnections=RudeConnections):
    """Config of `RudeTask`."""

    folder = Field[str](doc="Has deeds by detector, and gets notes of what was done.", default="")


class EarlyConfig(PipelineTaskConfig, pipelineConnections=EarlyConnections):
    """Config of `EarlyTask`."""

    folder = Field[str](doc="As that of `RudeConfig`.", default="")


class RudeTask(PipelineTask):
    """Does what the folder has for its detector, once the image is there."""

    ConfigClass = RudeConfig
    _DefaultName = "rude"
    _when = "main"

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        butlerQC.get(inputRefs)
        ground = describe()
        detector = butlerQC.quantum.dataId["detector"]
        _do(Path(self.config.folder), self._when, int(detector))
        butlerQC.put(Struct(ground=ground, early=ground), outputRefs)


class EarlyTask(RudeTask):
    """The same before the image is there."""

    ConfigClass = EarlyConfig
    _DefaultName = "early"
    _when = "early"


def describe() -> dict[str, Any]:
    """Describe what tasks may change in their process."""
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "cwd": str(Path.cwd()),
        "umask": umask,
        "temporary": tempfile.gettempdir(),
        "environment": {k: v for k, v in os.environ.items() if k in ("RUDE", "TMPDIR", "PATH")},
        "handlers": [str(signal.getsignal(s)).partition(" at 0x")[0] for s in (15, 2, 14, 10)],
        "blocked": sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "output": [str(Path(f"/proc/self/fd/{n}").readlink()) for n in (1, 2)],
        "streams": [sys.stdout.fileno(), sys.stderr.fileno()],
        "level": logging.root.level,
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "group": os.getpgid(0) == os.getsid(0) == os.getpid(),
    }


def _do(folder: Path, when: str, detector: int) -> None:
    path = folder / f"{when}-{detector}"
    if path.exists():
        _Deeds(folder).do(path.read_text())


class _Deeds:
    """What can be done; each notes what a test has to look for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def do(self, name: str) -> None:
        self.note("child", os.getpid())
        deed: Callable[[], None] = getattr(self, name)
        deed()

    def note(self, kind: str, value: Any) -> None:
        with (self.folder / "notes").open("a") as stream:
            stream.write(json.dumps([kind, value]) + "\n")

    # What does not fail by itself

    def prints(self) -> None:
        print("said on standard output")
        print("said on standard error", file=sys.stderr)
        os.write(1, b"written to descriptor 1\n")
        subprocess.run(["echo", "echoed by a process"], check=True)

    def changes(self) -> None:
        os.chdir("/")
        os.umask(0o777)
        os.environ["RUDE"] = "yes"
        os.environ["TMPDIR"] = "/nowhere"
        del os.environ["PATH"]
        tempfile.tempdir = "/nowhere"
        for number in (15, 2, 14, 10):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.setitimer(signal.ITIMER_REAL, 100.0)
        logging.disable(logging.CRITICAL)
        logging.root.handlers.clear()
        logging.root.setLevel(logging.CRITICAL)
        sys.stdout.close()
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        os.close(1)
        os.close(2)
        (self.folder / "held").write_text("")
        self.held = (self.folder / "held").open()

    def closes(self) -> None:
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
        os.close(1)
        os.close(2)

    def leaks_threads(self) -> None:
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(3600.0,), daemon=False).start()

    def forks(self) -> None:
        """A process in the group, one in a session of its own, and one that hides as well as it can."""
        plain = subprocess.Popen(["sleep", "3601"])
        apart = subprocess.Popen(["sleep", "3602"], start_new_session=True)
        self.note("stray", plain.pid)
        self.note("stray", apart.pid)
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            pid = os.fork()
            if pid:
                os.write(write, str(pid).encode())
                os._exit(0)
            os.execve("/bin/sleep", ["sleep", "3603"], {})
        os.wait3(0)
        self.note("stray", int(os.read(read, 100)))

    def forks_itself(self) -> None:
        """A copy without exec, that ignores SIGTERM and leaves its session."""
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.setsid()
            time.sleep(3600.0)
            os._exit(0)
        self.note("stray", pid)

    def forks_itself_and_waits(self) -> None:
        self.forks_itself()
        time.sleep(3600.0)

    def returns_twice(self) -> None:
        self.note("stray", os.fork() or os.getpid())

    def leaves_files(self) -> None:
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        for path in (Path(name), Path(tempfile.mkdtemp()), Path("relative").absolute()):
            path.touch()
            self.note("file", str(path))
        shell = subprocess.run(["mktemp"], check=True, capture_output=True, text=True)
        self.note("file", shell.stdout.strip())

    def leaves_segments(self) -> None:
        for track in (True, False):
            segment = SharedMemory(create=True, size=1 << 16, track=track)
            segment.buf[0] = 1
            self.note("file", f"/dev/shm/{segment.name}")
        code = (
            "import sys; from multiprocessing import get_context; from rude_tasks import make_segment;"
            "p = get_context('spawn').Process(target=make_segment, args=(sys.argv[1],)); p.start(); p.join()"
        )
        subprocess.run([sys.executable, "-c", code, str(self.folder)], check=True)

    def leaves_segments_and_dies(self) -> None:
        self.leaves_segments()
        os.kill(os.getpid(), signal.SIGKILL)

    # What ends it

    def exits(self) -> None:
        sys.exit(3)

    def exits_with_a_message(self) -> None:
        sys.exit("I have had enough")

    def exits_at_once(self) -> None:
        print("last words", end="")
        os._exit(0)

    def interrupts(self) -> None:
        raise KeyboardInterrupt

    def stops_a_generator(self) -> None:
        raise GeneratorExit

    def says_never_again(self) -> None:
        raise RepeatableQuantumError("it would be the same again")

    def runs_out(self) -> None:
        raise MemoryError

    def crashes(self) -> None:
        ctypes.string_at(0)

    def kills_its_group(self) -> None:
        os.kill(0, signal.SIGKILL)

    def closes_everything(self) -> None:
        os.closerange(3, 256)
        time.sleep(60.0)

    def allocates(self) -> None:
        held = []
        while True:
            held.append(bytearray(1 << 20))

    def allocates_in_processes(self) -> None:
        """Each of them within the limit."""
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                _fill(60 << 20)
                time.sleep(3600.0)
            self.note("stray", pid)
        time.sleep(3600.0)

    def ignores_sigterm(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stray = subprocess.Popen(["sleep", "3604"], start_new_session=True)
        self.note("stray", stray.pid)
        while True:
            time.sleep(1.0)


def make_segment(folder: str) -> None:
    """Make a segment in a process that was started afresh."""
    segment = SharedMemory(create=True, size=1 << 16)
    _Deeds(Path(folder)).note("file", f"/dev/shm/{segment.name}")
    # It ends as if it had crashed.
    os._exit(1)


def _fill(size: int) -> None:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, mmap.PAGESIZE):
        memory[start] = 1
    globals()["_held"] = memory
