"""The generic layout of raw paths: what is of it is read, what is not gives nothing, never an error."""

from __future__ import annotations

import string
from pathlib import PurePath, PurePosixPath

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from ppd.sources.keys import LsstKey, RawKey, parse_lsst_path, parse_raw_path

_WORD = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20)
# Groups and filters may hold anything that a path can.
_PART = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=30).filter(
    lambda text: text not in (".", "..")
)
_SMALL = st.integers(0, 10**9 - 1)
_ROOT = st.sampled_from(["", "/", "/data/raws/", "a/1/b/2/3/c/"])
_NAME = st.tuples(_WORD, st.sampled_from(["fits", "fits.fz", "fits.gz", "fit", "f"])).map(".".join)


@given(_ROOT, _WORD, _SMALL, _PART, _SMALL, st.integers(0, 10**18 - 1), _PART, _NAME)
def test_layout(
    root: str, instrument: str, detector: int, group: str, snap: int, exposure: int, band: str, name: str
) -> None:
    path = PurePosixPath(f"{root}{instrument}/{detector}/{group}/{snap}/{exposure}/{band}/{name}")
    assert parse_raw_path(path) == RawKey(instrument, group, detector, snap, exposure, band)


@given(st.text(st.characters(exclude_characters="\0")).map(PurePath))
@example(PurePath())
@example(PurePath("/"))
@example(PurePath("\udcff/1/g/0/1/r/a.fits"))
def test_nonsense_is_no_error(path: PurePath) -> None:
    key = parse_raw_path(path)
    assert key is None or isinstance(key, RawKey)


@given(st.lists(st.sampled_from(["Cam", "1", "g", "²", "٣", "-1", "a.fits", ".fits", "x", "1e3"])))
def test_only_the_layout(parts: list[str]) -> None:
    key = parse_raw_path(PurePath(*parts))
    numbers = [parts[i] for i in (-6, -4, -3)] if len(parts) >= 7 else []
    fits = (
        len(parts) >= 7
        and numbers == ["1", "1", "1"]
        and parts[-7] in ("Cam", "1", "g", "²", "٣", "-1", "x", "1e3")
        and parts[-1] == "a.fits"
    )
    assert (key is not None) == fits


@pytest.mark.parametrize(
    "path",
    [
        "Cam/٣/g/0/1/r/a.fits",  # Arabic digits are digits to int()
        "Cam/1/g/०/1/r/a.fits",
        "Cam/1/g/0/１/r/a.fits",
        "Cam/1²/g/0/1/r/a.fits",
        "Cam/+1/g/0/1/r/a.fits",
        "Cam/1_0/g/0/1/r/a.fits",
        "Cam/-1/g/0/1/r/a.fits",
        f"Cam/{'1' * 10}/g/0/1/r/a.fits",
        f"Cam/1/g/{'9' * 5000}/1/r/a.fits",
        f"Cam/1/g/0/{'9' * 19}/r/a.fits",
        f"Cam/1/g/0/{'9' * 5000}/r/a.fits",
        "Cam/1/g/0/1/r/.a.fits",
        "Cam/1/g/0/1/r/.fits",
        "Cam/1/g/0/1/r/a.json",
        "Cam/1/g/0/1/r/a",
        "Cam/1/g/0/1/a.fits",
        "Cam/1/g/0/1/r/deeper/a.fits",
        "C am/1/g/0/1/r/a.fits",
    ],
)
def test_not_of_the_layout(path: str) -> None:
    assert parse_raw_path(PurePath(path)) is None


def test_numbers_may_have_zeros_in_front() -> None:
    key = parse_raw_path(PurePath("Cam/007/g/000/0000000000012/r/a.fits"))
    assert key == RawKey("Cam", "g", 7, 0, 12, "r")


_OBS = "MC_O_20250521_000138"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (f"LSSTCam/20250521/{_OBS}/{_OBS}_R22_S11.fits", LsstKey("LSSTCam", "R22_S11", 2025052100138)),
        (
            f"/data/LSSTCam/20250521/{_OBS}/{_OBS}_R00_SW0.fits.fz",
            LsstKey("LSSTCam", "R00_SW0", 2025052100138),
        ),
        (
            "LATISS/20240105/AT_O_20240105_000007/AT_O_20240105_000007_R00_S00.fits",
            LsstKey("LATISS", "R00_S00", 2024010500007),
        ),
        # Buckets have other names than instruments.
        (
            "ComCam/20241101/CC_O_20241101_000001/CC_O_20241101_000001_R22_S00.fits",
            LsstKey("LSSTComCam", "R22_S00", 2024110100001),
        ),
        # Of other controllers the exposure ID has an offset, which the header tells.
        (
            "TS8/20240101/TS_C_20240101_000009/TS_C_20240101_000009_R02_S21.fits",
            LsstKey("LSST-TS8", "R02_S21"),
        ),
        (
            "LSSTCam-imSim/20240101/7024010100012/7024010100012_r_sim_1.4_94_R22_S11.fits",
            LsstKey("LSSTCam-imSim", "R22_S11", 7024010100012, "r_sim_1.4"),
        ),
    ],
)
def test_lsst(path: str, key: LsstKey) -> None:
    assert parse_lsst_path(PurePosixPath(path)) == key
    assert parse_raw_path(PurePosixPath(path)) is None


@pytest.mark.parametrize(
    "path",
    [
        f"LSSTCam/20250521/{_OBS}/{_OBS}_R22_S11.json",
        f"LSSTCam/20250521/{_OBS}/MC_O_20250521_000139_R22_S11.fits",
        f"HSC/20250521/{_OBS}/{_OBS}_R22_S11.fits",
        f"LSSTCam/{_OBS}/{_OBS}_R22_S11.fits",
        f"LSSTCam/20250521/{_OBS}/{_OBS}_R22_S11_guider.fits",
        f"LSSTCam/20250521/{_OBS}/{_OBS}_R2\u0662_S11.fits",
        "DemoCam/4/g/0/1/r/a.fits",
        "",
    ],
)
def test_not_lsst(path: str) -> None:
    assert parse_lsst_path(PurePosixPath(path)) is None


@given(st.text(st.characters(exclude_characters="\0")).map(PurePath))
@example(PurePath("\udcff/LSSTCam/20250521/a.fits"))
def test_nonsense_is_not_lsst(path: PurePath) -> None:
    assert parse_lsst_path(path) is None
