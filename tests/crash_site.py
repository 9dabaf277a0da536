"""A small site whose ppd can be made to die at named places, and what must be true of it ever after."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq
from crash_evidence import FORGED, End, Evidence, Visit
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.images import Image
from observatory import TESTS, Ppd, wait_for
from redis_support import RedisServer

from bench.demo_visit import FILTER, DemoVisit
from bench.soak_raws import plan_raw
from bench.soak_site import SIDE
from ppd.checksums import checksum_of
from ppd.crash_points import CRASH_POINTS, FOLDER_VARIABLE, HIT_FOLDER
from ppd.demo.camera import INSTRUMENT, focal_plane
from ppd.demo.central import build_apdb
from ppd.demo.democam import DemoCam
from ppd.deployment import day_obs
from ppd.messages import ControlReply, ControlRequest, decode, encode

DETECTORS = 9
RETRIES = 2
STREAM = "visits"

_PIPELINES = TESTS.parent / "bench" / "pipelines"
_CALIB = f"{INSTRUMENT}/calib/crash"
_TYPES = (
    ("raw", ("instrument", "exposure", "detector"), "ImageV2", False),
    ("bias", ("instrument", "detector"), "ImageV2", True),
    ("flat", ("instrument", "detector", "physical_filter"), "StructuredDataDict", True),
)
_END_SECONDS = 100.0


class _Survey:
    """Stands for an observatory: its central repo is made, not copied."""

    def copy_central(self, to: Path) -> Path:
        """Make a central repo with biases and flats."""
        rng = np.random.default_rng(1)
        with Butler.from_config(Butler.makeRepo(str(to)), writeable=True) as butler:
            DemoCam().register(butler.registry)
            for name, dimensions, storage_class, calib in _TYPES:
                butler.registry.registerDatasetType(
                    DatasetType(
                        name, dimensions, storage_class, universe=butler.dimensions, isCalibration=calib
                    )
                )
            run = f"{_CALIB}/run"
            butler.collections.register(run)
            butler.collections.register(f"{INSTRUMENT}/raw/all")
            butler.collections.register(_CALIB, CollectionType.CALIBRATION)
            refs = []
            with butler.transaction():
                for outline in focal_plane().detectors:
                    data_id = {"instrument": INSTRUMENT, "detector": outline.id}
                    bias = Image(np.round(rng.normal(100.0, 2.0, (SIDE, SIDE))).astype(np.float32))
                    refs.append(butler.put(bias, "bias", data_id, run=run))
                    refs.append(
                        butler.put({"response": 1.0}, "flat", data_id, physical_filter=FILTER, run=run)
                    )
            butler.registry.certify(_CALIB, refs, Timespan(None, None))
            butler.collections.register(f"{INSTRUMENT}/defaults", CollectionType.CHAINED)
            butler.collections.redefine_chain(f"{INSTRUMENT}/defaults", [_CALIB])
        return to


class CrashSite(Ppd):
    """A ppd with an APDB that dies where it is told to.

    Parameters
    ----------
    folder : `pathlib.Path`
        An empty folder.
    """

    def __init__(self, folder: Path):
        self.crash_folder = folder / "crash"
        (self.crash_folder / HIT_FOLDER).mkdir(parents=True)
        os.environ[FOLDER_VARIABLE] = str(self.crash_folder)  # for what is started from here
        self.redis = RedisServer(folder)
        super().__init__(
            _Survey(),  # type: ignore[arg-type]
            folder,
            main=(str(_PIPELINES / "Soak.yaml"),),
            preprocessing_pipelines=[{"pipelines": [str(_PIPELINES / "SoakPreprocess.yaml")]}],
            apdb_config=str(build_apdb(folder)),
            skymap=None,
            slots=2 * DETECTORS,
            running=2,
            retries=RETRIES,
            # Transfers are for visits alone, and hand-overs can be seen in the spool.
            warm_ahead=False,
            export_age=0.4,
            image_timeout=60.0,
            raw_settle=0.2,
            heartbeat_interval=0.5,
            heartbeat_timeout=20.0,
            kill_grace=2.0,
            redis_url=self.redis.url,
            redis_stream=STREAM,
        )
        self.redis.start()
        self.visits: list[Visit] = []
        self.helpers_dead = 0
        """How often this supervisor's nursery or exporter has died."""
        self.evidence = Evidence(self.settings, folder / "apdb.db")
        self._numbers = itertools.count()
        self._rng = np.random.default_rng(7)
        with Butler.from_config(str(self.central), writeable=False) as butler:
            self._biases = {
                d: butler.get("bias", instrument=INSTRUMENT, detector=d, collections=_CALIB).array
                for d in range(DETECTORS)
            }

    def close(self) -> None:
        super().close()
        self.redis.close()
        self.evidence.close()
        os.environ.pop(FOLDER_VARIABLE, None)

    def start(self) -> None:
        """Start ppd; what has died in its last life is forgiven."""
        self.helpers_dead = 0
        super().start()

    def begin_anew(self) -> None:
        """Stop and start, where the next helper would be started late because others have died."""
        if self.helpers_dead > 1:
            assert self.stop() == 0
            self.start()

    # Death

    def arm(self, point: str, *words: str) -> None:
        """Let who comes to a place die there; words say of what it must be."""
        assert point in CRASH_POINTS
        temporary = self.crash_folder / f".{point}"
        temporary.write_text(" ".join(words))
        temporary.rename(self.crash_folder / point)

    def await_hits(self, points: Iterable[str], timeout: float = _END_SECONDS) -> None:
        """Wait until each of some places has had its dead, and see that they are dead."""
        for point in points:
            file = wait_for(lambda p=point: self._hit(p), timeout, f"{point} to be reached; log: {self.log}")
            pid = int(file.name.rpartition("-")[2])
            if self.process is not None and pid == self.process.pid:
                assert self.process.wait(10.0) == -9
            wait_for(lambda p=pid: not psutil.pid_exists(p), 20.0, f"process {pid} to be gone")
            file.unlink()
            self.helpers_dead += CRASH_POINTS[point].process in ("nursery", "exporter")

    def _hit(self, point: str) -> Path | None:
        found = list((self.crash_folder / HIT_FOLDER).glob(f"{point}-*"))
        assert len(found) < 2, found
        return found[0] if found else None

    def supervisor_dies(self, point: str, timeout: float = _END_SECONDS) -> None:
        """Wait until the supervisor has died at a place."""
        assert self.process is not None
        self.process.wait(timeout)
        self.await_hits([point], 1.0)

    def die_while_starting(self, point: str) -> None:
        """Start ppd, which is to die at a place before it answers."""
        self.arm(point)
        with contextlib.suppress(AssertionError):
            self.start()
        self.supervisor_dies(point)

    def disarm(self) -> list[str]:
        """Take away what nobody came to; return what that was."""
        left = [p for p in self.crash_folder.iterdir() if p.is_file()]
        for path in left:
            path.unlink()
        return sorted(p.name for p in left)

    # Visits

    def plan(self, detectors: Iterable[int]) -> Visit:
        """Make up a visit."""
        number, day = next(self._numbers), day_obs(time.time())
        ra, dec, rotation = (float(self._rng.uniform(*r)) for r in ((0, 360), (-70, 10), (0, 360)))
        plan = DemoVisit(number, f"crash-{number:04d}", day * 100_000 + number + 1, ra, dec, rotation)
        return Visit(plan, {d: plan_raw(plan, d, self._rng, self._biases[d], None) for d in detectors})

    def announce(self, visit: Visit) -> ControlReply | None:
        """Announce a visit; `None`: ppd has died instead of answering."""
        assert self.process is not None
        if visit not in self.visits:
            self.visits.append(visit)
        replies = []
        with zmq.Context() as context:
            for message in _messages(visit):
                with context.socket(zmq.DEALER) as socket:
                    socket.setsockopt(zmq.LINGER, 0)
                    socket.connect(f"ipc://{self.settings.socket_dir / 'control.ipc'}")
                    socket.send(encode(ControlRequest(command="submit", visit=message)))
                    replies.append(self._await_reply(socket))
        return None if None in replies else replies[-1]

    def _await_reply(self, socket: Any) -> Any:
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            if socket.poll(20):
                return decode(socket.recv())
            if self.process is not None and self.process.poll() is not None:
                return decode(socket.recv()) if socket.poll(200) else None
        raise AssertionError(f"ppd lives and does not answer; its log is {self.log}")

    def announce_by_stream(self, visit: Visit) -> None:
        """Put a visit's announcements into the stream, all at once."""
        self.visits.append(visit)
        message = visit.plan.message()
        self.redis.add_all(STREAM, [{**message, "detector": d} for d in visit.raws])

    def deliver(self, visit: Visit) -> None:
        """Let a visit's raws land."""
        for detector, raw in visit.raws.items():
            (delivery,) = raw.deliveries
            self.drop(delivery.data, detector, visit.group, visit.plan.exposure)

    def play(self, visit: Visit) -> ControlReply | None:
        """Announce a visit and let its raws land."""
        reply = self.announce(visit)
        self.deliver(visit)
        return reply

    def ready(self) -> list[Path]:
        """Hand-overs that wait for their export."""
        return sorted((self.settings.spool_dir / "ready").iterdir())

    def forge(self, visit: Visit) -> None:
        """Hand over again what a visit has handed over (and `SpoolWatch.keep` has), as other datasets."""
        assert self.evidence.watch.keep is not None
        forged: list[Path] = []
        for name in [h.entry for h in self.evidence.watch.found if h.key[0] == visit.group]:
            kept = self.evidence.watch.keep / name
            text = (kept / "manifest.json").read_text()
            for dataset in json.loads(text)["datasets"]:
                for i in dataset["refs"]:
                    text = text.replace(i, str(uuid.uuid4()))
            (kept / "manifest.json").write_text(text)
            (kept / "manifest.sum").write_text(checksum_of(text.encode()) + "\n")
            self.evidence.dead_letters.add(FORGED + name)
            forged.append(kept)
        # All at once, for one batch.
        for kept in forged:
            kept.rename(self.settings.spool_dir / "ready" / (FORGED + kept.name))

    def await_end(self, visit: Visit, timeout: float = _END_SECONDS) -> dict[int, End]:
        """Wait until a visit is over, and see that nothing of it is lost or there twice."""

        def over() -> bool:
            ends = self.evidence.ends(visit)
            return ends.keys() == visit.raws.keys() and all(e.over for e in ends.values())

        wait_for(over, timeout, f"{visit.group} to be over: {self.evidence.ends(visit)}; log: {self.log}")
        faults = self.evidence.faults(visit)
        assert not faults, faults
        return self.evidence.ends(visit)

    def left_in_spool(self) -> list[str]:
        """What is in any folder of the spool."""
        return sorted(f"{p.parent.name}/{p.name}" for p in self.settings.spool_dir.glob("*/*"))


def _messages(visit: Visit) -> list[dict[str, Any]]:
    """One message for the whole focal plane, or one for each detector."""
    message = visit.plan.message()
    if len(visit.raws) == DETECTORS:
        return [message]
    return [{**message, "detector": d} for d in visit.raws]
