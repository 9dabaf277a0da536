"""How long a FITS file should be, found in bounded time and memory whatever its headers say.

`astropy.io.fits.open` looks for headers to the end of a file, however long
that is, and keeps what it reads: minutes and gigabytes for a sparse file.
"""

from __future__ import annotations

__all__ = ["NotFitsError", "check_extent", "first_header"]

import contextlib
import gzip
import io
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import astropy.io.fits

_BLOCK = 2880
# Headers of LSSTCam have some 30 kB.
_MAX_HEADER = 1 << 20
_MAX_HDUS = 1000
# What may follow the last HDU, blank.
_MAX_PADDING = 4 << 20
_CHUNK = 1 << 20
_ZIP_MAGIC = b"\x1f\x8b"
# Deflate makes nothing smaller than this.
_MAX_RATIO = 1032


class NotFitsError(Exception):
    """Raised when a file is not FITS, is cut short, or has something behind its end."""


def check_extent(path: Path) -> astropy.io.fits.Header:
    """Read a FITS file's first header, and see that the file is as long as its headers say.

    Parameters
    ----------
    path : `pathlib.Path`
        The file; gzip is seen through.

    Returns
    -------
    header : `astropy.io.fits.Header`
        The first header, as it is in the file.

    Raises
    ------
    NotFitsError
        Raised if it is not; the text says what is wrong.
    OSError, EOFError, zlib.error
        Raised if the file can't be read.
    """
    with _opened(path) as (stream, size, zipped):
        # The most that it can hold.
        limit = size * _MAX_RATIO if zipped else size
        first = None
        end = 0
        for _ in range(_MAX_HDUS):
            begin = end
            header = _read_header(stream, begin)
            if header is None:
                break
            first = header if first is None else first
            end = stream.tell() + _data_bytes(header)
            if end > limit:
                raise NotFitsError(f"cut short: {limit if zipped else size} of {end} bytes")
            # Of what is zipped only reading tells.
            reached = stream.seek(end)
            if reached < end:
                raise NotFitsError(f"cut short: {reached} of {end} bytes")
        else:
            raise NotFitsError(f"not a FITS file: more than {_MAX_HDUS} HDUs")
        if first is None:
            raise NotFitsError("not a FITS file: it has no header")
        _check_rest(stream, end)
    try:
        # Now that its size is known to be sane: formatters will open it so.
        with astropy.io.fits.open(path, memmap=False) as hdus:
            hdus[0].fileinfo()
    except Exception as e:
        raise NotFitsError(f"not a FITS file: {e}") from e
    return first


def first_header(path: Path) -> astropy.io.fits.Header:
    """Read a FITS file's first header, and nothing else; see `check_extent`."""
    with _opened(path) as (stream, _, _):
        header = _read_header(stream, 0)
    if header is None:
        raise NotFitsError("not a FITS file: it has no header")
    return header


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int, bool]]:
    """Open a file, zipped or not; give its size on disk and whether it is zipped."""
    status = path.stat()
    # Whoever opens a pipe waits for its other end.
    if not stat.S_ISREG(status.st_mode):
        raise NotFitsError("not a FITS file: it is no file")
    with path.open("rb") as file:
        zipped = file.read(2) == _ZIP_MAGIC
    with gzip.open(path) if zipped else path.open("rb") as stream:
        yield cast(BinaryIO, stream), status.st_size, zipped


def _read_header(stream: BinaryIO, begin: int) -> astropy.io.fits.Header | None:
    """Read the header that begins here; `None`: no header does."""
    blocks: list[bytes] = []
    for _ in range(_MAX_HEADER // _BLOCK):
        block = stream.read(_BLOCK)
        if not blocks and not block.startswith(b"XTENSION=" if begin else b"SIMPLE  ="):
            stream.seek(begin)
            return None
        if len(block) < _BLOCK:
            what = "cut short" if begin else "not a FITS file: cut short"
            raise NotFitsError(f"{what} within a header, after {stream.tell()} bytes")
        blocks.append(block)
        if any(block[i : i + 80].rstrip() == b"END" for i in range(0, _BLOCK, 80)):
            break
    else:
        raise NotFitsError(f"not a FITS file: a header of more than {_MAX_HEADER} bytes")
    try:
        return astropy.io.fits.Header.fromfile(io.BytesIO(b"".join(blocks)))
    except Exception as e:
        # It is astropy's, and garbage goes deep into it.
        raise NotFitsError(f"not a FITS file: {e}") from e


def _data_bytes(header: astropy.io.fits.Header) -> int:
    """Return how many bytes of data follow a header, with their padding."""
    bits = _integer(header, "BITPIX", None)
    if bits not in (8, 16, 32, 64, -32, -64):
        raise NotFitsError(f"not a FITS file: BITPIX is {bits!r}")
    naxis = _integer(header, "NAXIS", None)
    if not 0 <= naxis <= 999:
        raise NotFitsError(f"not a FITS file: NAXIS is {naxis}")
    axes = [_integer(header, f"NAXIS{n}", None) for n in range(1, naxis + 1)]
    count, extra = _integer(header, "GCOUNT", 1), _integer(header, "PCOUNT", 0)
    if any(n < 0 for n in (*axes, count, extra)):
        raise NotFitsError("not a FITS file: a size is negative")
    for name in ("BSCALE", "BZERO"):
        factor = _value(header, name)
        if factor is not None and (not isinstance(factor, int | float) or not math.isfinite(factor)):
            raise NotFitsError(f"not a FITS file: {name} is {str(factor)[:40]!r}")
    if not axes:
        return 0
    if axes[0] == 0 and _value(header, "GROUPS") is True:
        axes = axes[1:]
    size = abs(bits) // 8 * count * (extra + math.prod(axes))
    return -(-size // _BLOCK) * _BLOCK


def _integer(header: astropy.io.fits.Header, name: str, default: int | None) -> int:
    value = _value(header, name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise NotFitsError(f"not a FITS file: {name} is {str(value)[:40]!r}")
    return value


def _value(header: astropy.io.fits.Header, name: str) -> Any:
    try:
        return header.get(name)
    except Exception as e:
        raise NotFitsError(f"not a FITS file: {name} can't be read: {e}") from e


def _check_rest(stream: BinaryIO, end: int) -> None:
    """See that nothing but blanks follows, and not without end."""
    stream.seek(end, os.SEEK_SET)
    for _ in range(_MAX_PADDING // _CHUNK):
        chunk = stream.read(_CHUNK)
        if not chunk:
            return
        if chunk.strip(b"\0 "):
            raise NotFitsError(f"cut short within a header, after {end} bytes")
    if stream.read(1):
        raise NotFitsError(f"not a FITS file: more than {_MAX_PADDING} bytes follow its end")
