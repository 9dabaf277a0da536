"""The presence microservice: it knows where the raw of a group and detector is, once it is there."""

from __future__ import annotations

__all__ = ["PresenceError", "PresenceService"]

import json
import time
import urllib.parse

import requests

_SECONDS = 1.0
_MAX_BYTES = 1 << 16


class PresenceError(Exception):
    """Raised when the service does not answer, or not what it should."""


class PresenceService:
    """The service at one address.

    Parameters
    ----------
    url : `str`
        Its base.
    connections : `int`, optional
        How many threads will use it.
    """

    def __init__(self, url: str, connections: int = 4):
        self.url = url.rstrip("/")
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=connections)
            self._session.mount(scheme, adapter)

    def ask(self, instrument: str, group: str, snap: int, detector: str) -> str | None:
        """Ask for a raw.

        Parameters
        ----------
        instrument, group : `str`
            Instrument and group.
        snap : `int`
            Number of the snap.
        detector : `str`
            Full name of the detector.

        Returns
        -------
        key : `str` or `None`
            Key of the object in the bucket of raws; `None`: it is not there.

        Raises
        ------
        PresenceError
            Raised if that can't be had within a second.
        """
        path = "/".join(
            urllib.parse.quote(str(part), safe=":") for part in (instrument, group, snap, detector)
        )
        try:
            answer = json.loads(self._get(f"{self.url}/{path}"))
            if answer["error"]:
                raise PresenceError(f"it says: {str(answer.get('message'))[:200]}")
            if not answer["present"]:
                return None
            key = urllib.parse.urlparse(answer["uri"], allow_fragments=False).path.lstrip("/")
        except requests.RequestException as e:
            raise PresenceError(f"{type(e).__name__}: {' '.join(str(e).split())[:200]}") from e
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise PresenceError(f"its answer is not understood: {type(e).__name__}: {e}") from e
        if not key:
            raise PresenceError(f"its answer is not understood: no key in {str(answer['uri'])[:200]!r}")
        return key

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _get(self, url: str) -> bytes:
        # The library's time-out is for each read.
        deadline = time.monotonic() + _SECONDS
        with self._session.get(url, timeout=_SECONDS, stream=True) as response:
            response.raise_for_status()
            data = b""
            for piece in response.iter_content(4096):
                data += piece
                if len(data) > _MAX_BYTES or time.monotonic() > deadline:
                    raise requests.Timeout("the answer takes too long")
        return data
