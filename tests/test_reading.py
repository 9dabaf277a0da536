"""Reading the central repo: lost connections, a replica that is away, a repo that can't be read."""

from __future__ import annotations

import itertools
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy.exc
from lsst.daf.butler import Butler
from repo_support import INSTRUMENT, make_grid_repo

from ppd.errors import CentralUnavailableError, ConfigurationError
from ppd.supervisor import reading
from ppd.supervisor.reading import CentralButlers


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    make_grid_repo(root)
    return root


@pytest.fixture
def primary(tmp_path: Path, blank: Path) -> Path:
    return Path(shutil.copytree(blank, tmp_path / "primary"))


@pytest.fixture
def replica(tmp_path: Path, blank: Path) -> Path:
    return Path(shutil.copytree(blank, tmp_path / "replica"))


@pytest.fixture
def central(primary: Path, replica: Path) -> Iterator[CentralButlers]:
    central = CentralButlers(str(primary), str(replica), delay=0.01)
    yield central
    central.close()


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reading, "time", clock)
    return clock


def _lost() -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the\n connection"))


class Asked:
    """A read that notes which repo it was done on, and fails as it is told to."""

    def __init__(self, fail: Callable[[str, int], BaseException | None] = lambda name, number: None):
        self._fail = fail
        self._count = itertools.count(1)
        self.of: list[str] = []

    def __call__(self, butler: Butler) -> str:
        # A real read, so that the connection is there to be lost.
        assert butler.query_dimension_records("instrument")[0].name == INSTRUMENT
        name = _name(butler)
        self.of.append(name)
        fault = self._fail(name, next(self._count))
        if fault is not None:
            raise fault
        return name


def _name(butler: Butler) -> str:
    """The folder that a repo's registry is in."""
    return Path(butler._config.configDir.ospath).name


def test_the_replica_is_read(central: CentralButlers) -> None:
    assert central.has_replica
    asked = Asked()
    assert [central.read(asked), central.read(asked, primary=True)] == ["replica", "primary"]
    assert central.read(lambda butler: butler) is central.read(lambda butler: butler)  # opened once
    assert central.trouble is None


@pytest.mark.parametrize("same", [True, False])
def test_without_replica(primary: Path, same: bool) -> None:
    central = CentralButlers(str(primary), str(primary) if same else None)
    assert not central.has_replica
    assert central.read(Asked()) == "primary"
    central.close()


