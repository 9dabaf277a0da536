"""The PostgreSQL servers of other tests do what they say; what a Butler may do on a hot standby."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2  # type: ignore[import-untyped]
import pytest
import sqlalchemy.exc
from lsst.daf.butler import Butler, Config, DataCoordinate, DatasetAssociation, DatasetRef
from lsst.daf.butler.registry.interfaces import ReadOnlyDatabaseError
from lsst.sphgeom import Angle, Circle
from observatory import TESTS, wait_for
from postgres_support import PostgresServer, make_butler_repo, primary, replica, replica_config
from repo_support import DEFAULTS, INSTRUMENT, NEW, TRACTS, certify, make_grid_repo, position, put, span

_DEATH = """
import os, signal, sys
from pathlib import Path
from postgres_support import primary
with primary(Path(sys.argv[1])) as server:
    print(server.pid, server.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A primary with a database of one table."""
    with primary(tmp_path_factory.mktemp("primary")) as server:
        server.create_database("some")
        server.execute("CREATE TABLE t (i int)", "some")
        yield server


@pytest.fixture(scope="module")
def second(first: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Its replica."""
    with replica(first, tmp_path_factory.mktemp("replica")) as server:
        yield server


@pytest.fixture(scope="module")
def grid(first: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Butler repo on the primary, with a few datasets."""
    root = tmp_path_factory.mktemp("repos") / "grid"
    first.create_database("grid")
    config = Config()
    config["registry", "db"] = first.url("grid")
    make_grid_repo(root, config)
    with Butler.from_config(str(root), writeable=True) as butler:
        for detector in range(9):
            certify(butler, put(butler, "bias", "biases", detector=detector), 61000.0, 62000.0)
        put(butler, "template", "templates", tract=3, patch=14, band="r")
    return root


def rows(server: PostgresServer) -> int:
    """Number of rows of the table."""
    return server.execute("SELECT count(*) FROM t", "some")[0][0]


def joined(butler: Butler, number: int) -> list[DatasetRef]:
    """Query with many data IDs, nine of which there are."""
    ids = [
        DataCoordinate.standardize(instrument=INSTRUMENT, detector=d, universe=butler.dimensions)
        for d in range(number)
    ]
    with butler.query() as query:
        return list(query.join_data_coordinates(ids).datasets("bias", "biases"))


def test_replica_follows(first: PostgresServer, second: PostgresServer) -> None:
    before = rows(first)
    first.execute("INSERT INTO t VALUES (1)", "some")
    second.wait_until_caught_up()
    assert rows(second) == before + 1
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        second.execute("INSERT INTO t VALUES (1)", "some")


def test_replica_lags(first: PostgresServer, second: PostgresServer) -> None:
    second.wait_until_caught_up()
    before = rows(second)
    second.pause_replay()
    first.execute("INSERT INTO t VALUES (1)", "some")
    with pytest.raises(AssertionError, match="in vain"):
        second.wait_until_caught_up(0.3)
    assert (rows(first), rows(second)) == (before + 1, before)
    second.resume_replay()
    second.wait_until_caught_up()
    assert rows(second) == before + 1


def test_both_come_back(first: PostgresServer, second: PostgresServer) -> None:
    before, port, pid = rows(first), first.port, first.pid
    first.stop()
    assert first.pid is None
    assert pid is not None and not psutil.pid_exists(pid)
    with pytest.raises(psycopg2.OperationalError):
        rows(first)
    assert rows(second) == before, "a replica answers alone"
    first.start()
    assert (rows(first), first.port) == (before, port)
    second.stop()
    first.execute("INSERT INTO t VALUES (1)", "some")
    second.start()
    second.wait_until_caught_up()
    assert rows(second) == before + 1


def test_statements_are_counted(first: PostgresServer) -> None:
    engine = sqlalchemy.create_engine(first.url("some", application="tested"))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        first.reset_statements("some")
        for number in range(3):
            connection.execute(sqlalchemy.text("SELECT\n :n"), {"n": number})
        rows(first)
        assert first.statements("some", "tested") == first.statements("some") == 3
        connection.rollback()
        assert first.logged_statements("some")[-1] == "ROLLBACK"
        assert first.statements("postgres", "tested") == 0
    engine.dispose()


def test_connections_are_terminated(first: PostgresServer) -> None:
    engine = sqlalchemy.create_engine(first.url("some", application="tested"))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        assert first.connections("some", "tested") == first.connections("some") == 1
        assert first.connections("some", "other") == first.terminate_all("some", "other") == 0
        assert first.terminate_all("some") == 1
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(sqlalchemy.text("SELECT 1"))
        connection.invalidate()
    engine.dispose()
    wait_for(lambda: first.connections("some") == 0, 5.0, "the connection to be gone")


def test_copied_database(first: PostgresServer) -> None:
    first.create_database("copy", template="some")
    assert first.execute("SELECT count(*) FROM t", "copy")[0][0] == rows(first)
    assert first.execute("SELECT count(*) FROM pg_extension WHERE extname = 'btree_gist'", "copy") == [(1,)]


def test_nothing_is_left(tmp_path: Path) -> None:
    with primary(tmp_path) as server, replica(server, tmp_path) as other:
        assert all(Path(f"/proc/{s.pid}").stat().st_uid != 0 for s in (server, other))
        processes = [q for s in (server, other) for q in family(s)]
        folders = [server.folder, other.folder]
    assert not any(f.exists() for f in folders)
    wait_for(lambda: not any(q.is_running() for q in processes), 5.0, "all processes to be gone")


def test_server_dies_with_pytest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DEATH, str(tmp_path)],
        env={"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    pid, folder = done.stdout.split()
    shutil.rmtree(folder)
    wait_for(lambda: not Path(f"/proc/{pid}/exe").exists(), 10.0, "the server to end")


def test_butler_on_primary(first: PostgresServer, tmp_path: Path) -> None:
    base = Config()
    base["datastore", "checksum"] = True
    make_butler_repo(first, "empty", tmp_path / "empty", base)
    with Butler.from_config(str(tmp_path / "empty"), writeable=True) as butler:
        butler.collections.register("run")
    with Butler.from_config(str(tmp_path / "empty")) as butler:
        assert list(butler.collections.query("*")) == ["run"]
    assert Config(str(tmp_path / "empty" / "butler.yaml"))["datastore", "checksum"] is True


@pytest.mark.parametrize("told", [True, False])
def test_butler_on_hot_standby(grid: Path, second: PostgresServer, tmp_path: Path, told: bool) -> None:
    """All kinds of query that ppd makes work; only temporary tables do not."""
    second.wait_until_caught_up()
    there = replica_config(grid, second, tmp_path / "there", temporary_tables=False if told else None)
    with Butler.from_config(str(there), writeable=False) as butler:
        refs = butler.query_datasets("bias", NEW, find_first=False)
        assert len(refs) == 9
        assert butler.get(refs[0])["of"] == "bias"
        assert (
            len(butler.query_datasets("bias", "biases", data_id={"detector": 3}, instrument=INSTRUMENT)) == 1
        )
        area = Circle(position(*TRACTS[3]), Angle.fromDegrees(2.0))
        with butler.query() as query:
            found = query.where("patch.region OVERLAPS area", bind={"area": area})
            assert len(list(found.datasets("template", DEFAULTS).with_dimension_records())) == 1
        with butler.query() as query:
            query = query.join_dataset_search("bias", NEW)
            query = query.where(query.expression_factory["bias"].timespan.overlaps(span(61500.0, 61501.0)))
            bias = butler.get_dataset_type("bias")
            fields = {"bias": {"dataset_id", "run", "collection", "timespan"}}
            result = query.general(bias.dimensions, dataset_fields=fields, find_first=False)
            assert len(list(DatasetAssociation.from_query_result(result, bias))) == 9
        assert len(joined(butler, 1000)) == 9
        # More data IDs than 1000 are uploaded to a temporary table, unless the
        # configuration says that there are none.  The error is not an
        # OperationalError, as one might think.
        if told:
            assert len(joined(butler, 1001)) == 9
        else:
            with pytest.raises(sqlalchemy.exc.InternalError, match="CREATE TABLE in a read-only"):
                joined(butler, 1001)
        with (
            pytest.raises(ReadOnlyDatabaseError if told else sqlalchemy.exc.InternalError),
            butler.query() as query,
        ):
            query.join_dimensions(["patch"]).materialize()
        assert len(butler.query_datasets("bias", NEW, find_first=False)) == 9, "an error harms nothing"


def test_butler_survives_lost_connections(grid: Path, second: PostgresServer, tmp_path: Path) -> None:
    second.wait_until_caught_up()
    there = replica_config(grid, second, tmp_path / "there")
    with Butler.from_config(str(there), writeable=False) as butler:
        assert second.terminate_all("grid") == 1
        assert len(butler.query_datasets("bias", "biases")) == 9, "not noticed between queries"
        with pytest.raises(sqlalchemy.exc.OperationalError), butler.query() as query:
            list(query.datasets("bias", "biases"))
            assert second.terminate_all("grid") == 1
            list(query.datasets("template", "templates"))
        # Who catches it within gets another error instead, which is no DBAPIError.
        with pytest.raises(sqlalchemy.exc.PendingRollbackError), butler.query() as query:
            list(query.datasets("bias", "biases"))
            assert second.terminate_all("grid") == 1
            with contextlib.suppress(sqlalchemy.exc.OperationalError):
                list(query.datasets("template", "templates"))
        assert len(butler.query_datasets("bias", "biases")) == 9
        second.stop()
        with pytest.raises(sqlalchemy.exc.OperationalError):
            butler.query_datasets("bias", "biases")
        second.start()
        # It has gone back in time: it answers before it has replayed again what it had.
        second.wait_until_caught_up()
        assert len(butler.query_datasets("bias", "biases")) == 9


def family(server: PostgresServer) -> list[psutil.Process]:
    """All processes of a server."""
    assert server.pid is not None
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]
