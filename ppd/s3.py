"""S3 clients, and what their errors mean.

Imported only where a bucket is configured: botocore takes a third of a second.
"""

from __future__ import annotations

__all__ = ["FaultKind", "S3Fault", "explain", "make_client", "public_endpoint", "split_uri", "warm"]

import re
from typing import Any, Literal, NamedTuple

import botocore
import botocore.config
import botocore.session
import urllib3.exceptions
from botocore import exceptions
from botocore.handlers import validate_bucket_name
from botocore.loaders import Loader

FaultKind = Literal["absent", "bucket", "busy", "changed", "credentials", "denied", "network", "other"]

_CODES: dict[str, FaultKind] = {
    "404": "absent",
    "NoSuchKey": "absent",
    "NoSuchBucket": "bucket",
    "412": "changed",
    "PreconditionFailed": "changed",
    # An answer to HEAD has no body, so that it can't be told what is wrong.
    "403": "credentials",
    "ExpiredToken": "credentials",
    "ExpiredTokenException": "credentials",
    "InvalidAccessKeyId": "credentials",
    "InvalidClientTokenId": "credentials",
    "InvalidToken": "credentials",
    "RequestExpired": "credentials",
    "SignatureDoesNotMatch": "credentials",
    "TokenRefreshRequired": "credentials",
    "UnrecognizedClientException": "credentials",
    "AccessDenied": "denied",
    "AllAccessDisabled": "denied",
    "InvalidObjectState": "denied",
    "429": "busy",
    "BandwidthLimitExceeded": "busy",
    "RequestLimitExceeded": "busy",
    "RequestThrottled": "busy",
    "RequestTimeout": "busy",
    "RequestTimeTooSkewed": "other",
    "SlowDown": "busy",
    "Throttling": "busy",
    "ThrottlingException": "busy",
    "TooManyRequestsException": "busy",
}
_OF_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.ProfileNotFound,
    exceptions.SSOError,
)
_OF_NETWORK = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    OSError,
)
_PASSWORD = re.compile(r"//[^/@\s]*@")
_URI = re.compile(r"s3://(?P<bucket>[^/]+)/(?P<key>.+)\Z", re.DOTALL)
# What a client is made of besides its code: JSON files of some megabytes.
_MODELS = ("service-2", "endpoint-rule-set-1")
_DATA = ("_retry", "endpoints", "partitions", "sdk-default-configuration")

_loader: Loader | None = None


class S3Fault(NamedTuple):
    """What went wrong with a request."""

    kind: FaultKind
    text: str
    """For people, in one line; without any secret."""


def make_client(
    endpoint: str | None, *, connect: float = 3.0, read: float = 10.0, connections: int = 1
) -> Any:
    """Make a client of the S3 service, with the credentials that the environment has now.

    Parameters
    ----------
    endpoint : `str` or `None`
        URL of the service; `None`: that of AWS.
    connect, read : `float`, optional
        Time-outs, seconds.
    connections : `int`, optional
        How many threads will use it.

    Returns
    -------
    client : `botocore.client.S3`
        A client that tries each request once.
    """
    return _make_client(endpoint, connect, read, connections, signed=True)


def warm(endpoint: str | None) -> None:
    """Have what clients are made of in memory, for the processes forked from this one.

    Opens no connection and starts no thread.

    Parameters
    ----------
    endpoint : `str` or `None`
        As for `make_client`.
    """
    global _loader
    loader = botocore.session.Session().get_component("data_loader")
    for name in _MODELS:
        loader.load_service_model("s3", name)
    for name in _DATA:
        loader.load_data(name)
    _loader = loader
    # The code has caches too.  Credentials are not looked for: that may ask a
    # server, and what it says expires.
    _make_client(endpoint, 1.0, 1.0, 1, signed=False).close()


def _make_client(endpoint: str | None, connect: float, read: float, connections: int, signed: bool) -> Any:
    # A session of its own: it reads the files with the credentials anew.
    session = botocore.session.Session()
    if _loader is not None:
        session.register_component("data_loader", _loader)
    config = botocore.config.Config(
        connect_timeout=connect,
        read_timeout=read,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        tcp_keepalive=True,
        **({} if signed else {"signature_version": botocore.UNSIGNED}),
    )
    client = session.create_client("s3", endpoint_url=endpoint or None, config=config)
    # Ceph's tenants have a colon in the names of their buckets.
    client.meta.events.unregister("before-parameter-build.s3", validate_bucket_name)
    return client


def public_endpoint(endpoint: str | None) -> str:
    """Return the URL of a service without what is secret in it, for people."""
    return _PASSWORD.sub("//", endpoint) if endpoint else "AWS"


def split_uri(uri: str) -> tuple[str, str]:
    """Take the URI of an object apart.

    Parameters
    ----------
    uri : `str`
        ``s3://bucket/key``.

    Returns
    -------
    bucket, key : `str`
        Its parts.

    Raises
    ------
    ValueError
        Raised if it is no such URI.
    """
    match = _URI.match(uri)
    if match is None:
        raise ValueError(f"{uri} is not s3://bucket/key")
    return match["bucket"], match["key"]


def explain(error: BaseException) -> S3Fault | None:
    """Say what an error of a request or of its body means.

    Parameters
    ----------
    error : `BaseException`
        What was raised.

    Returns
    -------
    fault : `S3Fault` or `None`
        `None` if it did not come from S3.
    """
    if isinstance(error, exceptions.ClientError):
        answer = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(answer.get("Code", status))
        kind = _CODES.get(code)
        if kind is None:
            kind = "busy" if status >= 500 or status == 429 else "denied" if status == 403 else "other"
        name = code if code == str(status) else f"{code} ({status})"
        return S3Fault(kind, f"{name}: {_clean(answer.get('Message') or 'no message')}")
    text = f"{type(error).__name__}: {_clean(str(error))}"
    if isinstance(error, _OF_CREDENTIALS):
        return S3Fault("credentials", text)
    if isinstance(error, _OF_NETWORK):
        return S3Fault("network", text)
    return S3Fault("other", text) if isinstance(error, exceptions.BotoCoreError) else None


def _clean(text: str) -> str:
    return _PASSWORD.sub("//", " ".join(text.split()))[:300]
