"""Raws of LSST cameras: whose they are is in a file beside them, sooner or later, or in their header."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest
from observatory import wait_for

import ppd.sources.directory
from ppd.sources.directory import DirectorySource
from ppd.sources.keys import RawKey
from ppd.sources.raws import Candidate
from ppd.sources.sidecar import RawIdentity, read_header, read_sidecar, sidecar_path

DETECTORS = {"R22_S11": 94, "R22_S12": 95}
GROUP = "2025-05-22T05:18:32.763"
KEY = RawKey("LSSTCam", GROUP, 94, 0, 2025052100138)


class _Watched:
    def __init__(self, root: Path):
        self.root = root
        self.seen: list[Candidate] = []
        self.source = DirectorySource(root, 0.3, self.seen.append, detectors=DETECTORS)

    def raw(self, name: str = "R22_S11", number: int = 138, **cards: object) -> Path:
        """Let a raw land."""
        obs_id = f"MC_O_20250521_{number:06d}"
        path = self.root / "LSSTCam" / "20250521" / obs_id / f"{obs_id}_{name}.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        hdu = astropy.io.fits.PrimaryHDU(np.zeros((4, 4)))
        for card, value in cards.items():
            hdu.header[card] = value
        temporary = path.with_name(".tmp")
        hdu.writeto(temporary)
        temporary.rename(path)
        return path

    def sidecar(self, raw: Path, **cards: object) -> None:
        """Let its sidecar land."""
        temporary = raw.with_name(".json.tmp")
        temporary.write_text(json.dumps({"GROUPID": GROUP, **cards}))
        temporary.rename(sidecar_path(raw))

    def key(self, path: Path, timeout: float = 6.0) -> RawKey | None:
        """What the last report of a file says of it."""
        wait_for(lambda: any(c.uri == str(path) for c in self.seen), timeout, f"{path} to be reported")
        return [c for c in self.seen if c.uri == str(path)][-1].key


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[_Watched]:
    watched = _Watched(tmp_path / "raws")
    watched.source.start()
    yield watched
    watched.source.stop()


def test_sidecar_first(watched: _Watched) -> None:
    path = (
        watched.root / "LSSTCam" / "20250521" / "MC_O_20250521_000138" / "MC_O_20250521_000138_R22_S11.fits"
    )
    path.parent.mkdir(parents=True)
    watched.sidecar(path)
    assert watched.raw() == path
    assert watched.key(path, 1.5) == KEY
    assert not any(c.uri.endswith(".json") for c in watched.seen)


def test_sidecar_a_little_later(watched: _Watched) -> None:
    path = watched.raw()
    time.sleep(0.7)
    assert not watched.seen
    watched.sidecar(path, CURINDEX=2)
    assert watched.key(path, 1.0) == RawKey("LSSTCam", GROUP, 94, 1, 2025052100138)


def test_no_sidecar_but_a_header(watched: _Watched) -> None:
    path = watched.raw(GROUPID=GROUP, CURINDEX=1)
    begin = time.monotonic()
    assert watched.key(path) == KEY
    assert time.monotonic() - begin > 1.0, "the sidecar was waited for"


def test_neither(watched: _Watched) -> None:
    """It is reported as nobody's; and as somebody's when the sidecar comes after all."""
    path = watched.raw()
    assert watched.key(path) is None
    assert "GROUPID" in watched.seen[-1].fault
    time.sleep(0.5)
    watched.sidecar(path)
    wait_for(lambda: watched.key(path) == KEY, 3.0, "its sidecar to be seen")


def test_sidecar_of_nonsense(watched: _Watched) -> None:
    path = watched.raw(GROUPID=GROUP)
    sidecar_path(path).write_text("{half of a")
    assert watched.key(path) == KEY


def test_detectors_that_nobody_asked_for(watched: _Watched) -> None:
    """Wavefront and guide sensors are no mistakes."""
    watched.raw("R00_SW0", GROUPID=GROUP)
    path = watched.raw("R22_S12", GROUPID=GROUP)
    assert watched.key(path) is not None
    time.sleep(1.0)
    assert [c.uri for c in watched.seen] == [str(path)]


def test_what_was_there_before(tmp_path: Path) -> None:
    watched = _Watched(tmp_path / "raws")
    paths = [watched.raw(number=n) for n in (1, 2)]
    for path in paths:
        watched.sidecar(path)
    watched.source.start()
    try:
        for path in paths:
            assert watched.key(path) is not None
    finally:
        watched.source.stop()


def test_raw_goes_while_it_waits(watched: _Watched) -> None:
    path = watched.raw()
    wait_for(lambda: watched.source._names.waiting, 2.0, "the raw to be seen")
    path.unlink()
    wait_for(lambda: not watched.source._names.waiting, 3.0, "it to be forgotten")
    assert not watched.seen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"GROUPID"',
        "{}",
        '{"GROUPID": 5}',
        '{"GROUPID": ""}',
        "[" * 100_000,
        '{"GROUPID": "x"',
    ],
)
def test_no_sidecar(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_sidecar(tmp_path / "a.fits.fz") is None


def test_huge_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppd.sources.sidecar, "_MAX_BYTES", 10)
    (tmp_path / "a.json").write_text(json.dumps({"GROUPID": "g"}))
    assert read_sidecar(tmp_path / "a.fits") is None


@pytest.mark.parametrize("index", [0, -1, "2", 2.0, True, None, 10**9])
def test_odd_index(tmp_path: Path, index: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"GROUPID": "g", "CURINDEX": index}))
    assert read_sidecar(tmp_path / "a.fits") == RawIdentity("g", 0)


@pytest.mark.parametrize("content", [b"", b"SIMPLE", b"\0" * 2880, b"not FITS at all" * 300])
def test_no_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.fits").write_bytes(content)
    assert read_header(tmp_path / "a.fits") is None
