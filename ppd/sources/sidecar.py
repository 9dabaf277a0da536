"""The group of an LSST camera's raw: from the JSON file beside it, or from its header."""

from __future__ import annotations

__all__ = ["RawIdentity", "parse_header", "parse_sidecar", "read_header", "read_sidecar", "sidecar_path"]

import io
import json
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from astropy.io.fits import Header, VerifyError

from ..fits_extent import NotFitsError, first_header
from ..visit import GROUP_PATTERN

# A sidecar holds a header: whatever is larger is none.
_MAX_BYTES = 4 << 20


class RawIdentity(NamedTuple):
    """What a header says of the visit that a raw belongs to."""

    group: str
    snap: int


def sidecar_path(raw: Path) -> Path:
    """Return where the sidecar of a raw is: the same stem, ``.json``."""
    return raw.with_name(raw.name.partition(".")[0] + ".json")


def read_sidecar(raw: Path) -> RawIdentity | None:
    """Read the sidecar of a raw.

    Parameters
    ----------
    raw : `pathlib.Path`
        The raw.

    Returns
    -------
    identity : `RawIdentity` or `None`
        `None` if there is no sidecar, if it is not complete yet, or if it
        names no group.
    """
    path = sidecar_path(raw)
    try:
        status = path.stat()
        # Whoever opens a pipe waits for its other end.
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            return None
        return parse_sidecar(path.read_bytes())
    except OSError:
        return None


def read_header(raw: Path) -> RawIdentity | None:
    """Read the header of a raw itself.

    Parameters
    ----------
    raw : `pathlib.Path`
        The raw.

    Returns
    -------
    identity : `RawIdentity` or `None`
        `None` if it can't be read or names no group.
    """
    try:
        return _identify(first_header(raw))
    except (NotFitsError, OSError, ValueError, TypeError, LookupError, EOFError, zlib.error, VerifyError):
        return None


def parse_sidecar(data: bytes) -> RawIdentity | None:
    """Read what is in a sidecar.

    Parameters
    ----------
    data : `bytes`
        All of it.

    Returns
    -------
    identity : `RawIdentity` or `None`
        `None` if it is not complete or names no group.
    """
    try:
        cards = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return _identify(cards) if isinstance(cards, dict) else None


def parse_header(data: bytes) -> RawIdentity | None:
    """Read the header in the first bytes of a raw.

    Parameters
    ----------
    data : `bytes`
        The beginning of the file, gzipped or not.

    Returns
    -------
    identity : `RawIdentity` or `None`
        `None` if the header is not whole, can't be read or names no group.
    """
    try:
        if data.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(31).decompress(data, _MAX_BYTES)
        return _identify(Header.fromfile(io.BytesIO(data), endcard=True))
    except (OSError, ValueError, TypeError, LookupError, EOFError, zlib.error, VerifyError):
        return None


def _identify(cards: Mapping[str, Any]) -> RawIdentity | None:
    group = cards.get("GROUPID")
    # What can be no visit's group may hold what nothing else can take.
    if not isinstance(group, str) or not re.fullmatch(GROUP_PATTERN, group):
        return None
    # Counted from one; the first where it is not said.
    index = cards.get("CURINDEX")
    snap = index - 1 if isinstance(index, int) and not isinstance(index, bool) and 1 <= index < 1000 else 0
    return RawIdentity(group, snap)
