"""CloudEvents over HTTP: what is announced by one, in any of the three ways to send it.

https://github.com/cloudevents/spec, version 1.0: binary mode (attributes in headers), structured mode
(one JSON object) and batches (a list of these).
"""

from __future__ import annotations

__all__ = ["BATCH", "STRUCTURED", "CloudEventError", "read_events"]

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_BINARY = "application/json"

_ATTRIBUTES = ("id", "source", "type")


class CloudEventError(ValueError):
    """Raised when something is no CloudEvent."""


def read_events(content_type: str, headers: Mapping[str, str], body: bytes) -> list[Any]:
    """Read what one request announces.

    Parameters
    ----------
    content_type : `str`
        Media type of the body, without parameters.
    headers : `~collections.abc.Mapping` [ `str`, `str` ]
        The request's headers, whose case does not matter.
    body : `bytes`
        The request's body.

    Returns
    -------
    messages : `list`
        The data of each event.

    Raises
    ------
    CloudEventError
        Raised if it is not understood; of a batch, nothing is then.
    """
    if content_type == BATCH:
        events = _parse(body)
        if not isinstance(events, list):
            raise CloudEventError("a batch is a list")
        return [_data(event) for event in events]
    if content_type == STRUCTURED:
        return [_data(_parse(body))]
    if content_type == _BINARY and "ce-specversion" in headers:
        _check({name: headers.get(f"ce-{name}") for name in ("specversion", *_ATTRIBUTES)})
        return [_parse(body)]
    raise CloudEventError(
        f"neither {STRUCTURED} nor {BATCH} nor {_BINARY} with headers ce-specversion and so on"
    )


def _data(event: Any) -> Any:
    if not isinstance(event, dict):
        raise CloudEventError("an event is an object")
    _check(event)
    if "data_base64" in event:
        try:
            return _parse(base64.b64decode(event["data_base64"], validate=True))
        except (binascii.Error, ValueError, TypeError) as e:
            raise CloudEventError(f"data_base64: {e}") from None
    if "data" not in event:
        raise CloudEventError("it has no data")
    return event["data"]


def _check(attributes: Mapping[str, Any]) -> None:
    version = attributes.get("specversion")
    if version != "1.0":
        raise CloudEventError(f"specversion is {str(version)[:20]!r}, not '1.0'")
    missing = [n for n in _ATTRIBUTES if not isinstance(attributes.get(n), str) or not attributes[n]]
    if missing:
        raise CloudEventError(f"it has no {', '.join(missing)}")


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise CloudEventError(f"no JSON: {e}") from None
