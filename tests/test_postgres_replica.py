"""A real ppd and its read replica: it lags, goes away, comes back, or is not there to begin with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from metrics_support import Scrape, firing
from observatory import Observatory, Ppd, identity, wait_for
from postgres_observatory import PostgresObservatory, postgres_observatory
from postgres_support import PostgresServer

from ppd.supervisor import reading

pytestmark = pytest.mark.night

_LONGEST_REST = 1.2 * reading._REST_SECONDS
_AWAY = "The read replica is away; the primary is read instead"
_BACK = "The read replica is back."
_HARM = ("failed", "retried", "inputs_retried", "dead_letters", "undeliverable", "nursery_restarts")


@pytest.fixture(scope="module")
def servers(
    observatory: Observatory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresObservatory]:
    """The observatory on a primary and its replica."""
    with postgres_observatory(observatory, tmp_path_factory.mktemp("postgres")) as servers:
        yield servers


@contextlib.contextmanager
def prepared(servers: PostgresObservatory, folder: Path, **settings: Any) -> Iterator[Ppd]:
    """Make a ppd to be initialized and started; in the end it leaves nothing, and no connection, behind."""
    servers.replica.resume_replay()
    ppd = Ppd(
        servers,
        folder,
        read_central_repo=str(folder / "replica"),
        repo_retry_delay=0.3,
        export_age=0.2,
        **settings,
    )
    with contextlib.closing(ppd):
        yield ppd
        assert ppd.stop() == 0
        assert not any(ppd.leftovers().values()), ppd.leftovers()
        for server in (servers.primary, servers.replica):
            assert server.pid is None or server.connections(folder.name) == 0


@contextlib.contextmanager
def lagging(server: PostgresServer) -> Iterator[None]:
    """Pause a replica's replay; in the end it has caught up."""
    server.pause_replay()
    try:
        yield
    finally:
        server.resume_replay()
        server.wait_until_caught_up()


