"""The audit of what is installed: what differs from the lock, and what others know of it."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


class _Service(http.server.BaseHTTPRequestHandler):
    """Knows of a hole in any version of PyYAML, as the documented service would say it."""

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        queries = json.loads(self.rfile.read(length))["queries"]
        assert all(q["package"]["ecosystem"] == "PyPI" and q["version"] for q in queries)
        hole = {"vulns": [{"id": "GHSA-0000-test", "modified": "2026-01-01T00:00:00Z"}]}
        answer = {"results": [hole if q["package"]["name"] == "pyyaml" else {} for q in queries]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    """A list of holes."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join(5.0)


def _audit(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "audit", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_lock(tmp_path: Path) -> None:
    """What is no version, is not there or is another is told, even if the service is away."""
    lock = tmp_path / "lock.txt"
    lock.write_text("PyYAML==0.0.1\nno-such-package-ppd==1.0\nrequests>=2\ngit+https://example.org/x\n")
    code, _, told = _audit("--lock", str(lock), "--service", "http://127.0.0.1:1/")
    assert code == 1
    there = importlib.metadata.version("pyyaml")
    for text in (
        f"pyyaml: {there} is installed, 0.0.1 is locked",
        "no-such-package-ppd==1.0 is locked and not installed",
        "pins nothing by 'requests>=2'",
        "pins nothing by 'git+https://example.org/x'",
    ):
        assert text in told
    lock.write_text(f"PyYAML=={there}\n")
    code, said, told = _audit("--lock", str(lock), "--service", "http://127.0.0.1:1/")
    assert (code, told) == (0, "")
    assert "NOT asked for known holes" in said


def test_what_is_known_is_told(service: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("".join(f"{n}=={importlib.metadata.version(n)}\n" for n in ("PyYAML", "requests")))
    arguments = ("--lock", str(lock), "--service", service)
    code, said, told = _audit(*arguments)
    assert code == 1
    assert "pyyaml==" in told
    assert "has GHSA-0000-test" in told
    assert "requests==" not in told
    assert "2 packages, 1 known holes" in said
    assert _audit(*arguments, "--ignore", "GHSA-0000-test")[0] == 0
