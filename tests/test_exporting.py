"""Exports: in batches, each dataset once, and what can't be exported keeps nobody else."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy.exc
from lsst.daf.butler import Butler, DatasetType

from bench.hand_overs import RUN, TYPES, make_central, make_hand_over
from ppd.config import Settings
from ppd.supervisor.export_batch import BatchWriter
from ppd.supervisor.exporting import Exporting, Outcome
from ppd.supervisor.spool import HandOver, make_folders, read_manifest, ready_entries

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_central(tmp_path_factory.mktemp("empty") / "central")


class Bench:
    """A central repo, a spool, and what exports from the one to the other."""

    def __init__(self, folder: Path, empty: Path, **changes: Any):
        shutil.copytree(empty, folder / "central")
        self.folder = folder
        self.spool = folder / "spool"
        make_folders(self.spool)
        self.settings = Settings.model_validate(
            {
                "instrument": "DemoCam",
                "central_repo": str(folder / "central"),
                "main_pipelines": [{"pipelines": ["x.yaml"]}],
                "state_dir": str(folder),
                "spool_dir": str(self.spool),
                "export_age": 0.0,
                **changes,
            }
        )
        self.calls: list[int] = []
        self.answers = True
        self.fault: Callable[[Sequence[HandOver]], Exception | None] = lambda batch: None
        self.butler = Butler.from_config(str(folder / "central"), writeable=True)
        self.begin()

    def begin(self) -> None:
        """Begin anew, as an exporter that was started again."""
        self.writer = BatchWriter(self.butler)
        self.exporting = Exporting(self.settings, self._write, lambda: self.answers)

    def _write(self, batch: Sequence[HandOver]) -> None:
        self.calls.append(len(batch))
        fault = self.fault(batch)
        if fault is not None:
            raise fault
        self.writer.write(batch)

    def make(self, number: int, detector: int, **changes: Any) -> Path:
        return make_hand_over(self.spool, number, detector, self.butler.dimensions, **changes)

    def turn(self) -> Outcome:
        """One turn of the exporter, with a supervisor that is told and lets go at once."""
        outcome = self.exporting.export(self.exporting.due(self.exporting.look()))
        self.exporting.report(outcome, 0.0)
        return outcome

    def let_go(self, outcome: Outcome) -> None:
        self.exporting.discard([e.entry for e in outcome.exported])

    def ids(self) -> list[str]:
        """UUIDs of all that central has, sorted."""
        return sorted(
            str(ref.id)
            for name in TYPES
            for ref in self.butler.query_datasets(name, "*", find_first=False, explain=False, limit=None)
        )

    def made(self) -> list[str]:
        """UUIDs of all that is in the spool, sorted."""
        return sorted(
            i for e in ready_entries(self.spool) for d in read_manifest(e).datasets for i in d["refs"]
        )

    def letters(self) -> set[str]:
        return {path.name for path in (self.spool / "dead-letters").iterdir()}


@pytest.fixture
def bench(tmp_path: Path, empty: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, empty)
    yield bench
    bench.butler.close()


def test_a_batch(bench: Bench) -> None:
    """Several detectors of two visits in one go, with their records, into a chain that is made."""
    for number in range(2):
        for detector in range(4):
            bench.make(number, detector)
    made = bench.made()
    outcome = bench.turn()
    assert bench.calls == [8]
    assert [e.datasets for e in outcome.exported] == [5] * 8
    assert bench.ids() == made
    for ref in bench.butler.query_datasets("synthetic_log", RUN, find_first=False):
        content = bench.butler.get(ref)
        assert content["of"][1:] == [ref.dataId["detector"], "synthetic_log"]
    assert bench.butler.collections.get_info("DemoCam/prompt/output-2026-11-27").children == (RUN,)
    assert len(bench.butler.query_dimension_records("visit_detector_region")) == 8
    # It stays until the supervisor's journal has it, and is not exported again meanwhile.
    assert len(ready_entries(bench.spool)) == 8
    assert bench.exporting.due(bench.exporting.look()) == []
    bench.let_go(outcome)
    assert ready_entries(bench.spool) == []
    assert list((bench.spool / "building").iterdir()) == []


def test_no_byte_moves_and_none_is_left(bench: Bench) -> None:
    entry = bench.make(0, 1)
    inodes = {(entry / name).stat().st_ino for name in read_manifest(entry).checksums}
    bench.let_go(bench.turn())
    refs = bench.butler.query_datasets("synthetic_sources", RUN, find_first=False)
    (path,) = [Path(bench.butler.getURI(ref).ospath) for ref in refs]
    assert path.stat().st_ino in inodes
    assert path.stat().st_nlink == 1


def test_killed_after_the_commit(bench: Bench) -> None:
    """Central has it and nobody knows: the next exporter finds it by UUID, and only says so."""
    for detector in range(3):
        bench.make(0, detector)
    made = bench.made()
    bench.butler.close()
    pid = os.fork()
    if pid == 0:
        try:
            with Butler.from_config(str(bench.folder / "central"), writeable=True) as butler:
                entries = ready_entries(bench.spool)
                BatchWriter(butler).write([HandOver(e, read_manifest(e)) for e in entries])
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    bench.butler = Butler.from_config(str(bench.folder / "central"), writeable=True)
    bench.begin()
    assert bench.ids() == made
    outcome = bench.turn()
    assert len(outcome.exported) == 3
    assert bench.ids() == made
    bench.let_go(outcome)
    assert ready_entries(bench.spool) == []


def test_killed_when_half_its_files_were_in_place(bench: Bench) -> None:
    """Files that no row knows: from a copy that was cut short, too."""
    entry = bench.make(0, 1)
    folder = bench.folder / "central" / RUN
    bench.turn()
    placed = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(placed) == 5
    bench.butler.close()
    # As before the commit, but for the files.
    bench.butler = Butler.from_config(str(bench.folder / "central"), writeable=True)
    refs = [r for n in TYPES for r in bench.butler.query_datasets(n, RUN, find_first=False)]
    bench.butler._datastore.forget(refs)
    bench.butler.registry.removeDatasets(refs)
    placed[0].unlink()
    placed[1].unlink()
    placed[1].write_text("cut sh")
    assert bench.ids() == []
    bench.begin()
    assert len(bench.turn().exported) == 1
    assert bench.ids() == sorted(i for d in read_manifest(entry).datasets for i in d["refs"])
    for name in TYPES:
        (ref,) = bench.butler.query_datasets(name, RUN, find_first=False)
        assert bench.butler.get(ref)["of"][2] == name


def test_conflict_is_no_repeat(bench: Bench) -> None:
    """Another writer's dataset of the same data ID: it alone is set aside, and both are named."""
    bench.make(0, 3)
    bench.let_go(bench.turn())
    (theirs,) = bench.butler.query_datasets("synthetic_sources", RUN, find_first=False)
    bench.calls.clear()
    for detector in range(8):
        bench.make(0, detector)
    ours = json.loads((bench.spool / "ready" / _name(0, 3) / "manifest.json").read_text())
    outcome = bench.turn()
    assert {e.key.detector for e in outcome.exported} == {0, 1, 2, 4, 5, 6, 7}
    (fault,) = outcome.set_aside
    assert (fault.fault, fault.entry) == ("conflict", _name(0, 3))
    assert str(theirs.id) in fault.reason and min(ours["datasets"][0]["refs"]) in fault.reason
    assert bench.letters() == {_name(0, 3)}
    # By halves: 8, 4, 2, 1, 1, 2, 4.
    assert len(bench.calls) == 7
    assert len(bench.ids()) == 8 * 5


