"""An operator has things tried again, and looks at what ppd has in hand: nothing is made twice by it.

One ppd for all: a visit of which each detector meets another fate, and a second with a dead letter.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from crash_evidence import End, Visit
from crash_site import DETECTORS, RETRIES, CrashSite
from metrics_support import Scrape
from observatory import wait_for

from ppd.cli import ctl

pytestmark = pytest.mark.night

_CANCELLED, _KILLED, _STORED, _GOOD, _ASIDE, _LATER = range(6)


class _Operator:
    """Types commands."""

    def __init__(self, site: CrashSite, capsys: pytest.CaptureFixture[str]):
        self._site = site
        self._capsys = capsys

    def __call__(self, *words: str, code: int = 0) -> str:
        found = ctl.main([*words, "--config", str(self._site.config)])
        said = self._capsys.readouterr()
        assert found == code, said.out + said.err
        return said.out + said.err

    def json(self, *words: str, code: int = 0) -> Any:
        found = ctl.main([*words, "--json", "--config", str(self._site.config)])
        said = self._capsys.readouterr()
        assert found == code, said.out + said.err
        return json.loads(said.out)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashSite]:
    site = CrashSite(tmp_path_factory.mktemp("again"))
    try:
        site.initialize()
        site.start()
        yield site
        assert site.stop() == 0
        assert [f for visit in site.visits for f in site.evidence.faults(visit)] == []
        assert site.evidence.orphans() == set()
        assert not any(site.leftovers().values()), site.leftovers()
    finally:
        site.close()


@pytest.fixture
def operator(
    site: CrashSite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> _Operator:
    monkeypatch.setenv("COLUMNS", "200")
    return _Operator(site, capsys)


@pytest.fixture(scope="module")
def visit(site: CrashSite) -> Visit:
    """Announced for all but the last of its detectors."""
    visit = site.plan(range(_LATER + 1))
    site.visits.append(visit)
    message = visit.plan.message()
    nobody = site.client.submit(message, [50])
    assert (nobody.ok, nobody.code) == (False, "malformed")
    site.arm("child.raw-ingested", visit.subject(_KILLED))
    site.arm("child.pipeline-ended", visit.subject(_STORED))
    reply = site.client.submit(message, range(_LATER))
    assert reply.result["detectors"] == list(range(_LATER))
    return visit


def _deliver(site: CrashSite, visit: Visit, *detectors: int) -> None:
    for detector in detectors:
        (delivery,) = visit.raws[detector].deliveries
        site.drop(delivery.data, detector, visit.group, visit.plan.exposure)


def _await(site: CrashSite, visit: Visit, detector: int, *states: str) -> End:
    def there() -> End | None:
        end = site.evidence.ends(visit)[detector]
        return end if end.state in states else None

    return wait_for(there, 60.0, f"detector {detector} to be {states}: {site.evidence.ends(visit)}")


def test_what_failed(site: CrashSite, visit: Visit, operator: _Operator) -> None:
    """By itself, by death upon death, when it had stored: the last has outputs, and is left alone."""
    _deliver(site, visit, _KILLED, _STORED, _GOOD)
    for attempt in range(RETRIES + 1):
        site.await_hits(["child.raw-ingested"])
        if attempt < RETRIES:
            site.arm("child.raw-ingested", visit.subject(_KILLED))
    site.await_hits(["child.pipeline-ended"])
    for detector in (_CANCELLED, _ASIDE):
        _await(site, visit, detector, "ready")
    assert "it is at work (ready)" in operator("retry", visit.group, str(_CANCELLED), code=1)
    operator("cancel", visit.group, "--detectors", f"{_CANCELLED},{_ASIDE}", "--yes")
    for detector in (_CANCELLED, _KILLED, _STORED, _ASIDE):
        _await(site, visit, detector, "failed")
    assert _await(site, visit, _GOOD, "exported").attempt == 1
    # One raw comes before it is tried again, when nobody waits for it; the killed one's came long ago.
    _deliver(site, visit, _CANCELLED)
    wait_for(lambda: site.counts().get("raws_too_late"), 20.0, "the raw to be seen")
    said = operator.json(
        "retry", visit.group, "--detectors", f"0-{_GOOD}", "--reason", "calib certified", code=1
    )
    assert said["tried_again"] == [_CANCELLED, _KILLED]
    assert said["refused"][str(_GOOD)] == "it was exported"
    assert "outputs of it were exported: they would be made twice" in said["refused"][str(_STORED)]
    assert "it was not accepted" in operator("retry", visit.group, "8", code=1)
    assert f"tried again: detectors {_ASIDE}" in operator("retry", visit.group, "--detectors", f"{_ASIDE}")
    for detector, attempt in ((_CANCELLED, 2), (_KILLED, RETRIES + 2)):
        assert _await(site, visit, detector, "exported", "failed") == End("exported", attempt, "")
    assert site.counts()["retries_asked"] == 3
    # Its first end is what counts for the service level.
    assert operator.json("show", visit.group, str(_KILLED))["line"]["alerts"] == "never"
    (told,) = operator.json("visits")["visits"]
    scrape = Scrape(operator("metrics"))
    for outcome in ("on_time", "late", "never"):
        assert scrape.value("ppd_alerts_total", outcome=outcome) == told["alerts"][outcome]
    assert told["alerts"]["never"] == 2
    shown = operator("show", visit.group, str(_KILLED))
    assert "retry_asked" in shown and "reason=calib certified" in shown


def test_only_the_journal_knows_it(site: CrashSite, visit: Visit, operator: _Operator) -> None:
    """After a start; its raw came when nobody was there. Others are announced anew by it."""
    _await(site, visit, _ASIDE, "ready")
    operator("cancel", visit.group, "--yes")
    _await(site, visit, _ASIDE, "failed")
    assert site.stop() == 0
    _deliver(site, visit, _ASIDE, _LATER)
    site.start()
    assert visit.group not in operator("visits", "--groups")
    assert "The journal has no visit 'nobody' of the nights from" in operator("retry", "nobody", code=1)
    assert f"tried again: detectors {_ASIDE}" in operator("retry", visit.group, str(_ASIDE))
    # Of the camera's other detectors no raw comes.
    some = f"{_STORED},{_LATER}"
    replayed = operator.json("submit", "--replay", visit.group, "--detectors", some, code=1)
    assert replayed["accepted"] == [_LATER]
    assert list(replayed["refused"]) == [str(_STORED)]
    ends = site.await_end(visit)
    assert ends[_ASIDE] == End("exported", 3, "")
    assert ends[_LATER] == End("exported", 1, "")
    assert (ends[_STORED].state, ends[_GOOD].attempt) == ("failed", 1)
    replay = ("submit", "--replay", visit.group)
    assert "it was exported" in operator(*replay, "--detectors", f"{_LATER}", code=1)


def test_what_the_apdb_has(site: CrashSite, operator: _Operator) -> None:
    """Outputs that somebody has thrown away are not made again: the APDB has them."""
    visit = site.plan([1])
    site.arm("exporter.manifest-read")
    site.play(visit)
    site.await_hits(["exporter.manifest-read"])
    (entry,) = site.ready()
    file = next(p for p in sorted(entry.iterdir()) if p.suffix == ".fits")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    site.evidence.dead_letters.add(entry.name)
    _await(site, visit, 1, "failed")
    refused = operator("retry", visit.group, code=1)
    assert f"ppdctl dead-letters retry {entry.name}" in refused
    stored = site.evidence._stores(visit, 1)
    operator("dead-letters", "drop", entry.name, "--yes")
    assert "tried again: detectors 1" in operator("retry", visit.group)
    wait_for(lambda: site.evidence.ends(visit)[1].attempt == 2, 20.0, "another attempt")
    end = _await(site, visit, 1, "failed", "exported")
    assert end.state == "failed"
    assert "the APDB has sources of visit" in end.reason
    assert site.evidence._stores(visit, 1) == stored
    assert site.evidence.faults(visit) == []
    # Of nights that are not kept any more the journal may have forgotten what forbids it.
    journal = site.settings.state_dir / "journal.sqlite3"
    with contextlib.closing(sqlite3.connect(journal, timeout=10.0, isolation_level=None)) as db:
        db.execute("UPDATE visit SET day_obs=20200101 WHERE group_name=?", (visit.group,))
    assert f"no visit '{visit.group}' of the nights from" in operator("retry", visit.group, code=1)


def test_visits(site: CrashSite, visit: Visit, operator: _Operator) -> None:
    first, last = operator.json("visits")["visits"]
    assert (first["group"], first["states"], first["over"]) == (visit.group, {"exported": 2}, True)
    # That of which no raw had come before it was cancelled is not judged for its second try.
    assert (sum(first["alerts"].values()), first["alerts"]["not_judged"] >= 1) == (2, True)
    assert (last["states"], last["again"]) == ({"failed": 1}, 1)
    shown = operator("visits")
    assert visit.group in shown and "exported 2" in shown and f"{visit.plan.ra:.3f}" in shown
    assert operator("visits", "--groups", "--last", "1") == f"{last['group']}\n"


def test_cache(site: CrashSite, operator: _Operator) -> None:
    """What nobody holds goes, and comes again with the visit that needs it; what is pinned stays."""
    types = {t["name"]: t for t in operator.json("cache", "show")["types"]}
    held = types["bias"]["datasets"]
    assert 1 < held <= DETECTORS
    assert types["bias"]["bytes"] > 1000
    assert "bias" in operator("cache", "show")
    assert operator("cache", "pin", "bias") == "pinned: bias\n"
    assert "'bias' is pinned" in operator("cache", "evict", "bias", "--yes", code=1)
    assert "nothing of 'nonsense'" in operator("cache", "evict", "nonsense", "--yes", code=1)
    assert "No pipeline has" in operator("cache", "pin", "nonsense", code=1)
    assert "say --yes" in operator("cache", "evict", "--all", code=2)
    gone = operator.json("cache", "evict", "--all", "--yes")
    left = {t["name"]: t["datasets"] for t in gone["types"]}
    assert left["bias"] == held
    assert gone["evicted"] > 0
    assert left.get("flat", 0) == types["flat"]["leased"]
    assert operator("cache", "unpin", "bias") == "pinned: nothing\n"
    visit = site.plan([3])
    site.play(visit)
    assert site.await_end(visit)[3] == End("exported", 1, "")


def test_status_again_and_again(operator: _Operator, capsys: pytest.CaptureFixture[str]) -> None:
    shown = operator("status", "--watch", "--looks", "2", "--every", "0.1")
    assert shown.count("detector-visits: ") == 2
    assert "\x1b" not in shown
    lines = operator("status", "--watch", "--looks", "3", "--every", "0.1", "--json").splitlines()
    assert [json.loads(line)["health"] for line in lines] == ["ok"] * 3


def test_status_on_a_terminal(site: CrashSite) -> None:
    """On a screen of its own, which it leaves as it was at Ctrl-C."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "ppd.cli.ctl", "status", "--watch", "--every", "0.1", "--config", site.config],
        stdout=slave,
        env={**site.environ, "TERM": "xterm"},
    )
    os.close(slave)
    try:
        shown = b""
        while shown.count(b"detector-visits: ") < 3:
            assert select.select([master], [], [], 30.0)[0], shown
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20.0) == 0
        shown += os.read(master, 65536)
    finally:
        process.kill()
        process.wait(10.0)
        os.close(master)
    assert shown.startswith(b"\x1b[?1049h")
    assert b"\x1b[?1049l" in shown
    assert b"\x1b[1;32mok" in shown
