"""A small site whose ppd can be made to die at named places, and what must be true of it ever after."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DatasetType, Timespan
from lsst.images import Image
from observatory import TESTS, Ppd, wait_for

from bench.demo_visit import FILTER, DemoVisit
from bench.soak_raws import RawPlan, plan_raw
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

_PIPELINES = TESTS.parent / "bench" / "pipelines"
_CALIB = f"{INSTRUMENT}/calib/crash"
_TYPES = (
    ("raw", ("instrument", "exposure", "detector"), "ImageV2", False),
    ("bias", ("instrument", "detector"), "ImageV2", True),
    ("flat", ("instrument", "detector", "physical_filter"), "StructuredDataDict", True),
)
_OF_GROUP = ("regionTimeInfo", "soak_predicted")
_OF_EXPOSURE = ("soak_image",)
_OF_VISIT = ("soak_sources", "soak_summary")
_REQUIRED = frozenset((*_OF_GROUP, *_OF_EXPOSURE, *_OF_VISIT))
_FORGED = "forged-"
_LOOK_SECONDS = 0.01
_END_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Visit:
    """A visit that is played."""

    plan: DemoVisit
    raws: dict[int, RawPlan]
    """By detector."""

    @property
    def group(self) -> str:
        return self.plan.group

    def subject(self, detector: int) -> str:
        """What the child of a detector is about."""
        return f"{self.group}/{detector}"


@dataclasses.dataclass(frozen=True)
class End:
    """What the journal says of a detector-visit."""

    state: str
    attempt: int
    reason: str

    @property
    def over(self) -> bool:
        return self.state in ("exported", "failed")


@dataclasses.dataclass(frozen=True)
class HandedOver:
    """What was in the spool: each file's checksum by dataset."""

    entry: str
    key: tuple[str, int]
    checksums: dict[str, str]
    claimed: dict[str, str]
    """What the manifest says they are."""


