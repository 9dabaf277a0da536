"""One object of an S3 bucket, on its way to a file."""

from __future__ import annotations

__all__ = ["Download", "DownloadError"]

import base64
import contextlib
import hashlib
import re
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ..messages import RawArrived
from ..s3 import explain, make_client, public_endpoint, split_uri

_PIECE = 1 << 20
_CONNECT_SECONDS = 3.0
_READ_SECONDS = 10.0
_MD5 = re.compile(r"[0-9a-f]{32}\Z")
_HOPELESS = ("absent", "bucket", "changed", "denied")


class DownloadError(Exception):
    """Raised when an attempt failed.

    Parameters
    ----------
    reason : `str`
        Why.
    hopeless : `bool`, optional
        Whether another attempt would fail too.
    """

    def __init__(self, reason: str, hopeless: bool = False):
        super().__init__(reason)
        self.hopeless = hopeless


class _Digest(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class Download:
    """A raw that is fetched in one or more attempts.

    What an attempt has got, the next one need not get again.

    Parameters
    ----------
    raw : `ppd.messages.RawArrived`
        The raw.
    target : `pathlib.Path`
        The file to make; it is there only once all of it is.
    endpoint : `str` or `None`
        URL of the S3 service.
    """

    def __init__(self, raw: RawArrived, target: Path, endpoint: str | None):
        self.endpoint = public_endpoint(endpoint)
        """Where it comes from, for people."""
        self._raw = raw
        self._target = target
        self._part = target.with_name(f".{target.name}.part")
        self._service = endpoint
        self._client: Any = None
        self._file = self._part.open("wb")
        self._size = raw.size
        self._got = 0
        # What the object's own checksums say, and what came so far.
        self._sums: dict[str, tuple[bytes, _Digest]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)
        self._forget_client()

    def attempt(self, deadline: float) -> None:
        """Get what is missing.

        Parameters
        ----------
        deadline : `float`
            When it must be over, monotonic seconds.

        Raises
        ------
        DownloadError
            Raised if it could not be had.
        OSError
            Raised if the file could not be written.
        """
        try:
            self._request(deadline)
        except _WriteError as e:
            raise e.error from e
        except DownloadError:
            raise
        except Exception as e:
            fault = explain(e)
            if fault is None:
                raise
            if fault.kind == "credentials":
                self._forget_client()
            text = fault.text
            if fault.kind == "absent":
                text = f"the object is gone ({text})"
            elif fault.kind == "changed":
                text = f"the object is another one by now ({text})"
            elif self._got:
                text += f" after {self._got} of {self._size} bytes"
            raise DownloadError(text, fault.kind in _HOPELESS) from e
        self._check()
        self._file.close()
        self._part.replace(self._target)

    def _request(self, deadline: float) -> None:
        if self._client is None:
            self._client = make_client(self._service, connect=_CONNECT_SECONDS, read=_READ_SECONDS)
        bucket, key = split_uri(self._raw.uri)
        request: dict[str, Any] = {"Bucket": bucket, "Key": key, "ChecksumMode": "ENABLED"}
        if self._raw.stamp:
            request["IfMatch"] = f'"{self._raw.stamp}"'
        if self._got:
            request["Range"] = f"bytes={self._got}-"
        answer = self._client.get_object(**request)
        with contextlib.closing(answer["Body"]) as body:
            self._begin(answer)
            # The stream below gives what has come; the one above waits until
            # it has all that was asked for, however slowly it comes.
            stream = body._raw_stream
            while self._size is None or self._got < self._size:
                piece = stream.read1(_PIECE)
                if not piece:
                    break
                self._take(piece)
                if time.monotonic() > deadline:
                    raise DownloadError(f"too slow: only {self._got} of {self._size} bytes in time")

    def _begin(self, answer: Mapping[str, Any]) -> None:
        """Compare an answer's head with what was announced, and see where it begins."""
        etag = answer.get("ETag", "").strip('"')
        if self._raw.stamp and etag and etag != self._raw.stamp:
            reason = f"the object is another one by now: its ETag is {etag}, not {self._raw.stamp}"
            raise DownloadError(reason, hopeless=True)
        begin, size = 0, self._size
        if match := re.match(r"bytes (\d+)-", answer.get("ContentRange", "")):
            begin = int(match[1])
        if "ContentLength" in answer:
            size = begin + int(answer["ContentLength"])
        if self._size is None:
            self._size = size
        elif size != self._size:
            reason = f"the object is another one by now: it has {size} bytes, not {self._size}"
            raise DownloadError(reason, hopeless=True)
        if begin != self._got:
            self._start_again()
            if begin:
                raise DownloadError(f"the server answers from byte {begin}, which it was not asked for")
        if self._sums is None:
            self._sums = _checksums(answer, etag)

    def _take(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
        except OSError as e:
            raise _WriteError(e) from e
        for _, digest in (self._sums or {}).values():
            digest.update(piece)
        self._got += len(piece)

    def _check(self) -> None:
        """Compare what came with what is there."""
        if self._size is not None and self._got != self._size:
            raise DownloadError(f"the connection ended after {self._got} of {self._size} bytes")
        for name, (expected, digest) in (self._sums or {}).items():
            found = digest.digest()
            if found != expected:
                self._start_again()
                raise DownloadError(
                    f"what came is not what is there: {name} {found.hex()}, not {expected.hex()}"
                )

    def _start_again(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._got = 0
        self._sums = None

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class _WriteError(Exception):
    """Raised when the file can't be written: its cause is no error of the network."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


def _checksums(answer: Mapping[str, Any], etag: str) -> dict[str, tuple[bytes, _Digest]]:
    """Return what an object's checksums are to be, with what computes them."""
    found: dict[str, tuple[bytes, _Digest]] = {}
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    if _MD5.match(etag) and not encrypted:
        found["MD5"] = bytes.fromhex(etag), hashlib.md5(usedforsecurity=False)
    if "ContentRange" in answer:
        return found  # they would be of the part
    for name, make in (("SHA256", hashlib.sha256), ("SHA1", hashlib.sha1), ("CRC32", _Crc32)):
        value = answer.get(f"Checksum{name}", "")
        # Of an object that came in parts it is that of its parts' checksums.
        if value and "-" not in value and answer.get("ChecksumType") != "COMPOSITE":
            with contextlib.suppress(ValueError):
                found[name] = base64.b64decode(value, validate=True), make()
    return found
