"""Journal, spool and exporter against a model: in whatever order, nothing is lost or doubled."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)
from lsst.daf.butler import Butler, DatasetType
from site_support import announce

from bench.hand_overs import TYPES, make_central, make_hand_over
from ppd.config import Settings
from ppd.errors import JournalError
from ppd.messages import ChildDone, DetectorKey, Exported, SetAside
from ppd.supervisor.counters import Counters
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.endings import local_repo
from ppd.supervisor.export_batch import BatchWriter
from ppd.supervisor.exporting import Exporting
from ppd.supervisor.journal import Journal
from ppd.supervisor.ledger import Ledger
from ppd.supervisor.lifecycle import Lifecycle
from ppd.supervisor.measures import Measures
from ppd.supervisor.recovery import take_up
from ppd.supervisor.spool import HandOver, clear_building, make_folders, read_manifest, ready_entries
from ppd.supervisor.table import OVER, DetectorVisit, State, VisitEntry
from ppd.visit import BareVisit

_DETECTORS = 3
_OVER = {"exported", "failed"}


class Machine(RuleBasedStateMachine):
    """A supervisor and an exporter that die now and then; children that hand over, or not.

    The model is small: which detector-visits were accepted, and what each
    hand-over holds.
    """

    empty: Path
    message: dict[str, Any]
    accepted = Bundle("accepted")
    working = Bundle("working")
    ended = Bundle("ended")

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Make the empty central repo that each machine begins with."""
        cls.empty = make_central(root)
        with Butler.from_config(str(cls.empty), writeable=True) as butler:
            for name in TYPES:
                dimensions = butler.dimensions.conform(("instrument", "visit", "detector"))
                butler.registry.registerDatasetType(DatasetType(name, dimensions, "StructuredDataDict"))
        cls.message = announce("x", instrument="DemoCam").model_dump(mode="json")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ppd-machine-"))
        shutil.copytree(self.empty, self.folder / "central")
        self.spool = self.folder / "spool"
        make_folders(self.spool)
        self.settings = Settings.model_validate(
            {
                "instrument": "DemoCam",
                "central_repo": str(self.folder / "central"),
                "main_pipelines": [{"pipelines": ["x.yaml"]}],
                "state_dir": str(self.folder),
                "export_age": 0.0,
                "export_batch": 4,
                "retries": 0,
            }
        )
        self.settings.local_repos.mkdir()
        self.butler = Butler.from_config(str(self.folder / "central"), writeable=True)
        self.model: set[tuple[str, int]] = set()
        self.outputs: dict[str, set[str]] = {}
        """UUIDs of what each hand-over holds, by its name in the spool."""
        self.harmed: set[str] = set()
        self.number = 0
        self.full = False
        self._start_exporter()
        self._start_supervisor()

    # What there is of ppd

    def _start_exporter(self) -> None:
        self.writer = BatchWriter(self.butler)
        self.exporting = Exporting(self.settings, lambda batch: self.writer.write(batch), lambda: True)
        self.said: list[Exported | SetAside] = []

    def _start_supervisor(self) -> None:
        self.journal = Journal(self.folder / "journal.sqlite3")
        self._limit_journal()
        nothing = SimpleNamespace(
            request=lambda *a: None, expect=lambda *a: None, dismiss=lambda *a: None, turn=lambda *a: None
        )
        self.life = Lifecycle(
            self.settings,
            "",
            Ledger(self.journal, Counters(), Measures(self.settings)),
            nothing,  # type: ignore[arg-type]
            lambda request: True,
            lambda identity, message: None,
            nothing,  # type: ignore[arg-type]
            nothing,  # type: ignore[arg-type]
        )
        self.pending: dict[str, DetectorKey] = {}
        clear_building(self.spool)
        take_up(self.settings, self.journal, self.life, self._admit)

    def _admit(self, message: Any, accepted: float | None, only: Any) -> VisitEntry:
        visit = BareVisit.model_validate(message)
        detectors = {
            d: DetectorVisit(
                instrument="DemoCam",
                group=visit.groupId,
                detector=d,
                preprocessing=(),
                main=("x.yaml",),
                accepted=time.time(),
                expires=time.time() + 3600.0,
            )
            for d in only
        }
        deployment = Deployment("deployment", self.settings)
        return VisitEntry(visit, time.time(), 20261127, deployment, {}, detectors)

    def _limit_journal(self) -> None:
        """Fill the journal's disk, or give it room."""
        pages = self.journal._db.execute("PRAGMA page_count").fetchone()[0] if self.full else 1 << 30
        self.journal._db.execute(f"PRAGMA max_page_count={pages}")

    def _find(self, what: tuple[str, int]) -> DetectorVisit | None:
        return self.life.table.get(*what)

    # What happens

    @rule(target=accepted, detectors=st.sets(st.integers(0, _DETECTORS - 1), min_size=1))
    def announce(self, detectors: set[int]) -> Any:
        self.number += 1
        group = f"synthetic-{self.number:05d}"
        entry = self._admit({**self.message, "groupId": group}, None, sorted(detectors))
        try:
            self.life.accept(entry, "test")
        except JournalError:
            assert self.full
            return (group, -1)  # it was told: it is nobody's promise
        self.model |= {(group, d) for d in detectors}
        return (group, min(detectors))

    @rule(target=working, what=consumes(accepted))
    def begin(self, what: tuple[str, int]) -> Any:
        d = self._find(what)
        if d is not None and d.state is State.ACCEPTED:
            self.life.ledger.change(d, State.RUNNING)
            local_repo(self.settings, d).mkdir(exist_ok=True)
        return what

    @rule(target=ended, what=consumes(working), success=st.booleans())
    def hand_over(self, what: tuple[str, int], success: bool) -> Any:
        """A child hands over; whether it lives long enough to say so, others decide."""
        d = self._find(what)
        # Of an attempt there is one child, though two may speak of it here.
        handed_over = d is not None and d.key.file_name in self.outputs
        if d is not None and d.state is State.RUNNING and d.done is None and not handed_over:
            entry = make_hand_over(
                self.spool,
                int(what[0][-5:]),
                what[1],
                self.butler.dimensions,
                attempt=d.attempt,
                success=success,
            )
            self.outputs[entry.name] = {i for s in read_manifest(entry).datasets for i in s["refs"]}
        return what

    @rule(what=consumes(ended), speaks=st.booleans())
    def end(self, what: tuple[str, int], speaks: bool) -> None:
        d = self._find(what)
        if d is None or d.state is not State.RUNNING:
            return
        if speaks and d.key.file_name in self.outputs:
            success = read_manifest(next(self._places(d.key.file_name))).success
            failure = None if success else "final"
            d.done = ChildDone(key=d.key, success=success, reason="x", failure=failure, entry=d.key.file_name)
        d.exited_at, d.exit_code = time.monotonic(), 0

    @rule()
    def export(self) -> None:
        batch = self.exporting.due(self.exporting.look())
        if batch:
            self.said += self.exporting.report(self.exporting.export(batch), 0.0)

    @rule()
    def export_and_die(self) -> None:
        """Central has it, and nobody will hear of it."""
        entries = ready_entries(self.spool)[:4]
        sound = [HandOver(e, read_manifest(e)) for e in entries if e.name not in self.harmed]
        self.writer.write(sound)
        self._start_exporter()

    @rule()
    def exporter_dies(self) -> None:
        self._start_exporter()

    @rule()
    def supervise(self) -> None:
        """One turn of the loop."""
        said, self.said = self.said, []
        for message in said:
            if isinstance(message, Exported):
                self.life.outputs.exported(message)
                self.pending.update({e.entry: e.key for e in message.entries})
            else:
                self.life.outputs.undeliverable(message)
        for d in self.life.table.live():
            if d.exited_at is not None:
                self.life.endings.settle(d)
        self.journal.commit()
        if self.journal.trouble is None:
            done = [entry for entry, key in self.pending.items() if self.life.outputs.settled(key)]
            self.exporting.discard(done)
            for entry in done:
                del self.pending[entry]

    @rule(target=accepted)
    def supervisor_dies(self) -> Any:
        """What it had not committed is gone; so is what the exporter was saying."""
        self.journal._db.close()
        self._start_exporter()
        self._start_supervisor()
        waiting = [d for d in self.life.table if d.state is State.ACCEPTED]
        return (waiting[0].group, waiting[0].detector) if waiting else ("none", -1)

    @rule(full=st.booleans())
    def journal_disk(self, full: bool) -> None:
        self.full = full
        self._limit_journal()

    @rule(pick=st.integers(0, 9))
    def corrupt(self, pick: int) -> None:
        entries = [e for e in ready_entries(self.spool) if not self._in_central(e.name)]
        if entries:
            entry = entries[pick % len(entries)]
            name = sorted(read_manifest(entry).checksums)[0] if entry.name not in self.harmed else ""
            if name:
                (entry / name).write_bytes(b"nothing")
                self.harmed.add(entry.name)

    # What must hold

    def _places(self, entry: str) -> Any:
        return (p for p in self.spool.glob(f"*/{entry}") if p.parent.name != "building")

    def _central(self) -> list[str]:
        return [
            str(ref.id)
            for name in TYPES
            for ref in self.butler.query_datasets(name, "*", find_first=False, explain=False, limit=None)
        ]

    def _in_central(self, entry: str) -> bool:
        return self.outputs[entry] <= set(self._central())

    @invariant()
    def every_promise_is_in_the_journal(self) -> None:
        for group, detector in self.model:
            assert self.journal.state_of("DemoCam", group, detector) is not None

    @invariant()
    def every_output_is_somewhere(self) -> None:
        central = self._central()
        assert len(central) == len(set(central))
        for entry, ids in self.outputs.items():
            there = ids & set(central)
            assert there in (set(), ids)
            assert there or list(self._places(entry)), entry
            if entry in self.harmed:
                assert not there

    def teardown(self) -> None:
        """Let all come to its end: each is in one known state, each output in central once."""
        try:
            self.full = False
            self._limit_journal()
            for _ in range(60):
                for d in self.life.table:
                    if d.state in (State.ACCEPTED, State.WAITING):
                        d.state, d.predecessor = State.RUNNING, None
                        self.end_with_nothing(d)
                    elif d.state is State.RUNNING and d.exited_at is None:
                        self.end_with_nothing(d)
                self.export()
                self.supervise()
                if all(d.state in OVER for d in self.life.table) and not ready_entries(self.spool):
                    break
            states = {w: (self.journal.state_of("DemoCam", *w) or ("",))[0] for w in self.model}
            assert set(states.values()) <= _OVER, states
            central = set(self._central())
            for entry, ids in self.outputs.items():
                kept = {p.parent.name for p in self._places(entry)}
                harmed = entry in self.harmed
                assert ids.isdisjoint(central) if harmed else ids <= central
                assert kept == ({"dead-letters"} if harmed else set())
            assert self.journal.unfinished() == []
        finally:
            self.journal.close()
            self.butler.close()
            shutil.rmtree(self.folder)

    def end_with_nothing(self, d: DetectorVisit) -> None:
        d.done = ChildDone(key=d.key, success=False, reason="no raw", failure="retriable", retry=False)
        d.exited_at = time.monotonic()


@pytest.mark.timeout(600)
def test_machine(tmp_path: Path) -> None:
    Machine.prepare(tmp_path / "empty")
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
