"""The status page as people see it: in a real Chromium, with a real ppd, and with 189 detectors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observatory import Observatory, Ppd, running, sleepers, wait_for, write_sleepy
from page_support import StandIn, make_overview, make_setup, make_status, make_visit, site

from bench.browser import Browser, find_chromium, open_browser
from ppd.instruments.lsstcam import focal_plane
from ppd.web.advice import REMEDIES
from ppd.web.door import Limits

pytestmark = [
    pytest.mark.night,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed here"),
]

# Text and what is behind it, wherever both are known; those below a contrast of 4.5.
_FAINT = """(() => {
  const parts = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (c) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = c.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const e of document.querySelectorAll("body *:not(svg *)")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest(".unseen, noscript")) continue;
    const found = ratio(parts(getComputedStyle(e).color), behind(e));
    if (found < 4.5) faint.push([found.toFixed(2), e.tagName, e.className, e.textContent.slice(0, 40)]);
  }
  for (const g of document.querySelectorAll(".detector")) {
    const [area, sign] = [g.querySelector(".area"), g.querySelector(".sign")];
    if (!sign.textContent) continue;
    const found = ratio(parts(getComputedStyle(sign).fill), parts(getComputedStyle(area).fill));
    if (found < 4.5) faint.push([found.toFixed(2), g.dataset.kind]);
  }
  return faint;
})()"""


# Signs, numbers and names that are larger than their detector.
_TOO_LARGE = """[...document.querySelectorAll(".detector")].filter((g) => {
  const room = g.querySelector(".area").getBBox();
  const texts = [...g.querySelectorAll("text")].filter((t) => t.textContent && t.checkVisibility());
  return texts.some((t) => t.getBBox().width > room.width || t.getBBox().height > room.height);
}).map((g) => g.ariaLabel)"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """What the console complains of fails the test."""
    chromium.complaints.clear()
    yield chromium
    chromium.see("1")
    # That nobody listened while ppd was away is what was tested.
    assert [c for c in chromium.complaints if "ERR_" not in c] == []
    chromium.go("about:blank")


def _kind(browser: Browser, detector: int) -> str:
    return str(browser.see(f"document.querySelector('[data-id=\"{detector}\"]')?.dataset.kind"))


def _await_kind(browser: Browser, detector: int, kind: str, timeout: float = 60.0) -> None:
    wait_for(lambda: _kind(browser, detector) == kind, timeout, f"detector {detector} to be {kind}")


def _press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    folder = tmp_path_factory.mktemp("seen")
    main = write_sleepy(folder / "sleepy", 120.0)
    listen = f"127.0.0.1:{_port()}"
    with running(observatory, folder, main=(main,), image_timeout=200.0, http_listen=listen) as ppd:
        yield ppd


def test_a_visit_and_a_restart(ppd: Ppd, browser: Browser) -> None:
    """Colours follow the visit; a choice tells the history; a killed ppd is said to be so, and comes back."""
    address = wait_for(lambda: ppd.status()["web"]["address"], 20.0, "the page")
    browser.resize(1400, 900)
    browser.go(address)
    browser.await_sight("document.querySelectorAll('.detector').length === 9")
    browser.await_sight("!document.body.classList.contains('silent')")
    assert _kind(browser, 4) == "none"
    ppd.good_visit("seen", 4)
    assert ppd.submit(groupId="seen", detector=5).ok
    _await_kind(browser, 4, "running")
    label = browser.see("document.querySelector('[data-id=\"4\"]').getAttribute('aria-label')")
    assert label.startswith("detector 4 R00_S11: running, main pipeline, ")
    _await_kind(browser, 5, "ready")
    assert "ready" in browser.await_sight("document.getElementById('legend').textContent")
    wait_for(lambda: sleepers(ppd.config.parent / "sleepy"), 60.0, "the task to sleep")
    (ppd.config.parent / "sleepy" / "wake").touch()
    _await_kind(browser, 4, "exported")
    assert ppd.command("ctl", "cancel", "seen", "--reason", "satellite", "--yes").returncode == 0
    _await_kind(browser, 5, "failed")
    browser.await_sight("document.querySelector('#verdict').dataset.level === 'warning'")
    assert "satellite" in browser.see("document.getElementById('troubled').textContent")
    assert "ppdctl show seen 5" in browser.see("document.getElementById('troubled').textContent")
    for colours in ("seconds", "state"):
        browser.see(f"document.querySelector('input[value={colours}]').click()")
        assert browser.see(_TOO_LARGE) == []
    _look_at_history(browser)
    _kill_and_restart(ppd, browser)


def _look_at_history(browser: Browser) -> None:
    """By the keyboard alone, as who can't use a mouse does."""
    browser.see("document.querySelector('[data-id=\"3\"]').focus()")
    _press(browser, "ArrowRight")
    assert browser.see("document.activeElement.dataset.id") == "4"
    _press(browser, "Enter")
    events = browser.await_sight(
        "document.getElementById('panel-events')?.querySelector('table')?.textContent"
    )
    assert "main start" in events
    assert "Inputs:" in browser.see("document.getElementById('panel-events').textContent")
    assert browser.see("document.querySelectorAll('#panel-events details:last-of-type tbody tr').length") > 2
    log = browser.await_sight("document.querySelector('#panel-log pre')?.textContent")
    assert "seen" in log
    assert browser.see("document.querySelector('#panel-title').textContent") == "Detector 4 R00_S11"
    _press(browser, "Escape")
    assert browser.see("document.getElementById('panel').hidden")
    assert browser.see("document.activeElement.dataset.id") == "4"