@pytest.fixture(scope="module")
def late(servers: PostgresObservatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    """A ppd that was started while its replica lagged behind today's ppd-init, as it still does."""
    with prepared(servers, tmp_path_factory.mktemp("late")) as ppd:
        assert ppd.command("init", "--day-obs", "20200101").returncode == 0
        servers.replica.wait_until_caught_up()
        with lagging(servers.replica):
            ppd.initialize()
            ppd.start()
            yield ppd


@pytest.fixture
def ppd(servers: PostgresObservatory, late: Ppd) -> Ppd:
    """The same ppd when its replica has caught up."""
    servers.replica.resume_replay()
    servers.replica.wait_until_caught_up()
    return late


@pytest.fixture(scope="module")
def alone(servers: PostgresObservatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    """A ppd whose replica is away; nothing is fetched ahead, so that visits alone read."""
    with prepared(servers, tmp_path_factory.mktemp("alone"), warm_ahead=False) as ppd:
        servers.replica.stop()
        try:
            ppd.initialize()
            ppd.start()
            yield ppd
        finally:
            servers.replica.start()


def runs(server: PostgresServer, ppd: Ppd) -> int:
    """Number of the collections that ppd-init has made, as a server knows them."""
    sql = "SELECT count(*) FROM collection WHERE name LIKE 'DemoCam/prompt/%'"
    return server.execute(sql, ppd.folder.name)[0][0]


def await_export(ppd: Ppd, group: str, *detectors: int) -> None:
    """Wait until a visit is in central, once; nothing lacked, and nothing has failed so far."""
    over = [{"exported"}, {"failed"}, {"exported", "failed"}]
    wait_for(lambda: set(ppd.states(group)) in over, 60.0, f"{group} to end; log: {ppd.log}")
    status = ppd.status()
    assert ppd.states(group) == {"exported": len(detectors)}, status["errors"]
    assert [g for g in ppd.groups() if g[0] == group] == [(group, d) for d in detectors]
    found = ppd.client.inputs(group).result["detectors"]
    assert sorted(map(int, found)) == list(detectors)
    assert not any(own["missing"] for own in found.values())
    assert not {name: n for name, n in status["counts"].items() if name in _HARM and n}, status["errors"]
    assert "does not know" not in ppd.log.read_text(), "errors are handled, not merely survived"


def assert_lag_is_harmless(servers: PostgresObservatory, ppd: Ppd) -> None:
    """A visit is exported while the replica does not know today's runs."""
    servers.replica.reset_statements(ppd.folder.name)
    ppd.good_visit("lag", 0)
    await_export(ppd, "lag", 0)
    assert runs(servers.primary, ppd) > runs(servers.replica, ppd), "it still lags"
    assert (ppd.status()["health"], ppd.status()["faults"]) == ("ok", [])
    assert servers.replica.statements(ppd.folder.name) > 5, "all the rest is read from it"
    log = ppd.log.read_text()
    assert not any(words in log for words in (_AWAY, "did not answer", "is not prepared"))


@pytest.mark.slow
def test_init_outputs_are_read_from_primary(servers: PostgresObservatory, late: Ppd) -> None:
    assert_lag_is_harmless(servers, late)
    servers.replica.resume_replay()
    servers.replica.wait_until_caught_up()
    assert runs(servers.primary, late) == runs(servers.replica, late)
    late.good_visit("caught-up", 1)
    await_export(late, "caught-up", 1)


@pytest.mark.slow
def test_dataset_types_are_read_from_primary(
    servers: PostgresObservatory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first ppd-init of all, or the first of a new pipeline."""
    with prepared(servers, tmp_path_factory.mktemp("first")) as ppd, lagging(servers.replica):
        ppd.initialize()
        ppd.start()
        assert_lag_is_harmless(servers, ppd)


@pytest.mark.slow
def test_connections_do_not_grow_with_detectors(servers: PostgresObservatory, ppd: Ppd) -> None:
    """A thread of the supervisor reads, the exporter writes; nursery and children have no connection."""
    assert ppd.process is not None
    supervisor = psutil.Process(ppd.process.pid)
    most = dict.fromkeys(("replica", "primary", "others", "children"), 0)

    def count() -> bool:
        others = [p for p in supervisor.children(recursive=True) if not _exports(p)]
        for name, server in (("replica", servers.replica), ("primary", servers.primary)):
            # The server counts also what nobody else would find.
            most[name] = max(most[name], server.connections(ppd.folder.name), connected(supervisor, server))
            most["others"] = max(most["others"], *(connected(q, server) for q in others))
        most["children"] = max(most["children"], len(ppd.status()["children"]))
        return ppd.states("nine") == {"exported": 9}

    assert ppd.submit(groupId="nine").ok
    for detector in range(9):
        ppd.drop(servers.raw(detector, **identity("nine")), detector, "nine")
    wait_for(count, 60.0, f"all to be exported; log: {ppd.log}")
    await_export(ppd, "nine", *range(9))
    assert most["children"] >= 5, "they were at work together"
    assert most["replica"] == 1 and 1 <= most["primary"] <= 2 and most["others"] == 0, most


def _exports(process: psutil.Process) -> bool:
    try:
        return "ppd.supervisor.exporter_process" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def connected(process: psutil.Process, server: PostgresServer) -> int:
    """Number of sockets of a process, inherited ones too, that lead to a server."""
    try:
        inet = [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == server.port]
        return len(inet) + sum(str(server.folder) in c.laddr for c in process.net_connections("unix"))
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.slow
def test_replica_goes_away_and_comes_back(servers: PostgresObservatory, ppd: Ppd) -> None:
    """Visits go on by the primary; operators are told; it is read again after a rest."""
    database, begin = ppd.folder.name, ppd.log.stat().st_size

    def log() -> str:
        return ppd.log.read_bytes()[begin:].decode()

    ppd.good_visit("before", 2)
    await_export(ppd, "before", 2)
    assert ppd.status()["health"] == "ok"
    servers.replica.stop()
    try:
        ppd.good_visit("away", 3)
        wait_for(lambda: _AWAY in log(), 20.0, "the replica to be missed")
        missed = time.monotonic()
        await_export(ppd, "away", 3)
        told = ppd.command("ctl", "status").stdout
    finally:
        servers.replica.start()
    assert_told(ppd)
    assert "\n  replica: The central repo " in told
    servers.replica.wait_until_caught_up()
    servers.replica.reset_statements(database)
    ppd.good_visit("resting", 4)
    await_export(ppd, "resting", 4)
    if time.monotonic() < missed + 0.8 * reading._REST_SECONDS:
        assert servers.replica.statements(database) == 0, "it is left alone for a while"
    time.sleep(max(0.0, missed + _LONGEST_REST - time.monotonic()))
    ppd.good_visit("back", 5)
    await_export(ppd, "back", 5)
    assert servers.replica.statements(database) > 5
    assert (log().count(_AWAY), log().count(_BACK)) == (1, 1)
    assert (ppd.status()["health"], ppd.status()["faults"]) == ("ok", [])


@pytest.mark.slow
def test_start_without_replica_is_told_at_once(alone: Ppd) -> None:
    assert_told(alone)
    scrape = Scrape(alone.command("ctl", "metrics").stdout)
    assert firing([scrape, scrape]) == {"PpdReplicaTrouble"}


@pytest.mark.slow
def test_start_without_replica(alone: Ppd) -> None:
    assert _AWAY in alone.log.read_text()
    alone.good_visit("alone", 6)
    await_export(alone, "alone", 6)
    assert_told(alone)


@pytest.mark.slow
def test_central_is_away_altogether(servers: PostgresObservatory, alone: Ppd) -> None:
    """Neither primary nor replica: it is said, somebody is woken, and it is over when the primary is back."""

    def told() -> Scrape | None:
        scrape = Scrape(alone.command("ctl", "metrics").stdout)
        return scrape if scrape.value("ppd_fault", component="central") else None

    servers.primary.stop()
    try:
        assert alone.submit(groupId="nowhere", detector=3).ok
        scrape = wait_for(told, 90.0, "central to be missed")
        assert "PpdCentralAway" in firing([scrape, scrape])
    finally:
        servers.primary.start()
    wait_for(lambda: not told(), 60.0, "central to be back")
    assert alone.command("ctl", "cancel", "nowhere", "--yes").returncode == 0
    alone.await_state("nowhere", failed=1)


def assert_told(ppd: Ppd) -> None:
    """The replica is what is wrong, and the only thing."""
    status = ppd.status()
    assert [f.partition(":")[0] for f in status["faults"]] == ["replica"]
    assert status["health"] == "trouble"