@pytest.mark.parametrize("name", ["replica", "primary"])
@pytest.mark.parametrize(
    "fault",
    [
        _lost(),
        sqlalchemy.exc.InterfaceError("SELECT 1", {}, Exception("connection already closed")),
        sqlalchemy.exc.InternalError("SELECT 1", {}, Exception("gone"), connection_invalidated=True),
        sqlalchemy.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_lost_connection(central: CentralButlers, clock: Clock, fault: Exception, name: str) -> None:
    """Whatever the driver calls it: asked again at the same repo, which is not given up."""
    asked = Asked(lambda _, number: fault if number == 1 else None)
    assert central.read(asked, primary=name == "primary") == name
    assert asked.of == [name, name]
    assert (central.trouble, len(clock.slept)) == (None, 1)


def test_the_primary_is_away(central: CentralButlers, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It is known until it has been read again."""
    away = [True]
    asked = Asked(lambda name, _: _lost() if name == "primary" and away else None)
    with pytest.raises(CentralUnavailableError, match="primary does not answer"):
        central.read(asked, primary=True)
    assert central.away is not None and central.trouble is None
    assert central.read(asked) == "replica"
    assert central.away is not None
    away.clear()
    assert central.read(asked, primary=True) == "primary"
    assert central.away is None
    assert "The central repo is back" in caplog.text


def test_replica_is_away(central: CentralButlers, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The primary answers; the replica is left alone for a while, and used again when it is back."""
    away = True
    asked = Asked(lambda name, number: _lost() if name == "replica" and away else None)
    assert central.read(asked) == "primary"
    assert asked.of == ["replica", "replica", "primary"]
    assert central.trouble is not None
    assert (
        "replica does not answer: " in central.trouble and "server closed the connection" in central.trouble
    )
    for later in (1.0, 10.0):
        clock.now += later
        assert central.read(asked) == "primary"
    assert asked.of[3:] == ["primary", "primary"]
    clock.now += 10.0
    assert central.read(asked) == "primary"  # tried, and still away
    assert asked.of[5:] == ["replica", "replica", "primary"]
    away = False
    clock.now += 20.0
    with caplog.at_level(logging.WARNING):
        assert central.read(asked) == "replica"
    assert central.trouble is None
    assert "The read replica is back." in caplog.text
    assert asked.of[8:] == ["replica"]


def test_replica_does_not_open(central: CentralButlers, replica: Path, clock: Clock) -> None:
    """Its database is not there when it is first needed, and comes later."""
    registry = replica / "gen3.sqlite3"
    registry.rename(replica / "away")
    assert central.read(Asked()) == "primary"
    assert central.trouble is not None and str(replica) in central.trouble
    (replica / "away").rename(registry)
    assert central.read(Asked()) == "primary"
    clock.now += 20.0
    assert (central.read(Asked()), central.trouble) == ("replica", None)


@pytest.mark.parametrize("harm", ["no configuration", "another version"])
def test_replica_is_unreadable(central: CentralButlers, replica: Path, harm: str) -> None:
    """A mistake in the configuration is said, at the first read; the primary does not hide it."""
    if harm == "no configuration":
        shutil.rmtree(replica)
    else:
        _set_attribute(replica, "config:dimensions.json", "{}")
    with pytest.raises(ConfigurationError, match=f"{replica}"):
        central.read(Asked())
    assert central.read(Asked(), primary=True) == "primary"


def test_primary_is_away(primary: Path, clock: Clock) -> None:
    central = CentralButlers(str(primary), None)
    asked = Asked(lambda name, number: _lost())
    with pytest.raises(
        CentralUnavailableError, match=f"central repo {primary} does not answer: .*closed the c"
    ):
        central.read(asked)
    assert len(asked.of) == 2
    assert central.read(Asked()) == "primary"  # no rest for the only one there is
    central.close()


def test_primary_does_not_open(primary: Path, clock: Clock) -> None:
    """Its database is not there: tried a few times, and again at the next read."""
    central = CentralButlers(str(primary), None)
    registry = primary / "gen3.sqlite3"
    registry.rename(primary / "away")
    with pytest.raises(CentralUnavailableError, match=f"{primary} does not answer: .*unable to open"):
        central.read(Asked())
    assert len(clock.slept) == 2
    (primary / "away").rename(registry)
    assert central.read(Asked()) == "primary"
    central.close()


def test_both_are_away(central: CentralButlers, clock: Clock) -> None:
    asked = Asked(lambda name, number: _lost())
    with pytest.raises(CentralUnavailableError, match="primary does not answer"):
        central.read(asked)
    assert asked.of == ["replica", "replica", "primary", "primary"]
    assert central.trouble is not None


REFUSED = (
    sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("violates a constraint")),
    sqlalchemy.exc.ProgrammingError("SELECT", {}, Exception("permission denied for table dataset")),
    sqlalchemy.exc.InternalError("CREATE", {}, Exception("cannot execute CREATE in a read-only transaction")),
)


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: type(fault).__name__)
def test_what_a_replica_refuses(central: CentralButlers, clock: Clock, fault: Exception) -> None:
    """The primary may do it; if it refuses too, its error is passed on as it is, at once."""
    assert central.read(Asked(lambda name, _: fault if name == "replica" else None)) == "primary"
    assert str(fault.orig) in (central.trouble or "")  # type: ignore[attr-defined]
    clock.now += 20.0
    asked = Asked(lambda name, _: fault)
    with pytest.raises(type(fault)) as caught:
        central.read(asked)
    assert caught.value is fault
    assert asked.of == ["replica", "replica", "primary"]


def test_other_errors_are_passed_on(central: CentralButlers, clock: Clock) -> None:
    """At once, as they are: another try, or another repo, would not help."""
    asked = Asked(lambda name, number: KeyError("a mistake of ours"))
    with pytest.raises(KeyError):
        central.read(asked)
    assert (asked.of, clock.slept, central.trouble) == (["replica"], [], None)


def _set_attribute(root: Path, name: str, value: str) -> None:
    with sqlite3.connect(root / "gen3.sqlite3") as db:
        assert (
            db.execute("UPDATE butler_attributes SET value = ? WHERE name = ?", (value, name)).rowcount == 1
        )


def _no_store(root: Path) -> None:
    path = root / "butler.yaml"
    path.write_text(path.read_text().replace("FileDatastore", "NoSuchDatastore"))


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (shutil.rmtree, "There is no Butler repo at"),
        (lambda root: (root / "butler.yaml").unlink(), "There is no Butler repo at"),
        (lambda root: _set_attribute(root, "config:dimensions.json", "{nonsense"), "Expecting property name"),
        (lambda root: _set_attribute(root, "config:registry.managers.opaque", "x"), "stored: x"),
        (_no_store, "NoSuchDatastore"),
        (lambda root: (root / "butler.yaml").write_text("{: nonsense"), "butler.yaml"),
        (lambda root: (root / "butler.yaml").write_text("only text"), "primary"),
        (lambda root: (root / "gen3.sqlite3").write_bytes(b"not a database" * 1000), "not a database"),
    ],
)
def test_repo_that_can_not_be_read(
    primary: Path, clock: Clock, harm: Callable[[Path], object], part: str
) -> None:
    """A mistake of configuration: it has the repo's name, and is not tried again."""
    harm(primary)
    central = CentralButlers(str(primary), None)
    with pytest.raises(ConfigurationError) as caught:
        central.read(Asked())
    assert str(primary) in str(caught.value) and part in str(caught.value)
    assert clock.slept == []
