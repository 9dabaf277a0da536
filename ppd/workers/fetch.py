"""Getting a raw to where the child can ingest it."""

from __future__ import annotations

__all__ = ["FetchError", "fetch_raw"]

from pathlib import Path

from ..errors import RetriableError
from ..messages import RawArrived


class FetchError(RetriableError):
    """Raised when a raw that was announced can't be had now; another time it may."""


def fetch_raw(raw: RawArrived, folder: Path) -> Path:
    """Make sure that a raw is a file.

    Parameters
    ----------
    raw : `ppd.messages.RawArrived`
        What the supervisor said of it.
    folder : `pathlib.Path`
        Where to put what has to be fetched; made if it does not exist.

    Returns
    -------
    path : `pathlib.Path`
        The file: where it is, or its copy.

    Raises
    ------
    FetchError
        Raised if it can't be had.
    """
    if "://" in raw.uri:
        raise FetchError(f"Raw {raw.uri} can't be fetched: ppd knows no such scheme.")
    return Path(raw.uri)
