"""Clients of a Redis server, and what their errors mean.

Imported only where a stream is configured: `redis` takes half a second.
"""

from __future__ import annotations

__all__ = ["explain", "make_client", "public_url"]

import os
import re
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_USER = re.compile(r"//[^/@\s]*@")
_CONNECT_SECONDS = 5.0
_MAX_TEXT = 300


def make_client(
    url: str, *, ca_file: Path | None = None, name: str | None = None, timeout: float = 5.0
) -> redis.Redis:
    """Make a client with one connection, which it opens when it is used.

    User and password are those of the URL, else of ``REDIS_USERNAME`` and
    ``REDIS_PASSWORD`` in the environment.

    Parameters
    ----------
    url : `str`
        ``redis://host:port/db``, ``rediss://`` for TLS, or ``unix:///path``.
    ca_file : `pathlib.Path`, optional
        Certificates of the authorities that are trusted; the system's by default.
    name : `str`, optional
        What the server lists it as.
    timeout : `float`, optional
        Seconds that an answer may take.

    Returns
    -------
    client : `redis.Redis`
        A client that tries each command once; its answers are bytes.
    """
    options = {
        "username": os.environ.get("REDIS_USERNAME") or None,
        "password": os.environ.get("REDIS_PASSWORD") or None,
        "client_name": name,
        # Answers of one shape, whatever the server can.
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": timeout,
        "socket_keepalive": True,
    }
    if url.startswith("unix:"):
        del options["socket_keepalive"], options["socket_connect_timeout"]
    if url.startswith("rediss:") and ca_file is not None:
        options["ssl_ca_certs"] = str(ca_file)
    client = redis.Redis.from_url(url, single_connection_client=False, max_connections=1, **options)
    # The client's own reading of it loses who is gone.
    client.set_response_callback("XAUTOCLAIM", lambda answer, **_: answer)
    return client


def explain(error: BaseException) -> str | None:
    """Say in a line what an error of a command means; `None`: it did not come from Redis."""
    if not isinstance(error, redis.RedisError | OSError):
        return None
    return _USER.sub("//", f"{type(error).__name__}: {' '.join(str(error).split())}")[:_MAX_TEXT]


def public_url(url: str) -> str:
    """Return a URL without what is secret in it, for people."""
    return _USER.sub("//", url)
