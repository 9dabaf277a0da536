"""The demo observatory for tests, and a real ppd to run against it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import astropy.io.fits
import yaml
from lsst.daf.butler import Butler, DatasetRef

from ppd.config import Settings, load_settings
from ppd.control import ControlClient, NoSupervisorError
from ppd.demo.leftovers import count_leftovers
from ppd.demo.night import NightPlan
from ppd.demo.player import next_visit
from ppd.demo.skymap import SKYMAP
from ppd.deployment import chain_name, date_string, day_obs
from ppd.initializer import initialize

TESTS = Path(__file__).parent
PIPELINES = TESTS.parent / "ppd" / "demo" / "pipelines"
ISR = str(PIPELINES / "Isr.yaml")

_SLEEPY = """
description: Instrument signature removal and a pause, for tests that need time to do harm.
instrument: ppd.demo.democam.DemoCam
parameters: {{flags: "{flags}", seconds: {seconds}}}
tasks:
  isr: {{class: ppd.demo.tasks.isr.IsrTask}}
  sleep:
    class: sleepy_tasks.SleepTask
    config: {{flags: parameters.flags, seconds: parameters.seconds}}
"""


@dataclasses.dataclass(frozen=True)
class Observatory:
    """What was simulated once for all tests; nobody changes it."""

    root: Path
    plan: NightPlan

    def copy_central(self, to: Path) -> Path:
        """Copy the central repo: registry by bytes, files by hard link."""

        def copy(source: str, target: str) -> None:
            if source.endswith((".sqlite3", ".yaml")):
                shutil.copyfile(source, target)
            else:
                os.link(source, target)

        shutil.copytree(self.plan.central, to, copy_function=copy)
        return to

    def message(self, number: int = 0, **changes: Any) -> dict[str, Any]:
        """Make the nextVisit message of a planned visit, with some fields changed."""
        return {**next_visit(self.plan.visits[number], 0.0, duration=0.0), **changes}

    def raw(self, detector: int, number: int = 0, **cards: Any) -> bytes:
        """Return a planned visit's raw as bytes, with some header cards changed."""
        with astropy.io.fits.open(Path(self.plan.staged) / self.plan.visits[number].raws[detector]) as hdus:
            header = hdus[0].header
            for card, value in cards.items():
                header[card.replace("_", "-")] = value
            hdu = astropy.io.fits.PrimaryHDU(hdus[0].data, header)
            with tempfile.TemporaryFile() as stream:
                hdu.writeto(stream)
                stream.seek(0)
                return stream.read()


