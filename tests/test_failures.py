"""What a failure means, decided with a real APDB."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from astropy.table import Table
from lsst.pipe.base import RepeatableQuantumError
from site_support import GRIDCAM, announce

from bench.soak_tasks import SoakStoreTask
from ppd.config import Settings
from ppd.demo.central import build_apdb
from ppd.errors import FinalError, IgnorableVisitError, RetriableError
from ppd.messages import CacheView, DetectorKey, Job, Predecessor
from ppd.workers.apdb_guard import ApdbGuard, Stored
from ppd.workers.child import _Life
from ppd.workers.execute import PipelineFailedError
from ppd.workers.failures import KilledError, MismatchError, NoRawError, judge

STORED, OTHER, DETECTOR = 7001, 7002, 4


@pytest.fixture(scope="module")
def apdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An APDB that has one detector-visit."""
    config = SoakStoreTask.ConfigClass()
    config.apdbConfigUrl = str(build_apdb(tmp_path_factory.mktemp("apdb")))
    sources = Table({name: [1.0, 2.0] for name in ("x", "y", "ra", "dec", "flux")})
    SoakStoreTask(config=config).run(sources, STORED, DETECTOR, "r")
    return Path(config.apdbConfigUrl)


@pytest.fixture
def guard(apdb: Path) -> ApdbGuard:
    return ApdbGuard(str(apdb))


def _repeatable() -> PipelineFailedError:
    return PipelineFailedError("Main.yaml", RepeatableQuantumError("the same again"))


def _failed() -> PipelineFailedError:
    return PipelineFailedError("Main.yaml", RuntimeError("bad luck"))