def _kill_and_restart(ppd: Ppd, browser: Browser) -> None:
    assert ppd.process is not None
    os.kill(ppd.process.pid, signal.SIGKILL)
    ppd.process.wait(10.0)
    browser.await_sight("document.body.classList.contains('silent')", 15.0)
    said = browser.await_sight("document.getElementById('silence').textContent")
    assert said.startswith("ppd does not answer since ")
    assert browser.see("document.getElementById('silence').checkVisibility()")
    ppd.start()
    browser.await_sight("!document.body.classList.contains('silent')", 30.0)
    assert not browser.see("document.getElementById('silence').checkVisibility()")
    # The new supervisor knows nothing of it; the journal does.
    _await_kind(browser, 4, "exported", 10.0)
    _await_kind(browser, 5, "failed", 10.0)


@contextlib.contextmanager
def _full_camera(folder: Path) -> Iterator[tuple[str, StandIn]]:
    """The page of a camera of 189 detectors, in all states that there are."""
    with tempfile.TemporaryDirectory(prefix="ppd-test-") as sockets:
        stand_in = StandIn(Path(sockets))
        stand_in.set(make_status(), _busy())
        stand_in.start()
        try:
            with site(make_setup(focal_plane(), Path(sockets), folder), Limits(burst=1000.0)) as there:
                yield there.address, stand_in
        finally:
            stand_in.stop()


def _busy() -> dict[str, Any]:
    now = time.time()
    states = ("exported", "handed_over", "running", "ready", "forked", "waiting", "failed")
    phases = {"running": "main", "ready": "queued_main", "forked": "preprocess"}
    group = "2026-11-28T01:02:03.456"
    detectors: dict[str, Any] = {}
    for d in focal_plane().detectors[:180]:
        state = states[d.id % 7] if d.id % 30 else "failed"
        entry = {"group": group, "state": state, "since": now - d.id % 50, "raw": now - 50 - d.id % 40}
        if state in phases:
            entry["phase"] = phases[state]
        if state == "failed":
            reason = "RuntimeError: no sources matched in a field of 3 stars"
            entry |= {"reason": reason, "failed": 1, "failed_group": group, "failed_reason": reason}
        detectors[str(d.id)] = entry
    detectors["188"] = {"paused": "paused since 2026-11-28 00:00:00 UTC: its bias jumps"}
    visits = [make_visit(f"2026-11-28T00:{n:02}:00.000", {"exported": 189}, now - 600 + n) for n in range(11)]
    late = {"late": 3, "expected_late": 2}
    visits.append(make_visit(group, {"exported": 60, "running": 60, "failed": 60}, now - 60, alerts=late))
    detectors["7"]["alerts"], detectors["9"]["alerts"] = "late", "expected_late"
    fault = {"component": "replica", "text": "replica: no answer"}
    return make_overview(detectors, visits, faults=[fault])


def _await_readable(browser: Browser) -> None:
    """See that no text is faint; colours change in a third of a second."""
    deadline = time.monotonic() + 3.0
    while (faint := browser.see(_FAINT)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert faint == []


def test_189_detectors(browser: Browser, tmp_path: Path) -> None:
    """All are there, told apart, in reach of the keyboard, and readable, on any screen and in any light."""
    with _full_camera(tmp_path) as (address, stand_in):
        browser.resize(1920, 1080)
        browser.go(address)
        browser.await_sight("document.querySelectorAll('.detector').length === 189")
        browser.await_sight("document.querySelectorAll('[data-kind=failed].detector').length > 20")
        shown = "new Set([...document.querySelectorAll('.detector')].map(g => {})).size"
        assert browser.see(shown.format("g.dataset.kind")) == 9
        assert browser.see(shown.format("g.querySelector('.sign').textContent")) == 9
        assert browser.see("document.querySelectorAll('.detector[tabindex=\"0\"]').length") == 1
        assert browser.see("[...document.querySelectorAll('.detector')].every(g => g.ariaLabel)")
        # Who is late, the supervisor has said; what helps, the component says.
        marked = "[...document.querySelectorAll('.detector.late')].map(g => g.dataset.id).join()"
        assert browser.see(marked) == "7,9"
        assert ", alerts late" in browser.see("document.querySelector('[data-id=\"7\"]').ariaLabel")
        assert "3 late, 2 will be late" in browser.see("document.getElementById('visits').textContent")
        assert REMEDIES["replica"].meaning in browser.see("document.getElementById('faults').textContent")
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            _await_readable(browser)
            browser.see("document.querySelector('input[value=seconds]').click()")
            browser.await_sight("document.querySelectorAll('[data-kind=step-over]').length > 20")
            _await_readable(browser)
            assert browser.see(_TOO_LARGE) == []
            browser.see("document.querySelector('input[value=state]').click()")
        for width in (400, 900, 1920):
            browser.resize(width, 900)
            assert browser.see("document.documentElement.scrollWidth") <= width
        stand_in.set(make_status(), make_overview({}, []))
        browser.await_sight("document.querySelectorAll('.detector[data-kind=none]').length === 189")
        stand_in.stop()
        browser.await_sight("document.getElementById('silence').checkVisibility()", 15.0)
        stand_in.start()
        browser.await_sight("!document.getElementById('silence').checkVisibility()", 15.0)
