"""A real ppd whose central repo is on PostgreSQL, and is read through a replica."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy
from observatory import ISR, PIPELINES, Observatory, Ppd, running, sleepers, wait_for, write_sleepy
from postgres_observatory import PostgresObservatory, postgres_observatory
from postgres_support import HELPER, PostgresServer

pytestmark = pytest.mark.night

_SUBTRACT = f"""
description: From raw to difference image; it needs every kind of input.
instrument: ppd.demo.democam.DemoCam
imports:
  - location: {PIPELINES}/ApPipe.yaml
    exclude: [detectAndMeasure, associateApdb, packageAlerts]
"""


@pytest.fixture(scope="module")
def servers(
    observatory: Observatory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresObservatory]:
    """The observatory on a primary and its replica."""
    with postgres_observatory(observatory, tmp_path_factory.mktemp("postgres")) as servers:
        yield servers


@pytest.fixture(scope="module")
def ppd(servers: PostgresObservatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    """One ppd for all tests here; it leaves no connection behind."""
    folder = tmp_path_factory.mktemp("ppd")
    subtract = folder / "Subtract.yaml"
    subtract.write_text(_SUBTRACT)
    pipelines = [
        {"survey": "SUBTRACT", "pipelines": [str(subtract)]},
        {"survey": "SLEEPY", "pipelines": [write_sleepy(folder / "sleepy", 1.5)]},
        {"pipelines": [ISR]},
    ]
    with running(
        servers,
        folder,
        main_pipelines=pipelines,
        read_central_repo=str(folder / "replica"),
        repo_retry_delay=0.3,
        export_age=0.2,
    ) as ppd:
        yield ppd
    for server in (servers.primary, servers.replica):
        assert server.connections(folder.name) == 0


def cut(servers: PostgresObservatory, ppd: Ppd) -> int:
    """End all of ppd's connections from the servers' side; return how many there were."""
    return sum(s.terminate_all(ppd.folder.name) for s in (servers.primary, servers.replica))


@contextlib.contextmanager
def stuck(
    servers: PostgresObservatory, ppd: Ppd, server: PostgresServer, lock: str
) -> Iterator[Callable[[], None]]:
    """Lock tables of the primary, then wait as long as it takes for a statement of ppd to wait for them."""
    database = ppd.folder.name
    waiting = (
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
    )
    engine = sqlalchemy.create_engine(servers.primary.url(database, application=HELPER))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"LOCK TABLE {lock}"))
        servers.replica.wait_until_caught_up()
        yield lambda: wait_for(lambda: server.execute(waiting) != [(0,)], 30.0, "ppd to wait for a lock")
    engine.dispose()


def assert_unharmed(ppd: Ppd, *visits: tuple[str, int]) -> None:
    """Central has each of these once; nothing has failed so far, and the supervisor is as it was."""
    status = ppd.status()
    groups = dict(visits)
    assert sorted(g for g in ppd.groups() if g[0] in groups) == sorted(visits)
    for name in ("failed", "retried", "dead_letters", "undeliverable", "nursery_restarts"):
        assert not status["counts"].get(name), status["errors"]
    assert ppd.process is not None and ppd.process.poll() is None
    # A replica that was cut twice is left alone for some 15 s.
    wait_for(lambda: ppd.status()["health"] == "ok", 40.0, f"its health to be good; log: {ppd.log}")
    assert "does not know" not in ppd.log.read_text(), "errors are handled, not merely survived"


def test_visit_ends_in_central(servers: PostgresObservatory, ppd: Ppd) -> None:
    """All kinds of input are found through the replica, and outputs go to the primary."""
    database = ppd.folder.name
    for server in (servers.primary, servers.replica):
        assert server.connections(database) >= 1
        server.reset_statements(database)
    for detector in (0, 8):
        ppd.good_visit("whole", detector, survey="SUBTRACT")
    ppd.await_state("whole", exported=2)
    assert_unharmed(ppd, ("whole", 0), ("whole", 8))
    assert sorted(r.dataId["detector"] for r in ppd.outputs("difference_image")) == [0, 8]
    assert servers.replica.statements(database) > 10
    searches = [s for s in servers.primary.logged_statements(database) if "template_coadd" in s]
    assert not searches, "inputs are searched for on the replica"


def test_connections_lost_between_statements(servers: PostgresObservatory, ppd: Ppd) -> None:
    """Connections end while nothing happens, while a child works, and after its export."""
    assert cut(servers, ppd) >= 2
    ppd.good_visit("first", 2, survey="SLEEPY")
    wait_for(lambda: sleepers(ppd.folder / "sleepy"), 30.0, "a child to sleep")
    assert cut(servers, ppd) >= 1
    ppd.await_state("first", exported=1)
    cut(servers, ppd)
    ppd.good_visit("second", 3)
    ppd.await_state("second", exported=1)
    assert_unharmed(ppd, ("first", 2), ("second", 3))


def test_connection_lost_while_inputs_are_searched(servers: PostgresObservatory, ppd: Ppd) -> None:
    """An exclusive lock on the primary reaches the replica, and holds what reads there."""
    rows = servers.primary.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", ppd.folder.name
    )
    tables = ", ".join(f'"{name}"' for (name,) in rows)
    with stuck(servers, ppd, servers.replica, f"{tables} IN ACCESS EXCLUSIVE MODE") as wait:
        ppd.good_visit("searched", 4)
        wait()
        assert servers.replica.terminate_all(ppd.folder.name) >= 1
    ppd.await_state("searched", exported=1)
    assert_unharmed(ppd, ("searched", 4))


def test_connection_lost_while_outputs_are_written(servers: PostgresObservatory, ppd: Ppd) -> None:
    """Files have been placed and datasets inserted; all of it is taken back and done again."""
    with stuck(servers, ppd, servers.primary, "file_datastore_records IN SHARE MODE") as wait:
        ppd.good_visit("written", 5)
        wait()
        assert servers.primary.terminate_all(ppd.folder.name) >= 1
    ppd.await_state("written", exported=1)
    assert_unharmed(ppd, ("written", 5))


@pytest.mark.slow
def test_connections_lost_all_the_time(servers: PostgresObservatory, ppd: Ppd) -> None:
    """Whatever was being read or written: it costs a retry, and nothing else."""
    visits = [(f"storm-{n}", d) for n in range(3) for d in (1, 7)]
    stop = threading.Event()
    lost: list[int] = []

    def storm() -> None:
        while not stop.wait(0.2):
            lost.append(cut(servers, ppd))

    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    try:
        for group, detector in visits:
            ppd.good_visit(group, detector)
            time.sleep(0.5)
        wait_for(lambda: sum(n > 0 for n in lost) >= 8, 20.0, "enough connections to be lost")
    finally:
        stop.set()
        thread.join(10.0)
    for group in dict(visits):
        ppd.await_state(group, exported=2)
    assert_unharmed(ppd, *visits)
