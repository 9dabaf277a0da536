"""What ``ppdctl status`` shows: on one screen, with colours where they are seen, and quickly."""

from __future__ import annotations

import copy
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ppd._config_file import find_sockets
from ppd.cli import status_command
from ppd.config import load_settings

_STATUS: dict[str, Any] = {
    "health": "trouble",
    "faults": ["journal: disk full", *(f"raws from /raws/{n}: gone" for n in range(4))],
    "pid": 4711,
    "instrument": "LSSTCam",
    "deployment": "abc1234",
    "deployments": [{"generation": 0, "id": "abc1234", "detector_visits": 189}],
    "paused": {"all": None, "detectors": {"94": {"since": 0.0, "reason": "its bias jumps"}}},
    "uptime": 4000.0,
    "detector_visits": {"ready": 180, "running": 9, "exported": 9261, "failed": 0},
    "visits": [
        {
            "group": f"2026-11-25T04:{n:02d}:59.000",
            "filter": "r_57",
            "accepted": 60.0 * n,
            "states": {"exported": 189} if n < 49 else {"ready": 180, "running": 8, "failed": 1},
            "alerts": {"late": n % 3, "expected_late": 0},
        }
        for n in range(50)
    ],
    "slots": {"used": 189, "total": 400},
    "processors": {"used": 9, "total": 9, "queued": 171},
    "children": [{"phase": "main" if n < 9 else "queued_main"} for n in range(189)],
    "cache": {"datasets": 3012, "bytes_held": 7.5e9},
    "prefetch": {"pointings": 0, "fetched": 1200},
    "inherited": {"datasets": 600, "bytes": 2e9},
    "spool": {"entries": 12, "bytes": 3.4e8},
    "loop": {"longest_minute": 0.04, "longest": 0.2},
    "raws_waiting": 3,
    "visit_sources": [
        {
            "name": "redis://prompt-redis, stream instrument:lsstcam, group ppd",
            **{"trouble": None, "held": "ppd is draining", "lag": 2, "pending": None, "delay": 0.1},
            **{"read": 9261, "confirmed": 9260, "claimed": 0, "set_aside": 1, "postponed": 0, "gone": 0},
        }
    ],
    "counts": {f"something_counted_{n}": 1000 * n for n in range(30)},
    "errors": [
        {"time": 3600.0, "kind": "failed", "what": f"g/{n}#1", "message": "no\x1b[2J stars\n" * 20}
        for n in range(9)
    ],
}


def _lines(height: int, width: int, error: str = "", **changes: Any) -> list[str]:
    status = {**copy.deepcopy(_STATUS), **changes}
    return status_command._paint(status_command._fit(status, error, height, width))


@pytest.mark.parametrize(("height", "width"), [(24, 80), (50, 200), (12, 40), (24, 400)])
def test_one_screen(height: int, width: int) -> None:
    """The last visit and the last error are on it, whatever else there is."""
    lines = _lines(height, width)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert lines[0].startswith("trouble  LSSTCam")
    if height > 12:
        assert "journal: disk full" in text and "and 3 more" in text
        assert "children: queued_main 180, main 9"[:width] in text
        assert "04:49:59" in text
        assert "g/8#1" in text
    assert "\x1b" not in text


def test_as_many_visits_as_there_is_room_for() -> None:
    quiet = _lines(24, 80, faults=[], errors=[], counts={"late": 3})
    assert sum("2026-11-25T" in line for line in quiet) > 10
    assert len(quiet) == 24


def test_no_answer_for_a_while() -> None:
    assert "No ppd answers" in _lines(24, 80, "No ppd answers at /s within 5 s.")[0]


_SHOW = """
import json, sys
from ppd.cli import status_command
print(chr(10).join(status_command._paint(status_command._fit(json.loads(sys.argv[1]), "", 24, 80))))
"""


@pytest.mark.parametrize(
    ("changes", "coloured"),
    [({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours(changes: dict[str, str], coloured: bool) -> None:
    """On a terminal, unless it is told not to."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    try:
        subprocess.run(
            [sys.executable, "-c", _SHOW, json.dumps({**_STATUS, "visits": [], "counts": {}, "errors": []})],
            env={"TERM": "xterm", **environment, **changes},
            stdout=slave,
            timeout=60,
            check=True,
        )
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert ("\x1b[1;31mtrouble\x1b[0m" in shown) is coloured
    assert ("\x1b" in shown) is coloured


_REST = "instrument: DemoCam\ncentral_repo: x\nmain_pipelines: [{pipelines: [Isr.yaml]}]\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("socket_dir: /run/ppd\nstate_dir: /var/lib/ppd\n", "/run/ppd"),
        ("state_dir: /var/lib/ppd  # where it stays\n", "/var/lib/ppd/sockets"),
        ("socket_dir:   /run/ppd   \n", "/run/ppd"),
        ("socket_dir: relative\n", None),
        ("socket_dir: /run/$USER\n", None),
        ("socket_dir: '/run/ppd'\n", None),
        ("'socket_dir': /run/ppd\nstate_dir: /var/lib/ppd\n", None),
        ("socket_dir: /run/ppd\nsocket_dir: /run/other\n", None),
        ("state_dir: ~/ppd\n", None),
        ("", None),
    ],
)
def test_sockets_at_a_glance(tmp_path: Path, text: str, found: str | None) -> None:
    """Only what is beyond doubt; and then it is what the settings say."""
    path = tmp_path / "ppd.yaml"
    path.write_text(_REST + text)
    glance = find_sockets(path)
    assert glance == (None if found is None else Path(found))
    if glance is not None:
        assert load_settings(path, {}).socket_dir == glance
    assert find_sockets(tmp_path / "none.yaml") is None


def test_the_start_is_quick(tmp_path: Path) -> None:
    """By what it does not import: the time itself depends on who else is at work."""
    program = (
        "import sys; from ppd.cli import ctl;"
        f"code = ctl.main(['status', '--socket-dir', {str(tmp_path)!r}, '--timeout', '0.01']);"
        "print(code, *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    code, *modules = done.stdout.split()
    assert code == "3"
    assert not set(modules) & {"pydantic", "rich", "yaml", "lsst", "numpy", "sqlite3", "logging"}
