"""nextVisit messages: any message is a visit within the documented bounds or is refused, and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import hypothesis.strategies as st
from hypothesis import example, given, settings

from ppd.errors import InvalidVisitError
from ppd.visit import BareVisit, CoordSys, FannedOutVisit, RotSys, fan_out, parse_visit

_TIMES = st.floats(0.0, 1e10)
_LABELS = st.text(st.characters(exclude_characters="'\"\x7f", exclude_categories=["Cs", "Cc"]), max_size=128)
_GROUPS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:+=#@~-]{0,127}", fullmatch=True)
_INTEGERS = st.integers(-(2**31), 2**31 - 1)


@st.composite
def _messages(draw: st.DrawFn) -> dict[str, Any]:
    """Messages that are of the format, bare or fanned out."""
    coordinates, rotation = draw(st.sampled_from(CoordSys)), draw(st.sampled_from(RotSys))
    message: dict[str, Any] = {
        "salIndex": draw(_INTEGERS),
        "scriptSalIndex": draw(_INTEGERS),
        "instrument": draw(st.sampled_from(["LSSTCam", "LATISS", "HSC", "DemoCam", "LSST-TS8", ""])),
        "groupId": draw(_GROUPS),
        "coordinateSystem": int(coordinates),
        "startTime": draw(_TIMES),
        "rotationSystem": int(rotation),
        "filters": draw(_LABELS),
        "dome": draw(st.integers(1, 3)),
        "duration": draw(st.floats(0.0, 86400.0)),
        "nimages": draw(st.integers(0, 10_000)),
        "survey": draw(_LABELS),
        "totalCheckpoints": draw(_INTEGERS),
        "private_sndStamp": draw(_TIMES),
    }
    if coordinates is not CoordSys.NONE:
        message["position"] = [draw(st.floats(0.0, 360.0)), draw(st.floats(-90.0, 90.0))]
    if rotation is not RotSys.NONE:
        message["cameraAngle"] = draw(st.floats(-360.0, 360.0))
    if draw(st.booleans()):
        message["detector"] = draw(st.integers(0, 300))
    if draw(st.booleans()):
        message["private_efdStamp"] = draw(_TIMES)
        message["private_origin"] = draw(_INTEGERS)
        message["somethingNew"] = draw(st.text(max_size=5))
    return message


_SCALARS = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 1e308, -0.0, 10**4000])
    | st.text(max_size=20)
    | st.text(st.characters(categories=["Cs", "Cc"]), max_size=3)
    | st.sampled_from(
        ["NaN", "[1e999, 0]", "[" * 900, "9" * 5000, "/" * 3000, "٣", "²", "1e5", " 2 ", "[NaN, 0]"]
    )
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _check(data: Any) -> BareVisit | None:
    """Parse; see that what is accepted is within the bounds, and that refusals can be told."""
    try:
        visit = parse_visit(data)
    except InvalidVisitError as e:
        str(e).encode()
        assert len(str(e)) < 10_000
        return None
    assert isinstance(visit.detector, int) if isinstance(visit, FannedOutVisit) else type(visit) is BareVisit
    assert 1 <= len(visit.groupId) <= 128
    assert not set(visit.groupId) & set("/\\'\"\0 \n")
    assert len(visit.instrument) <= 64
    assert "/" not in visit.instrument
    assert len(visit.filters) <= 128
    assert len(visit.survey) <= 128
    assert 0 <= visit.nimages <= 10_000
    assert 0.0 <= visit.duration <= 86400.0
    for time in (visit.startTime, visit.private_sndStamp, visit.private_efdStamp, visit.private_kafkaStamp):
        assert 0.0 <= time <= 1e10
    assert math.isfinite(visit.age(1.8e9))
    for number in (visit.salIndex, visit.scriptSalIndex, visit.totalCheckpoints, visit.private_seqNum):
        assert -(2**63) <= number < 2**63
    assert len(visit.private_identity) <= 256
    assert (visit.position is None) == (visit.coordinateSystem is CoordSys.NONE)
    assert (visit.cameraAngle is None) == (visit.rotationSystem is RotSys.NONE)
    assert visit.ra is None or 0.0 <= visit.ra < 360.0
    assert visit.dec is None or -90.0 <= visit.dec <= 90.0
    assert visit.cameraAngle is None or -360.0 <= visit.cameraAngle <= 360.0
    for value in visit.position or ():
        assert math.isfinite(value)
    # It goes to the journal and to children as JSON, and is no larger than the message may be.
    text = visit.model_dump_json()
    assert len(text) < 20_000
    assert type(visit).model_validate_json(text) == visit
    assert type(visit).model_validate(json.loads(json.dumps(visit.model_dump(mode="json")))) == visit
    return visit


@settings(max_examples=200, deadline=None)
@given(_messages())
def test_messages_of_the_format(message: dict[str, Any]) -> None:
    visit = _check(message)
    assert visit is not None
    assert isinstance(visit, FannedOutVisit) == ("detector" in message)
    assert parse_visit(json.dumps(message)) == visit
    assert parse_visit(json.dumps(message, ensure_ascii=False).encode()) == visit
    for name in ("salIndex", "groupId", "filters", "survey", "duration", "nimages", "startTime"):
        assert getattr(visit, name) == message[name]


@settings(max_examples=200, deadline=None)
@given(_messages())
def test_flat_strings(message: dict[str, Any]) -> None:
    """As it comes from a Redis stream, where each field is a string, it is the same message."""
    flat = {name: value if isinstance(value, str) else json.dumps(value) for name, value in message.items()}
    assert parse_visit(flat) == parse_visit(message)
    python = {name: str(value) for name, value in message.items()}
    assert parse_visit(python) == parse_visit(message)


@settings(max_examples=50, deadline=None)
@given(_messages(), st.sampled_from(["private_identity", "private_revCode"]), st.integers(257, 2**21))
def test_nothing_in_it_is_of_any_length(message: dict[str, Any], name: str, length: int) -> None:
    assert _check({**message, name: "x" * 256}) is not None
    assert _check({**message, name: "x" * length}) is None
    assert _check({**message, "salIndex": 2**63}) is None


@settings(max_examples=100, deadline=None)
@given(_messages(), st.sets(st.integers(0, 300), max_size=5))
def test_fan_out(message: dict[str, Any], detectors: set[int]) -> None:
    message.pop("detector", None)
    visit = parse_visit(message)
    fanned = fan_out(visit, sorted(detectors))
    assert [v.detector for v in fanned] == sorted(detectors)
    assert all(v == parse_visit({**message, "detector": v.detector}) for v in fanned)


@settings(max_examples=300, deadline=None)
@given(_messages(), st.data())
def test_mutated_messages(message: dict[str, Any], data: st.DataObject) -> None:
    names = [*BareVisit.model_fields, "detector", "", "position.0"]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(names))
        if data.draw(st.integers(0, 4)):
            message[name] = data.draw(_JSON)
        else:
            message.pop(name, None)
    as_object = _check(message)
    try:
        text = json.dumps(message)
    except ValueError:
        return  # numbers of more digits than Python writes
    as_text = _check(text)
    assert (as_object is None) == (as_text is None)


@settings(max_examples=200, deadline=None)
@given(_messages(), st.data())
def test_mutated_text(message: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(json.dumps(message).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw)))
        until = data.draw(st.integers(at, min(len(raw), at + 8)))
        raw[at:until] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"NaN", b"1e999", b"\\ud800", b"[[", b"9" * 5000])
        )
    _check(bytes(raw))


@settings(max_examples=200, deadline=None)
@given(_JSON | st.binary(max_size=50))
@example("[" * 200_000)
@example(b'{"position": "' + b"[" * 500_000 + b'"}')
@example({"instrument": "\ud800", "groupId": "\ud800"})
@example({"private_identity": "x" * 1_000_000})
@example(None)
@example(b"9" * 5000)
def test_anything(value: Any) -> None:
    _check(value)
    if not isinstance(value, bytes):
        try:
            _check(json.dumps(value))
        except ValueError as e:
            assert "digits" in str(e)