class Ppd:
    """A real ppd with its nursery, sockets and all.

    Parameters
    ----------
    observatory : `Observatory`
        Central repo (copied) and raws.
    folder : `pathlib.Path`
        Empty folder of its own.
    main : sequence of `str`, optional
        Main pipelines.
    cgroup : `pathlib.Path`, optional
        Control group to start it in.
    **changes
        Settings.
    """

    def __init__(
        self,
        observatory: Observatory,
        folder: Path,
        main: tuple[str, ...] = (ISR,),
        cgroup: Path | None = None,
        **changes: Any,
    ):
        self._cgroup = cgroup
        self.environ = _environment()
        self.observatory = observatory
        self.folder = folder
        self.central = observatory.copy_central(folder / "central")
        # The path of a socket may have 107 bytes, pytest's folders are deep.
        self._sockets = Path(tempfile.mkdtemp(prefix="ppd-test-"))
        self.raws = folder / "raws"
        self.raws.mkdir()
        config = {
            "instrument": "DemoCam",
            "skymap": SKYMAP,
            "central_repo": str(self.central),
            "main_pipelines": [{"pipelines": list(main)}],
            "state_dir": str(folder / "state"),
            "socket_dir": str(self._sockets / "s"),
            "raw_dirs": [str(self.raws)],
            "shm_min_free": "16 MiB",
            "spool_min_free": "1 MiB",
            "cache_bytes": "512 MiB",
            "image_timeout": 20.0,
            "repo_retry_delay": 1.0,
            "log_format": "text",
            # Each would want the same port.
            "http_listen": None,
            **changes,
        }
        self.config = folder / "ppd.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.settings: Settings = load_settings(self.config, {})
        self.log = folder / "ppd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = ControlClient(self.settings.socket_dir, timeout=5.0)

    # Commands

    def command(
        self, module: str, *arguments: str, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the three commands on this configuration to its end."""
        return subprocess.run(
            [sys.executable, "-m", f"ppd.cli.{module}", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environ,
        )

    def initialize(self) -> None:
        """Do what ppd-init does; here, where all is imported, unless its environment is another."""
        if self.environ == _environment():
            initialize(self.settings)
            return
        done = self.command("init")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start ppd and wait until it answers."""
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ppd.cli.daemon", "--config", str(self.config)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self.environ,
                preexec_fn=self._join,
            )
        wait_for(self._answers, 60.0, f"ppd to answer; its log is {self.log}")

    def _join(self) -> None:
        if self._cgroup is not None:
            (self._cgroup / "cgroup.procs").write_text("0")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End ppd with a signal and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(60.0)

    def close(self) -> None:
        """End what still runs and clean up."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10.0)
        self.client.close()
        shutil.rmtree(self._sockets, ignore_errors=True)

    # What happens

    def status(self) -> dict[str, Any]:
        """Ask for the status."""
        return self.client.status()

    def counts(self) -> dict[str, int]:
        """Ask for the counts."""
        return self.status()["counts"]

    def submit(self, number: int = 0, **changes: Any) -> Any:
        """Announce a visit of the plan, fields changed."""
        return self.client.submit(self.observatory.message(number, **changes))

    def drop(
        self, data: bytes, detector: int, group: str, exposure: int | None = None, name: str = "raw.fits"
    ) -> Path:
        """Let a raw land, by writing it elsewhere and renaming it; its path has the header's exposure."""
        if exposure is None:
            exposure = exposure_of(data)
        path = self.raws / "DemoCam" / str(detector) / group / "0" / str(exposure) / "demo-r" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.tmp")
        temporary.write_bytes(data)
        temporary.rename(path)
        return path

    def good_visit(self, group: str, detector: int, **changes: Any) -> None:
        """Announce a visit of one detector under a group of its own, and drop its raw."""
        reply = self.submit(groupId=group, detector=detector, **changes)
        assert reply.ok, reply.error
        self.drop(self.observatory.raw(detector, **identity(group)), detector, group)

    def states(self, group: str) -> dict[str, int]:
        """Number of a visit's detector-visits by state; empty: it is not known."""
        return next((v["states"] for v in self.status()["visits"] if v["group"] == group), {})

    def await_state(self, group: str, timeout: float = 60.0, **states: int) -> None:
        """Wait until a visit's detector-visits are in these states."""
        wait_for(lambda: self.states(group) == states, timeout, f"{group} to be {states}; log: {self.log}")

    def outputs(self, name: str) -> list[DatasetRef]:
        """Find the datasets of a type in today's chain of the central repo."""
        chain = chain_name("DemoCam", date_string(day_obs(time.time())))
        with Butler.from_config(str(self.central), writeable=False) as butler:
            return butler.query_datasets(name, collections=chain, explain=False, with_dimension_records=True)

    def groups(self, name: str = "post_isr_image") -> list[tuple[str, int]]:
        """Group and detector of each of the outputs of a type, sorted."""
        return sorted(
            (r.dataId.records["exposure"].group, int(r.dataId["detector"])) for r in self.outputs(name)
        )

    def leftovers(self) -> dict[str, int]:
        """Count what this ppd has left behind."""
        return count_leftovers(self.settings)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"ppd ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
        try:
            status = self.client.status(timeout=0.5)
        except NoSupervisorError:
            return False
        # Visits are accepted before, but most tests look at what follows.
        return not any(fault.startswith("nursery") for fault in status["faults"])


@contextlib.contextmanager
def running(
    observatory: Observatory, folder: Path, prepare: Callable[[Ppd], None] | None = None, **changes: Any
) -> Iterator[Ppd]:
    """Initialize and start a ppd; end it, and see that it leaves nothing behind."""
    ppd = Ppd(observatory, folder, **changes)
    try:
        if prepare is not None:
            prepare(ppd)
        ppd.initialize()
        ppd.start()
        yield ppd
        if ppd.process is not None and ppd.process.poll() is None:
            ppd.stop()
        assert not any(ppd.leftovers().values()), ppd.leftovers()
    finally:
        ppd.close()


def identity(group: str, exposure: int | None = None) -> dict[str, Any]:
    """Header cards that make a raw one of another group, with an exposure ID to match."""
    if exposure is None:
        exposure = 2_026_000_000_000 + sum(ord(c) * 31**i for i, c in enumerate(group)) % 1_000_000_000
    return {"GROUPID": group, "EXPID": exposure, "OBSID": f"DC_{exposure}"}


def write_sleepy(folder: Path, seconds: float) -> str:
    """Write a pipeline that sleeps in its second task; return its path.

    The task leaves a file named after its process in ``folder / "flags"``.
    """
    (folder / "flags").mkdir(parents=True, exist_ok=True)
    path = folder / "Sleepy.yaml"
    path.write_text(_SLEEPY.format(flags=folder / "flags", seconds=seconds))
    return str(path)


def sleepers(folder: Path) -> list[int]:
    """Process IDs of children that have begun to sleep."""
    return [int(p.name) for p in sorted((folder / "flags").iterdir(), key=lambda p: p.stat().st_mtime_ns)]


def exposure_of(data: bytes) -> int:
    """Read a raw's exposure ID; of what is no raw, any will do."""
    with contextlib.suppress(Exception), astropy.io.fits.open(io.BytesIO(data)) as hdus:
        return int(hdus[0].header["EXPID"])
    return 1


def wait_for(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Wait for a condition and return what it returned."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout:g} s in vain for {what}")


def error_of(status: dict[str, Any], kind: str) -> str:
    """Return the last error of a kind with what it is about."""
    found = [e for e in status["errors"] if e["kind"] == kind]
    assert found, json.dumps(status["errors"], indent=1)
    return f"{found[-1]['what']}: {found[-1]['message']}"


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
