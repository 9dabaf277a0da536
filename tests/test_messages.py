"""Messages: what is encoded is decoded again, and what is none is refused, never acted on."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings

import ppd.messages
from ppd.messages import ChildHeartbeat, DetectorKey, MessageError, ShutDown, decode, encode

_KINDS: dict[str, type[pydantic.BaseModel]] = {
    model.model_fields["kind"].default: model
    for model in vars(ppd.messages).values()
    if isinstance(model, type) and issubclass(model, pydantic.BaseModel) and "kind" in model.model_fields
}

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Text that JSON has to escape, line breaks above all.
    | _TEXT
    | st.sampled_from(["\n", "\r\n", "\u2028", "\0", '"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    """A strategy for a field, as its annotation has it."""
    if annotation is str:
        return _TEXT
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if annotation is Any:
        return _JSON
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return _models(annotation)
    origin, arguments = getattr(annotation, "__origin__", None), get_args(annotation)
    if origin is tuple:
        return st.lists(_values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(_values(arguments[0]), _values(arguments[1]), max_size=3)
    return st.from_type(annotation)


def _models(model: type[pydantic.BaseModel]) -> st.SearchStrategy[pydantic.BaseModel]:
    fields = {
        # Process IDs have bounds.
        name: st.from_type(Annotated[int, *field.metadata])
        if field.metadata and field.annotation is int
        else _values(field.annotation)
        for name, field in model.model_fields.items()
        if name != "kind"
    }
    return st.builds(model, **fields)


def test_every_message_is_known() -> None:
    union = get_args(get_args(ppd.messages._AnyMessage)[0])
    assert set(union) == set(_KINDS.values())
    assert {model.__name__ for model in union} <= set(ppd.messages.__all__)


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip(kind: str, data: st.DataObject) -> None:
    message = data.draw(_models(_KINDS[kind]))
    encoded = encode(message)
    assert b"\n" not in encoded  # the nursery's pipe has a message a line
    decoded = decode(encoded)
    assert type(decoded) is _KINDS[kind]
    assert decoded == message
    assert decode(encoded + b"\n") == message


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


@settings(max_examples=200)
@given(_JSON)
def test_random_json(value: Any) -> None:
    with pytest.raises(MessageError, match=r"^not a message of ppd: "):
        decode(json.dumps(value).encode())


@given(st.data())
def test_cut_or_disturbed(data: st.DataObject) -> None:
    """A message that lost or changed a byte is another message or an error of ours."""
    whole = encode(ChildHeartbeat(key=DetectorKey(instrument="c", group="g", detector=1), phase="main"))
    place = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MessageError):
        decode(whole[:place])
    changed = whole[:place] + data.draw(st.binary(min_size=1, max_size=1)) + whole[place + 1 :]
    try:
        assert isinstance(decode(changed), ChildHeartbeat)
    except MessageError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"kind":' * 100_000,
        b'{"kind": "shut_down", "more": 1}',
        b'{"kind": "no_such_kind"}',
        b'{"kind": ["shut_down"]}',
        b'{"kind": "forked", "key": {"instrument": "c", "group": "g", "detector": 1e400}, "pid": 1}',
        b'{"kind": "shut_down"}{"kind": "shut_down"}',
        b"\xef\xbb\xbf",
        b'"\xff"',
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


def test_frozen() -> None:
    message = ChildHeartbeat(key=DetectorKey(instrument="c", group="g", detector=1), phase="main")
    with pytest.raises(pydantic.ValidationError):
        message.phase = "other"  # type: ignore[misc]
    assert encode(ShutDown()) == b'{"kind":"shut_down"}'


_KEYS = st.builds(DetectorKey, instrument=_TEXT, group=_TEXT, detector=st.integers(0, 300))


@given(_KEYS)
def test_file_name_is_safe(key: DetectorKey) -> None:
    assert key.file_name.isascii()
    assert not set(key.file_name) & set("/\\:#?%& \0\n")
    assert key.file_name not in ("", ".", "..")
    assert key.file_name.endswith(f"-{key.detector}-1")
