"""No secret is told: all that a ppd with marked ones has said and written is looked at."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from observatory import Observatory, Ppd, wait_for
from postgres_observatory import PostgresObservatory, postgres_observatory

# One of each kind, so that it is known which one got out.
URL_PASSWORD = "marked-url-password-1"
S3_URL_PASSWORD = "marked-s3-url-password-2"
TRACE_PASSWORD = "marked-trace-password-3"
S3_SECRET = "marked-s3-secret-key-4"
S3_SESSION = "marked-s3-session-token-5"
PG_PASSWORD = "marked-pg-password-6"
AUTH_PASSWORD = "marked-auth-password-7"
PAGE_TOKEN = "marked-page-token-8"
MARK = b"marked-"


@pytest.fixture
def servers(observatory: Observatory, tmp_path: Path) -> Iterator[PostgresObservatory]:
    """The observatory on PostgreSQL."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    with postgres_observatory(observatory, folder) as servers:
        yield servers


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.slow
@pytest.mark.night
def test_none_is_told(servers: PostgresObservatory, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    token = tmp_path / "token"
    token.write_text(PAGE_TOKEN)
    token.chmod(0o600)
    nobody, page = _free_port(), _free_port()
    ppd = Ppd(
        servers,
        site,
        repo_retry_delay=0.3,
        export_age=0.2,
        log_level="DEBUG",
        stop_grace=1.0,
        drain_grace=1.0,
        # Nobody answers there: what is said of that has the URL.
        raw_bucket="raws",
        s3_endpoint=f"http://ppd:{S3_URL_PASSWORD}@127.0.0.1:{nobody}",
        raw_microservice=f"http://ppd:{URL_PASSWORD}@127.0.0.1:{nobody}/presence",
        trace_endpoint=f"http://ppd:{TRACE_PASSWORD}@127.0.0.1:{nobody}/v1/traces",
        http_listen=f"127.0.0.1:{page}",
        http_token_file=str(token),
    )
    _put_password(ppd.central / "butler.yaml")
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKPPD",
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_SESSION_TOKEN": S3_SESSION,
        "PGPASSWORD": PG_PASSWORD,
        "LSST_DB_AUTH_CREDENTIALS": json.dumps(
            [{"url": "postgresql://*.example.org/*", "username": "ppd", "password": AUTH_PASSWORD}]
        ),
    }
    ppd.environ = {**ppd.environ, **secrets}
    said: list[str] = []
    try:
        ppd.initialize()
        ppd.start()
        assert ppd.process is not None
        ppd.good_visit("one", 2)
        ppd.await_state("one", exported=1)
        running = [psutil.Process(ppd.process.pid), *psutil.Process(ppd.process.pid).children(recursive=True)]
        said += [" ".join(p.cmdline()) for p in running]
        ppd.good_visit("two", 3)
        wait_for(lambda: ppd.states("two") == {"handed_over": 1} or _started(ppd), 60.0, "work to begin")
        servers.primary.stop()
        ppd.submit(groupId="three", detector=4)
        wait_for(lambda: any("central" in f for f in ppd.status()["faults"]), 60.0, "central to be missed")
        for command in (
            ("status", "--json"),
            ("config", "show", "--json"),
            ("config", "show"),
            ("doctor",),
            ("metrics",),
            ("visits", "--json"),
            ("history", "--json"),
            ("show", "one", "2"),
            ("logs", "one", "2"),
            ("inputs", "one"),
        ):
            done = ppd.command("ctl", *command)
            said += [done.stdout, done.stderr]
        for path in ("api/status", "api/focal-plane", "metrics", "api/detector/2", "api/logs/one/2"):
            with urllib.request.urlopen(f"http://127.0.0.1:{page}/{path}", timeout=10.0) as answer:
                said.append(answer.read().decode())
        for given in (PAGE_TOKEN, "wrong"):
            said.append(_steer(page, given))
    finally:
        ppd.close()
        servers.primary.start()
    text = ppd.log.read_text()
    # It has failed at all of it, and said where.
    for place in (f"127.0.0.1:{nobody}", "s3_endpoint", "presence"):
        assert place in text or any(place in s for s in said), place
    assert "***" in text or any("***" in s for s in said)
    told = {f"said {i}": s.encode() for i, s in enumerate(said)} | {"log": text.encode()}
    told |= {
        str(p): p.read_bytes() for p in _files(site) if p not in (ppd.config, ppd.central / "butler.yaml")
    }
    assert len(told) > 30
    assert {name: _around(data) for name, data in told.items() if MARK in data} == {}


def _started(ppd: Ppd) -> bool:
    return bool(ppd.states("two")) and ppd.states("two") != {"accepted": 1}


def _put_password(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    url = config["registry"]["db"]
    scheme, rest = url.split("://", 1)
    user, rest = rest.split("@", 1)
    config["registry"]["db"] = f"{scheme}://{user.split(':')[0]}:{URL_PASSWORD}@{rest}"
    path.write_text(yaml.safe_dump(config))


def _steer(port: int, token: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/pause",
        json.dumps({"detectors": [7], "reason": "a test"}).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            return str(answer.read())
    except urllib.error.HTTPError as e:
        return str(e.read())


def _files(folder: Path) -> Iterator[Path]:
    for above, _, names in os.walk(folder):
        yield from (p for p in (Path(above) / name for name in names) if p.is_file())


def _around(data: bytes) -> bytes:
    at = data.index(MARK)
    return data[max(0, at - 150) : at + 80]


_KNOWN = """
from ppd.logs import know_secrets, mask_secrets
know_secrets({
    "PGPASSWORD": "pass/word@1",
    "SHORT_TOKEN": "the",
    "HOME": "/home/observer",
    "AWS_SECRET_ACCESS_KEY": "pass/word@1-and-more",
    "AWS_ACCESS_KEY_ID": "AKOBSERVATORY",
    "LSST_DB_AUTH_CREDENTIALS": '[{"password": "in-a-list"}]',
})
print(mask_secrets("the header {'x': 'pass/word@1-and-more'} of pass/word@1, in-a-list, AKOBSERVATORY"))
"""


def test_what_is_known_is_hidden() -> None:
    """Whatever form it has; in a process of its own, as what is known stays so."""
    done = subprocess.run(
        [sys.executable, "-c", _KNOWN], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "the header {'x': '***'} of ***, ***, AKOBSERVATORY"
