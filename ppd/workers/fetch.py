"""Getting a raw to where the child can ingest it."""

from __future__ import annotations

__all__ = ["FetchError", "fetch_raw"]

import logging
import random
import time
from pathlib import Path, PurePosixPath

from ..errors import RetriableError, one_line
from ..messages import RawArrived

_LOG = logging.getLogger(__name__)

# About a minute: a child that gives up has lost one of its few attempts.
_TRIES = 16
_FIRST_DELAY = 0.2
_LONGEST_DELAY = 5.0
# Longer than any raw takes; less than a detector-visit may.
_SECONDS = 120.0


class FetchError(RetriableError):
    """Raised when a raw that was announced can't be had now; another time it may."""


def fetch_raw(raw: RawArrived, folder: Path, endpoint: str | None = None) -> Path:
    """Make sure that a raw is a file.

    Parameters
    ----------
    raw : `ppd.messages.RawArrived`
        What the supervisor said of it.
    folder : `pathlib.Path`
        Where to put what has to be fetched; made if it does not exist.
    endpoint : `str`, optional
        URL of the S3 service; AWS when absent.

    Returns
    -------
    path : `pathlib.Path`
        The file: where it is, or its copy.

    Raises
    ------
    FetchError
        Raised if it can't be had.
    """
    if "://" not in raw.uri:
        return Path(raw.uri)
    if not raw.uri.startswith("s3://"):
        raise FetchError(f"Raw {raw.uri} can't be fetched: ppd knows no such scheme.")
    # One name per snap is enough: what is there is replaced, not written to,
    # since the repo may have a link to it.
    target = folder / str(raw.snap) / PurePosixPath(raw.uri).name
    begin = time.monotonic()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch_s3(raw, target, endpoint, begin + _SECONDS)
    except OSError as e:
        raise FetchError(f"Raw {raw.uri} can't be written to {target}: {e.strerror or e}.") from e
    except ValueError as e:  # of the URI or the endpoint
        raise FetchError(f"Raw {raw.uri} can't be fetched: {one_line(e)}.") from e
    seconds = time.monotonic() - begin
    _LOG.info("Fetched %s, %d bytes, in %.2f s.", raw.uri, target.stat().st_size, seconds)
    return target


def _fetch_s3(raw: RawArrived, target: Path, endpoint: str | None, deadline: float) -> None:
    """Get an object, trying again what may be better soon."""
    # Here, not above: sites without a bucket need none of it.
    from .s3_object import Download, DownloadError

    with Download(raw, target, endpoint) as download:
        for number in range(1, _TRIES + 1):
            try:
                download.attempt(deadline)
                return
            except DownloadError as e:
                where = f"Raw {raw.uri} can't be fetched from {download.endpoint}"
                late = time.monotonic() >= deadline
                if e.hopeless or late or number == _TRIES:
                    tries = "" if number == 1 else f", after {number} tries"
                    raise FetchError(f"{where}{tries}: {one_line(e)}.") from e
                _LOG.warning("%s: %s; it is tried again.", where, one_line(e))
            delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (number - 1)) * random.uniform(0.5, 1.0)
            time.sleep(min(delay, max(0.0, deadline - time.monotonic())))
