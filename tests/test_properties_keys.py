"""Paths, sidecars and headers of raws in every layout: read as what they are, or as nothing."""

from __future__ import annotations

import json
import os
import string
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any

import astropy.io.fits
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings
from observatory import wait_for

from ppd.sources.directory import Candidate, DirectorySource
from ppd.sources.keys import LsstKey, RawKey, parse_lsst_path, parse_raw_path
from ppd.sources.sidecar import RawIdentity, read_header, read_sidecar, sidecar_path

_ENDS = st.sampled_from(["fits", "fits.fz", "fits.gz", "fit"])
_DAY = st.integers(20_150_101, 20_991_231).map(str)
_SENSORS = st.tuples(st.integers(0, 44), st.text("0123456789WG", min_size=2, max_size=2)).map(
    lambda pair: f"R{pair[0]:02d}_S{pair[1]}"
)
_ROOTS = st.sampled_from(["", "/", "/data/raws/", "LSSTCam/20250101/", "a/1/b/2/3/c/"])
# Bucket prefix and instrument; obs_id's telescope.
_CAMERAS = {
    "LATISS": ("LATISS", "AT"),
    "LSSTComCam": ("LSSTComCam", "CC"),
    "ComCam": ("LSSTComCam", "CC"),
    "LSSTComCamSim": ("LSSTComCamSim", "CC"),
    "LSSTCam": ("LSSTCam", "MC"),
    "LSST-TS8": ("LSST-TS8", "TS"),
    "TS8": ("LSST-TS8", "TS"),
}
_FILTERS = st.text(string.ascii_letters + string.digits + "_.~-", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..")
)


@settings(max_examples=200, deadline=None)
@given(
    _ROOTS,
    st.sampled_from(list(_CAMERAS)),
    st.sampled_from("OCHPQS"),
    _DAY,
    st.integers(0, 999_999),
    _SENSORS,
    _ENDS,
)
def test_lsst_layout(
    root: str, folder: str, controller: str, day: str, number: int, sensor: str, end: str
) -> None:
    instrument, telescope = _CAMERAS[folder]
    obs_id = f"{telescope}_{controller}_{day}_{number:06d}"
    path = PurePosixPath(f"{root}{folder}/{day}/{obs_id}/{obs_id}_{sensor}.{end}")
    exposure = int(day) * 100_000 + number if controller == "O" else None
    assert parse_lsst_path(path) == LsstKey(instrument, sensor, exposure)
    assert parse_raw_path(path) is None
    assert sidecar_path(Path(path)).name == f"{obs_id}_{sensor}.json"


@settings(max_examples=200, deadline=None)
@given(_ROOTS, _DAY, st.integers(0, 10**18 - 1), _FILTERS, st.integers(0, 204), _SENSORS, _ENDS)
def test_simulated_layout(
    root: str, day: str, exposure: int, band: str, detector: int, sensor: str, end: str
) -> None:
    path = PurePosixPath(f"{root}LSSTCam-imSim/{day}/{exposure}/{exposure}_{band}_{detector}_{sensor}.{end}")
    assert parse_lsst_path(path) == LsstKey("LSSTCam-imSim", sensor, exposure, band)
    assert parse_raw_path(path) is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_disturbed_paths(data: st.DataObject) -> None:
    """A path that lost, gained or changed characters is another raw's or nobody's."""
    text = data.draw(
        st.sampled_from(
            [
                "LSSTCam/20250521/MC_O_20250521_000138/MC_O_20250521_000138_R22_S11.fits",
                "LSSTCam-imSim/20240101/7024010100012/7024010100012_r_sim_1.4_94_R22_S11.fits",
                "DemoCam/4/2025-05-22T05:18:32.763/0/2026112400001/demo-r/a.fits",
            ]
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(len(text), at + 3)))
        text = text[:at] + data.draw(st.text("/._-٣²\udcff09RSOm \n", max_size=3)) + text[until:]
    path = PurePosixPath(text)
    generic, lsst = parse_raw_path(path), parse_lsst_path(path)
    assert generic is None or lsst is None
    if generic is not None:
        assert isinstance(generic, RawKey)
        assert generic.exposure is not None
        assert 0 <= generic.exposure < 2**63
        assert 0 <= generic.detector < 2**31
        assert 0 <= generic.snap < 2**31
        assert generic.group in path.parts
    if lsst is not None:
        assert lsst.exposure is None or 0 <= lsst.exposure < 2**63
        assert lsst.detector.isascii()
        assert lsst.instrument in {name for name, _ in _CAMERAS.values()} | {"LSSTCam-imSim"}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _check(identity: RawIdentity | None) -> None:
    """What comes of a sidecar or a header goes to the journal, to children and to people."""
    if identity is not None:
        assert identity.group
        identity.group.encode()
        assert len(identity.group) <= 200
        assert identity.group.isprintable()
        assert 0 <= identity.snap < 1000