class SpoolWatch:
    """Looks at each hand-over while it is in the spool."""

    def __init__(self, spool: Path):
        self._ready = spool / "ready"
        self._seen: set[tuple[str, int]] = set()
        self._stop = threading.Event()
        self.keep: Path | None = None
        """Folder for copies of hand-overs, if they are wanted."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.found: list[HandedOver] = []
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                for entry in self._ready.iterdir():
                    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                        self._look(entry)

    def _look(self, entry: Path) -> None:
        file = entry / "manifest.json"
        who = (entry.name, file.stat().st_ino)
        if who in self._seen or entry.name.startswith(_FORGED):
            return
        manifest = json.loads(file.read_text())
        sums, claimed = {}, {}
        for dataset in manifest["datasets"]:
            for i in dataset["refs"]:
                sums[i] = _checksum(entry / dataset["path"])
                if dataset["path"] in manifest.get("checksums", {}):
                    claimed[i] = manifest["checksums"][dataset["path"]]
        if self.keep is not None:
            shutil.copytree(entry, self.keep / entry.name, dirs_exist_ok=True)
        key = manifest["key"]
        self.found.append(HandedOver(entry.name, (key["group"], key["detector"]), sums, claimed))
        self._seen.add(who)


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
        )
        self.visits: list[Visit] = []
        self.dead_letters: set[str] = set()
        """Names of hand-overs that can't be exported."""
        self.watch = SpoolWatch(self.settings.spool_dir)
        self._numbers = itertools.count()
        self._rng = np.random.default_rng(7)
        with Butler.from_config(str(self.central), writeable=False) as butler:
            self._biases = {
                d: butler.get("bias", instrument=INSTRUMENT, detector=d, collections=_CALIB).array
                for d in range(DETECTORS)
            }
        self._reader: Butler | None = None

    def close(self) -> None:
        super().close()
        self.watch.close()
        os.environ.pop(FOLDER_VARIABLE, None)
        if self._reader is not None:
            self._reader.close()

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
        assert self.watch.keep is not None
        for name in [h.entry for h in self.watch.found if h.key[0] == visit.group]:
            kept = self.watch.keep / name
            text = (kept / "manifest.json").read_text()
            for dataset in json.loads(text)["datasets"]:
                for i in dataset["refs"]:
                    text = text.replace(i, str(uuid.uuid4()))
            (kept / "manifest.json").write_text(text)
            (kept / "manifest.sum").write_text(checksum_of(text.encode()) + "\n")
            self.dead_letters.add(_FORGED + name)
            kept.rename(self.settings.spool_dir / "ready" / (_FORGED + name))

    # What must be true

    def ends(self, visit: Visit) -> dict[int, End]:
        """What the journal says, by detector."""
        query = "SELECT detector, state, attempt, reason FROM detector_visit WHERE group_name=?"
        return {d: End(s, a, r or "") for d, s, a, r in self._journal(query, visit.group)}

    def await_end(self, visit: Visit, timeout: float = _END_SECONDS) -> dict[int, End]:
        """Wait until a visit is over, and see that nothing of it is lost or there twice."""

        def over() -> bool:
            ends = self.ends(visit)
            return ends.keys() == visit.raws.keys() and all(e.over for e in ends.values())

        wait_for(over, timeout, f"{visit.group} to be over: {self.ends(visit)}; log: {self.log}")
        faults = self.faults(visit)
        assert not faults, faults
        return self.ends(visit)

    def faults(self, visit: Visit) -> list[str]:
        """What is wrong with a visit that is over: journal, central and APDB must say the same."""
        faults = []
        ends = self.ends(visit)
        for detector, raw in visit.raws.items():
            who, end = visit.subject(detector), ends[detector]
            refs = self._central(visit, detector)
            outputs = self._handed_over((visit.group, detector))
            if any(o.entry in self.dead_letters for o in outputs):
                faults += [f"{who}: central has {r} of what was set aside" for r in refs]
                continue
            types = Counter(ref.datasetType.name for ref in refs)
            stores = self._stores(visit, detector)
            faults += [f"{who}: central has {n} of {t}" for t, n in types.items() if n > 1]
            faults += self._compare(who, refs, outputs)
            if len(stores) > 1 or sum(stores.values()) not in (0, raw.sources):
                faults.append(f"{who}: the APDB has {stores} of {raw.sources} sources")
            if end.state == "exported":
                if _REQUIRED - types.keys():
                    faults.append(f"{who}: central lacks {sorted(_REQUIRED - types.keys())}")
                if not stores:
                    faults.append(f"{who}: it is exported, and the APDB has nothing of it")
            elif stores and "soak_sources" not in types:
                faults.append(f"{who}: the APDB has it and central has only {sorted(types)}: {end}")
            for ref in refs:
                if ref.datasetType.name == "soak_summary":
                    summary = self._butler().get(ref)
                    if (summary["sources"], summary["flux"]) != (raw.sources, raw.flux):
                        faults.append(f"{who}: {summary} instead of {raw.sources} sources with {raw.flux}")
        return faults

    def _compare(self, who: str, refs: list[DatasetRef], outputs: list[HandedOver]) -> Iterator[str]:
        """Compare what central has with what was handed over, by UUID and checksum."""
        if len(outputs) > 1:
            yield f"{who}: was handed over {len(outputs)} times"
        handed = {i: s for output in outputs for i, s in output.checksums.items()}
        for output in outputs:
            if wrong := [i for i, s in output.claimed.items() if s != output.checksums[i]]:
                yield f"{who}: its manifest has other checksums for {wrong}"
        files = self._files()
        for ref in refs:
            if str(ref.id) not in handed:
                yield f"{who}: central has {ref}, which was not handed over"
        for i, checksum in handed.items():
            if i not in files:
                yield f"{who}: {i} was handed over, and central has it not"
            elif _checksum(self.central / files[i]) != checksum:
                yield f"{who}: {i} has other bytes in central"

    def _handed_over(self, key: tuple[str, int]) -> list[HandedOver]:
        return [h for h in list(self.watch.found) if h.key == key]

    def _butler(self) -> Butler:
        if self._reader is None:
            self._reader = Butler.from_config(str(self.central), writeable=False)
        return self._reader

    def _files(self) -> dict[str, str]:
        """Path of each dataset that central has, by UUID."""
        path = self.central / "gen3.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as database:
            rows = database.execute("SELECT dataset_id, path FROM file_datastore_records").fetchall()
        assert len({i for i, _ in rows}) == len({p for _, p in rows}) == len(rows)
        return {str(uuid.UUID(i)): p for i, p in rows}

    def orphans(self) -> set[str]:
        """Files in central's runs that no dataset has."""
        runs = self.central / INSTRUMENT / "prompt"
        on_disk = {str(p.relative_to(self.central)) for p in runs.rglob("*") if p.is_file()}
        return on_disk - set(self._files().values())

    def _central(self, visit: Visit, detector: int) -> list[DatasetRef]:
        """Find what central has of the required types."""
        butler = self._butler()
        butler.registry.refresh()
        runs = sorted(
            butler.collections.query(f"{INSTRUMENT}/prompt/*", collection_types={CollectionType.RUN})
        )
        found: list[DatasetRef] = []
        base = {"instrument": INSTRUMENT, "detector": detector}
        for names, data_id in (
            (_OF_GROUP, {**base, "group": visit.group}),
            (_OF_EXPOSURE, {**base, "exposure": visit.plan.exposure}),
            (_OF_VISIT, {**base, "visit": visit.plan.exposure}),
        ):
            for name in names:
                # Before the first export of all, central does not know the type or the data ID.
                with contextlib.suppress(LookupError):
                    found += butler.query_datasets(
                        name, collections=runs, find_first=False, data_id=data_id, explain=False
                    )
        return found

    def _stores(self, visit: Visit, detector: int) -> dict[int, int]:
        """Number of sources in the APDB by process that stored them."""
        query = (
            'SELECT "diaSourceId" >> 12, count(*) FROM "DiaSource" WHERE visit=? AND detector=? GROUP BY 1'
        )
        with contextlib.closing(sqlite3.connect(self.folder / "apdb.db", timeout=30.0)) as apdb:
            return dict(apdb.execute(query, (visit.plan.exposure, detector)).fetchall())

    def _journal(self, query: str, *values: Any) -> list[Any]:
        path = self.settings.state_dir / "journal.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as journal:
            return journal.execute(query, values).fetchall()

    def strangers(self) -> set[tuple[str, int]]:
        """Detector-visits in the journal that nobody announced."""
        known = {(v.group, d) for v in self.visits for d in v.raws}
        return set(self._journal("SELECT group_name, detector FROM detector_visit")) - known

    def left_in_spool(self) -> list[str]:
        """What is in any folder of the spool."""
        return sorted(f"{p.parent.name}/{p.name}" for p in self.settings.spool_dir.glob("*/*"))


def _messages(visit: Visit) -> list[dict[str, Any]]:
    """One message for the whole focal plane, or one for each detector."""
    message = visit.plan.message()
    if len(visit.raws) == DETECTORS:
        return [message]
    return [{**message, "detector": d} for d in visit.raws]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