@pytest.mark.parametrize(
    ("error", "retry", "text"),
    [
        (_failed(), True, "pipeline Main.yaml failed: RuntimeError: bad luck"),
        (_repeatable(), False, "pipeline Main.yaml failed: RepeatableQuantumError: the same again"),
        (RetriableError("no main pipeline can run: x"), True, "no main pipeline can run: x"),
        (NoRawError("no usable raw came"), False, "no usable raw came"),
        (MismatchError("it is of another field"), False, "it is of another field"),
        (KilledError("its child ended by SIGKILL"), True, "its child ended by SIGKILL"),
        (MemoryError(), True, "MemoryError: "),
        (OSError(28, "no room"), True, "OSError: [Errno 28] no room"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_nothing_is_stored(guard: ApdbGuard, error: BaseException, retry: bool, text: str) -> None:
    for main_started in (False, True):
        verdict = judge(error, main_started, guard, (OTHER,), DETECTOR)
        assert (verdict.failure, verdict.retry, verdict.reason) == ("retriable", retry, text)
    # Another detector of the same visit does not count.
    assert judge(error, True, guard, (STORED,), DETECTOR + 1).failure == "retriable"


@pytest.mark.parametrize("make", [_failed, _repeatable, lambda: KilledError("killed"), MemoryError])
def test_stored(guard: ApdbGuard, make: Callable[[], BaseException]) -> None:
    verdict = judge(make(), True, guard, (OTHER, STORED), DETECTOR)
    assert (verdict.failure, verdict.retry) == ("final", False)
    assert verdict.reason.endswith(f"; the APDB has sources of visit {STORED}")


def test_before_the_main_pipeline_nothing_is_asked(apdb: Path) -> None:
    nowhere = ApdbGuard(str(apdb.with_name("nowhere.yaml")))
    assert judge(_failed(), False, nowhere, (STORED,), DETECTOR).failure == "retriable"


def test_it_can_not_be_asked(apdb: Path) -> None:
    """No configuration, or a database without tables: it counts as stored."""
    empty = apdb.with_name("empty.yaml")
    empty.write_text(apdb.read_text().replace("apdb.db", "empty.db"))
    for config in (apdb.with_name("nowhere.yaml"), empty):
        guard = ApdbGuard(str(config))
        guard.open()
        verdict = judge(_failed(), True, guard, (OTHER,), DETECTOR)
        assert (verdict.failure, verdict.retry) == ("final", False)
        assert "bad luck; the APDB can't be asked whether it has it (" in verdict.reason


def test_it_answers_again(apdb: Path) -> None:
    """A server that is restarted: nothing is final that another second would have told."""
    away = apdb.with_name("away.yaml")
    guard = ApdbGuard(str(away), patience=20.0)
    back = threading.Timer(1.5, lambda: away.write_bytes(apdb.read_bytes()))
    back.start()
    try:
        assert guard.stored([1], 4) == Stored(may_be=False, certain=True)
    finally:
        back.cancel()


def test_locked_for_good(tmp_path: Path) -> None:
    config = build_apdb(tmp_path)
    # Else it waits for five seconds, or as long as the site says.
    config.write_text(config.read_text() + "connection_config: {connection_timeout: 0.2}\n")
    guard = ApdbGuard(str(config))
    guard.open()
    with contextlib.closing(sqlite3.connect(tmp_path / "apdb.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        verdict = judge(_failed(), True, guard, (OTHER,), DETECTOR)
        database.execute("ROLLBACK")
    assert verdict.failure == "final"
    assert "locked" in verdict.reason
    assert judge(_failed(), True, guard, (OTHER,), DETECTOR).failure == "retriable"


def test_visits_are_not_known(guard: ApdbGuard) -> None:
    verdict = judge(KilledError("killed"), True, guard, (), DETECTOR)
    assert verdict.failure == "final"
    assert "its visits are not known" in verdict.reason


def test_connection_was_lost(guard: ApdbGuard) -> None:
    """What was opened ahead, long before, is opened again."""
    guard.open()
    pooled = guard._connect()._engine.raw_connection()
    lost = pooled.driver_connection
    pooled.close()
    lost.close()
    assert guard.stored((STORED,), DETECTOR).certain
    assert judge(_failed(), True, guard, (OTHER,), DETECTOR).failure == "retriable"


def test_no_apdb() -> None:
    guard = ApdbGuard(None)
    for visits in ((), (STORED,)):
        assert judge(_failed(), True, guard, visits, DETECTOR).failure == "retriable"
    guard.check((STORED,), _key(2))


def test_classes_that_errors_have(guard: ApdbGuard) -> None:
    assert judge(IgnorableVisitError("none"), False, guard, (), DETECTOR).failure == "ignorable"
    verdict = judge(FinalError("so be it"), False, guard, (), DETECTOR)
    assert (verdict.failure, verdict.retry, verdict.reason) == ("final", False, "so be it")


def test_check_before_the_main_pipeline(apdb: Path, guard: ApdbGuard) -> None:
    nowhere = ApdbGuard(str(apdb.with_name("nowhere.yaml")))
    for attempt in (1, 2):
        guard.check((OTHER,), _key(attempt))
        with pytest.raises(FinalError, match=f"has sources of visit {STORED}; it is not processed again"):
            guard.check((STORED,), _key(attempt))
    # A first attempt has changed nothing yet: the tasks may find the APDB well.
    nowhere.check((OTHER,), _key(1))
    with pytest.raises(FinalError, match="can't be asked"):
        nowhere.check((OTHER,), _key(2))


def _key(attempt: int) -> DetectorKey:
    return DetectorKey(instrument=GRIDCAM.name, group="g", detector=DETECTOR, attempt=attempt)


# A look at what can't be looked at; what can is looked at in test_life_failures.py.


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """Somebody who takes what a child says."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(f"ipc://{tmp_path}/s")
        yield f"ipc://{tmp_path}/s"


@pytest.mark.parametrize("harm", ["empty", "gone", "cut", "garbage"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_what_is_left_can_not_be_opened(
    apdb: Path, tmp_path: Path, endpoint: str, harm: str, last: bool, asked: bool
) -> None:
    folder = tmp_path / "left"
    if harm != "gone":
        folder.mkdir()
    if harm in ("cut", "garbage"):
        (folder / "butler.yaml").write_text("datastore: {cls: lsst.daf.butler.datastores.fileDatastore")
    if harm == "garbage":
        (folder / "gen3.sqlite3").write_bytes(b"garbage" * 1000)
    left = Predecessor(local_repo=str(folder), reason="killed", last=last)
    life = _life(tmp_path, left, apdb if asked else None, endpoint)
    try:
        done = life.look_back()
        assert life.butler is None
        if not last:
            # An attempt follows, which asks the APDB before its main pipeline.
            assert done is None
            assert not folder.exists()
            assert not life.main_started
            return
        assert done is not None
        assert done.entry is None
        assert done.failure == ("final" if asked else "retriable")
        assert done.reason.startswith("killed")
    finally:
        life.link.close()


def _life(tmp_path: Path, left: Predecessor, apdb: Path | None, endpoint: str) -> _Life:
    settings = Settings.from_dict(
        {
            "instrument": GRIDCAM.name,
            "central_repo": "nowhere",
            "state_dir": str(tmp_path / "state"),
            "socket_dir": "/nowhere",
            "main_pipelines": [{"pipelines": ["Main.yaml"]}],
            "apdb_config": str(apdb) if apdb else None,
        }
    )
    job = Job(
        key=_key(2),
        visit=announce("g").model_dump(mode="json"),
        accepted=time.time(),
        expires=time.time() + 600.0,
        cache=CacheView(snapshot="none", config="none", collections=()),
        preprocessing=(),
        main=("Main.yaml",),
        runs={"NoPipeline": "a", "Main.yaml": "b"},
        endpoint=endpoint,
        local_repo=str(tmp_path / "own"),
        spool=str(tmp_path / "spool"),
        log_file=str(tmp_path / "log"),
        predecessor=left,
    )
    inherited = None
    return _Life(job, settings, {}, GRIDCAM, inherited)  # type: ignore[arg-type]