@pytest.mark.parametrize("harm", ["bit", "missing file", "manifest", "no manifest"])
def test_corrupt(bench: Bench, harm: str) -> None:
    """Never exported, and the others are."""
    for detector in range(3):
        bench.make(0, detector)
    entry = bench.spool / "ready" / _name(0, 1)
    file = entry / "0002-synthetic_background.yaml"
    if harm == "bit":
        data = file.read_bytes()
        file.write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])
    elif harm == "missing file":
        file.unlink()
    elif harm == "manifest":
        (entry / "manifest.json").write_text("{")
    else:
        (entry / "manifest.json").unlink()
    outcome = bench.turn()
    (fault,) = outcome.set_aside
    assert (fault.fault, fault.entry) == ("corrupt", _name(0, 1))
    assert (fault.key is None) == ("manifest" in harm)
    assert bench.letters() == {_name(0, 1)}
    assert {e.key.detector for e in outcome.exported} == {0, 2}
    assert len(bench.ids()) == 2 * 5


def test_no_room_for_the_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be a dead letter waits until it can say why; the others do not."""
    for detector in range(3):
        bench.make(0, detector)
    (bench.spool / "ready" / _name(0, 1) / "manifest.json").write_text("{")

    def no_room(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ppd.supervisor.dead_letters._write_durably", no_room)
        outcome = bench.turn()
    assert {e.key.detector for e in outcome.exported} == {0, 2}
    assert (outcome.set_aside, outcome.trouble, bench.exporting.deferred) == ([], None, 1)
    assert bench.letters() == set()
    bench.let_go(outcome)
    deadline = time.monotonic() + 5.0
    while not bench.exporting.due(bench.exporting.look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [fault.entry for fault in bench.turn().set_aside] == [_name(0, 1)]
    assert bench.letters() == {_name(0, 1)}
    assert bench.exporting.look() == []
    assert bench.exporting.deferred == 0


def test_refused_by_the_schema(bench: Bench) -> None:
    """A dataset type that central has with other dimensions."""
    bench.butler.registry.registerDatasetType(
        DatasetType("synthetic_odd", ("instrument", "detector"), "Packages", universe=bench.butler.dimensions)
    )
    bench.make(0, 0)
    bench.make(0, 1, types=("synthetic_odd",))
    bench.make(0, 2)
    outcome = bench.turn()
    (fault,) = outcome.set_aside
    assert (fault.fault, fault.entry) == ("refused", _name(0, 1))
    assert "synthetic_odd" in fault.reason
    assert {e.key.detector for e in outcome.exported} == {0, 2}


def test_one_that_fails_while_central_answers(bench: Bench) -> None:
    """It is tried again, later and later; the others go, and nothing is set aside."""
    for detector in range(4):
        bench.make(0, detector)

    def fault(batch: Sequence[HandOver]) -> Exception | None:
        if any(h.manifest.key.detector == 2 for h in batch):
            return sqlalchemy.exc.OperationalError("INSERT", {}, Exception("statement timeout"))
        return None

    bench.fault = fault
    outcome = bench.turn()
    assert {e.key.detector for e in outcome.exported} == {0, 1, 3}
    assert (outcome.set_aside, outcome.trouble, bench.exporting.deferred) == ([], None, 1)
    assert bench.exporting.due(bench.exporting.look()) == []
    bench.fault = lambda batch: None
    deadline = time.monotonic() + 5.0
    while not bench.exporting.due(bench.exporting.look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [e.key.detector for e in bench.turn().exported] == [2]
    assert bench.exporting.deferred == 0


def test_central_is_away(bench: Bench) -> None:
    """Nobody is blamed: one call, and all stay as they are."""
    for detector in range(4):
        bench.make(0, detector)
    bench.answers = False
    bench.fault = lambda batch: sqlalchemy.exc.OperationalError("x", {}, Exception("connection refused"))
    outcome = bench.turn()
    assert bench.calls == [4]
    assert "connection refused" in str(outcome.trouble)
    assert (outcome.exported, outcome.set_aside, bench.exporting.deferred) == ([], [], 0)
    assert len(ready_entries(bench.spool)) == 4


def test_batches_by_count_bytes_and_age(tmp_path: Path, empty: Path) -> None:
    bench = Bench(tmp_path, empty, export_batch=3, export_bytes=50_000, export_age=60.0)

    def due() -> list[int]:
        return [int(w.path.name.split("-")[-2]) for w in bench.exporting.due(bench.exporting.look())]

    bench.make(0, 0)
    bench.make(0, 1)
    assert due() == []  # they wait for others
    bench.exporting.hurry = True
    assert due() == [0, 1]
    bench.exporting.hurry = False
    bench.make(0, 2)
    bench.make(0, 3)
    assert due() == [0, 1, 2]
    bench.make(0, 4, size=9000)  # five files
    os.utime(bench.spool / "ready" / _name(0, 4) / "manifest.json", (1.0, 1.0))
    bench.exporting = Exporting(bench.settings, bench._write, lambda: True)
    assert due() == [4]  # the oldest, and it is all that may go together
    bench.let_go(bench.turn())
    for detector in range(4):  # a clock that was set back
        later = time.time() + 3600.0
        os.utime(bench.spool / "ready" / _name(0, detector) / "manifest.json", (later, later))
    bench.exporting = Exporting(bench.settings.model_copy(update={"export_batch": 9}), bench._write, bool)
    assert due() == [0, 1, 2, 3]
    bench.butler.close()


def test_as_much_at_once_as_central_takes_in_some_seconds(tmp_path: Path, empty: Path) -> None:
    """One that is quick gets ever more, one that is slow ever less, down to single hand-overs."""
    bench = Bench(tmp_path, empty, export_batch=3)
    exporting = bench.exporting
    for detector in range(9):
        bench.make(0, detector)
    exporting._most = 1
    clock = [0.0]

    def write(seconds: float, batch: Sequence[HandOver]) -> None:
        bench.calls.append(len(batch))
        clock[0] += seconds

    with mock.patch("time.monotonic", lambda: clock[0]):
        for seconds in (0.1, 0.1, 0.1, 30.0, 3.0, 30.0, 30.0):
            exporting._write = functools.partial(write, seconds)
            exporting.export(exporting.due(exporting.look()))
    assert bench.calls == [1, 2, 3, 3, 1, 1, 1]
    bench.butler.close()


def test_nothing_is_discarded_that_was_not_exported(bench: Bench) -> None:
    entry = bench.make(0, 0)
    bench.exporting.discard([entry.name, "../../central", "nothing"])
    assert entry.exists()
    assert (bench.folder / "central").exists()


def _name(number: int, detector: int) -> str:
    return f"DemoCam-synthetic-{number:05d}-{detector}-1"