_FILES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(_FILES, max_examples=200)
@given(st.dictionaries(st.sampled_from(["GROUPID", "CURINDEX", "groupid", ""]), _VALUES))
@example({"GROUPID": "\ud800"})
@example({"GROUPID": "g" * 100_000})
@example({"GROUPID": "a\0b\nc"})
@example({"GROUPID": "2025-05-22T05:18:32.763", "CURINDEX": 10**400})
def test_sidecars_of_any_values(tmp_path: Path, cards: dict[str, Any]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(cards))
    _check(read_sidecar(tmp_path / "a.fits"))


@settings(_FILES, max_examples=200)
@given(
    st.binary(max_size=80)
    | _VALUES.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [b"[" * 300_000, b'{"GROUPID":' * 50_000, b"9" * 6000, b'{"GROUPID": "g"}' * 2, b"\xef\xbb\xbf{}"]
    )
)
def test_sidecars_of_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    _check(read_sidecar(tmp_path / "a.fits"))


def test_sidecars_that_are_no_files(tmp_path: Path) -> None:
    raw = tmp_path / "a.fits"
    path = sidecar_path(raw)
    path.mkdir()
    assert read_sidecar(raw) is None
    path.rmdir()
    path.symlink_to(path)
    assert read_sidecar(raw) is None
    path.unlink()
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # a sparse terabyte
    assert read_sidecar(raw) is None


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
@settings(_FILES, max_examples=200)
@given(st.data())
def test_headers_of_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    """A header whose cards were disturbed, or something else altogether."""
    header = astropy.io.fits.Header(
        [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("GROUPID", "g"), ("CURINDEX", 1)]
    )
    raw = bytearray(header.tostring().encode())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, 500))
        new = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from([b"CONTINUE", b"END     ", b"9" * 70, b"XTENSION"])
        )
        raw[at : at + len(new)] = new
    (tmp_path / "a.fits").write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    _check(read_header(tmp_path / "a.fits"))


def test_a_pipe_as_sidecar_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Whoever opens a pipe waits for its other end: no file but a regular one is opened."""
    raw = tmp_path / "a.fits"
    os.mkfifo(sidecar_path(raw))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(read_sidecar(raw)), daemon=True)
    thread.start()
    thread.join(10.0)
    waiting = thread.is_alive()
    if waiting:  # let it go
        os.close(os.open(sidecar_path(raw), os.O_WRONLY | os.O_NONBLOCK))
        thread.join(10.0)
    assert not waiting
    assert found == [None]


@pytest.mark.parametrize("group", ["\ud800", "a\0b", "g" * 3000, "a\nb"])
def test_source_reports_no_group_that_is_none(tmp_path: Path, group: str) -> None:
    """A raw whose sidecar holds nonsense is nobody's; the source goes on."""
    seen: list[Candidate] = []
    source = DirectorySource(tmp_path, 0.2, seen.append, detectors={"R22_S11": 94})
    source.start()
    try:
        paths = []
        for number, content in ((1, group), (2, "2025-05-22T05:18:32.763")):
            obs_id = f"MC_O_20250521_{number:06d}"
            path = tmp_path / "LSSTCam" / "20250521" / obs_id / f"{obs_id}_R22_S11.fits"
            path.parent.mkdir(parents=True)
            sidecar_path(path).write_text(json.dumps({"GROUPID": content}))
            path.write_bytes(b"no FITS")
            paths.append(path)
        wait_for(lambda: {c.uri for c in seen} == set(map(str, paths)), 20.0, "both to be reported")
    finally:
        source.stop()
    keys = {c.uri: c.key for c in seen}
    assert keys[str(paths[0])] is None
    good = keys[str(paths[1])]
    assert good is not None
    assert good.group == "2025-05-22T05:18:32.763"
    assert time.time() - seen[-1].closed < 60.0
