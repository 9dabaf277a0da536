"""How long a FITS file should be: told in bounded time and memory, whatever its headers say."""

from __future__ import annotations

import gzip
import io
import math
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest

from ppd.fits_extent import NotFitsError, check_extent, first_header

_CARDS = [("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 2), ("NAXIS1", 100), ("NAXIS2", 100), ("GROUPID", "g")]


def _head(*changes: tuple[str, Any]) -> bytes:
    header = astropy.io.fits.Header([(name, value) for name, value in _CARDS])
    header.update(changes)
    return header.tostring().encode()


def _sparse(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(size)


_IMAGE, _TABLE = astropy.io.fits.ImageHDU, astropy.io.fits.BinTableHDU
_COLUMN = astropy.io.fits.Column("a", "PJ()", array=np.array([[1, 2], [3]], dtype=object))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [],
        lambda: [_IMAGE(np.zeros((7, 5), np.float32)), _IMAGE(), _IMAGE(np.ones(2881, np.uint8))],
        lambda: [_TABLE.from_columns([_COLUMN])],
        lambda: [astropy.io.fits.CompImageHDU(np.arange(10_000, dtype=np.int32).reshape(100, 100))],
    ],
    ids=["one", "images", "table with a heap", "compressed"],
)
def test_whole_and_cut(tmp_path: Path, make: Callable[[], list[Any]], zipped: bool) -> None:
    primary = astropy.io.fits.PrimaryHDU(np.zeros((3, 4), np.int16))
    primary.header["GROUPID"] = "g"
    buffer = io.BytesIO()
    astropy.io.fits.HDUList([primary, *make()]).writeto(buffer)
    data = buffer.getvalue()
    path = tmp_path / "a.fits"

    def write(content: bytes) -> None:
        path.write_bytes(gzip.compress(content, 1) if zipped else content)

    for padding in (b"", b"\0" * 4000, b" "):
        write(data + padding)
        assert check_extent(path)["GROUPID"] == "g"
        assert check_extent(path) == astropy.io.fits.getheader(path)
    write(data + b"\0" * 5000 + b"x")
    with pytest.raises(NotFitsError, match="cut short within a header"):
        check_extent(path)
    for size in range(1, len(data), 1439):
        write(data[:size])
        # Cut between two HDUs it is whole.
        if size % 2880:
            with pytest.raises(NotFitsError, match=r"cut short|not a FITS"):
                check_extent(path)


_LIES = [
    ("NAXIS1", 10**9),
    ("NAXIS1", 10**18),
    ("NAXIS1", -5),
    ("NAXIS1", "x"),
    ("NAXIS1", 1.5),
    ("NAXIS1", True),
    ("NAXIS", 999),
    ("NAXIS", -1),
    ("NAXIS", 10**9),
    ("BITPIX", 7),
    ("BITPIX", "x"),
    ("BITPIX", -(10**9)),
    ("GCOUNT", 10**9),
    ("PCOUNT", -1),
    ("BZERO", "x"),
]


@pytest.mark.parametrize("lie", _LIES, ids=str)
def test_lies(tmp_path: Path, lie: tuple[str, Any]) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(_head(lie) + b"\0" * 20160)
    with pytest.raises(NotFitsError, match=rf"cut short|{lie[0]}|negative"):
        check_extent(path)


_ENDLESS: dict[str, tuple[Callable[[Path], None], str]] = {
    "zeros follow": (lambda path: _sparse(path, _head(("NAXIS", 0)), 1 << 34), "follow its end"),
    "no END": (
        lambda path: _sparse(path, _head().replace(b"END  ", b"     "), 1 << 34),
        "a header of more than",
    ),
    "a terabyte of image": (lambda path: _sparse(path, _head(("NAXIS1", 10**12)), 1 << 40), "cut short"),
    "zip bomb": (
        lambda path: path.write_bytes(gzip.compress(_head(("NAXIS", 0)) + bytes(200 << 20), 9)) and None,
        "follow its end",
    ),
    "many HDUs": (
        lambda path: (
            path.write_bytes(
                _head(("NAXIS", 0)) + _head(("NAXIS", 0)).replace(b"SIMPLE  =", b"XTENSION=") * 5000
            )
            and None
        ),
        "HDUs",
    ),
}


@pytest.mark.parametrize("kind", _ENDLESS)
def test_endless(tmp_path: Path, kind: str) -> None:
    """Neither minutes nor gigabytes."""
    make, said = _ENDLESS[kind]
    path = tmp_path / "a.fits"
    make(path)
    begin = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(NotFitsError, match=said):
            check_extent(path)
        if kind != "no END":
            assert first_header(path)["GROUPID"] == "g"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 20.0
    assert peak < 64 << 20


def test_no_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    for content in (b"", b"SIMPLE", b"x" * 10_000, b"\x1f\x8b", _head()[80:]):
        path.write_bytes(content)
        with pytest.raises((NotFitsError, EOFError)):
            check_extent(path)
        with pytest.raises((NotFitsError, EOFError)):
            first_header(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(NotFitsError, match="no file"):
        check_extent(path)


def test_random_groups(tmp_path: Path) -> None:
    """The old format of the radio astronomers: the first axis is 0 and does not count."""
    groups = astropy.io.fits.GroupData(
        np.zeros((5, 1, 1, 3, 4), np.float32), bitpix=-32, parnames=["u"], pardata=[np.arange(5.0)]
    )
    astropy.io.fits.GroupsHDU(groups).writeto(tmp_path / "g.fits")
    header = check_extent(tmp_path / "g.fits")
    assert header["GROUPS"] is True
    assert (tmp_path / "g.fits").stat().st_size == 2880 + math.ceil(5 * 13 * 4 / 2880) * 2880
