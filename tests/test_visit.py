"""nextVisit messages: what is understood, what is refused and how it is said."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppd.errors import InvalidVisitError, StaleVisitError
from ppd.visit import (
    TAI_MINUS_UTC,
    BareVisit,
    CoordSys,
    Dome,
    FannedOutVisit,
    RotSys,
    check_fresh,
    fan_out,
    parse_visit,
    renewed,
)

NOW = 1_795_000_000.0


def message(**changes: Any) -> dict[str, Any]:
    fields = {
        "salIndex": 2,
        "scriptSalIndex": 200123,
        "instrument": "DemoCam",
        "groupId": "2026-11-24T03:04:05.123",
        "coordinateSystem": 2,
        "position": [225.9, -38.6],
        "startTime": NOW + 20,
        "rotationSystem": 2,
        "cameraAngle": 12.5,
        "filters": "demo-r",
        "dome": 2,
        "duration": 35.0,
        "nimages": 1,
        "survey": "BLOCK-T12",
        "totalCheckpoints": 1,
        "private_sndStamp": NOW + TAI_MINUS_UTC,
    }
    return {**fields, **changes}


@pytest.mark.parametrize("form", [lambda m: m, json.dumps, lambda m: json.dumps(m).encode()])
def test_forms(form: Any) -> None:
    visit = parse_visit(form(message(private_identity="x", somethingNew=[1])))
    assert type(visit) is BareVisit
    assert (visit.ra, visit.dec, visit.rotation) == (225.9, -38.6, 12.5)
    assert visit.coordinateSystem is CoordSys.ICRS
    assert visit.identity == "DemoCam group 2026-11-24T03:04:05.123"
    assert BareVisit.model_validate(visit.model_dump(mode="json")) == visit


def test_flat_strings_of_a_stream() -> None:
    flat = {k: str(v) for k, v in message(detector=4).items()}
    visit = parse_visit(flat)
    assert isinstance(visit, FannedOutVisit)
    assert visit.detector == 4
    assert visit.position == (225.9, -38.6)
    assert visit.dome is Dome.OPEN
    assert visit.identity.endswith(" detector 4")


def test_positions_that_cant_be_used() -> None:
    visit = parse_visit(message(coordinateSystem=4, position=[-120.0, 80.0], rotationSystem=4))
    assert (visit.ra, visit.dec, visit.rotation) == (None, None, None)
    assert visit.position == (-120.0, 80.0)
    absent = message(coordinateSystem=1, rotationSystem=1, cameraAngle=math.nan)
    del absent["position"]
    visit = parse_visit(absent)
    assert (visit.position, visit.cameraAngle, visit.rotation) == (None, None, None)
    assert visit.rotationSystem is RotSys.NONE


def test_not_an_observation() -> None:
    assert not parse_visit(message(instrument="")).is_observation


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not an object"),
        ("null", "not an object"),
        ("x" * (2 << 20), "2097152 bytes"),
    ],
)
def test_not_an_object(data: bytes | str, match: str) -> None:
    with pytest.raises(InvalidVisitError, match=match):
        parse_visit(data)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"position": [math.nan, 0.0]}, r"position\.0: .*finite.*NaN"),
        ({"position": [10.0, math.inf]}, r"position\.1: .*finite"),
        ({"position": [361.0, 0.0]}, "right ascension 361 is outside"),
        ({"position": [-1.0, 0.0]}, "right ascension -1 is outside"),
        ({"position": [1.0, 90.5]}, "declination 90.5 is outside"),
        ({"position": [1.0]}, "position"),
        ({"position": None}, "position: missing, though"),
        ({"position": "here"}, "position: not a list of two numbers"),
        ({"cameraAngle": math.nan}, "cameraAngle: .*finite"),
        ({"cameraAngle": 400}, "camera angle 400 is outside"),
        ({"coordinateSystem": 9}, "coordinateSystem"),
        ({"coordinateSystem": "ICRS"}, "coordinateSystem"),
        ({"groupId": ""}, "groupId"),
        ({"groupId": "../../etc"}, "groupId"),
        ({"groupId": "a'b"}, "groupId"),
        ({"instrument": "a/b"}, "instrument"),
        ({"duration": -1}, "duration"),
        ({"nimages": 1.5}, "nimages"),
        ({"startTime": 1e300}, "startTime"),
        ({"filters": "x\n"}, "filters"),
        ({"detector": -1}, "detector"),
    ],
)
def test_faults_are_named_with_the_visit(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidVisitError, match=match) as e:
        parse_visit(message(**changes))
    if not {"groupId", "instrument"} & set(changes):
        assert "DemoCam group 2026-11-24T03:04:05.123" in str(e.value)


def test_json_nan_is_refused() -> None:
    text = json.dumps(message(position=[math.nan, 1.0]))
    assert "NaN" in text
    with pytest.raises(InvalidVisitError, match=r"position\.0"):
        parse_visit(text)


def test_every_fault_at_once() -> None:
    fields = message(position=[400.0, 0.0], dome=7, nimages="many")
    del fields["duration"]
    with pytest.raises(InvalidVisitError) as e:
        parse_visit(fields)
    for part in ("right ascension 400", "dome", "nimages", "duration is missing"):
        assert part in str(e.value)


def test_every_field_of_the_format_is_needed() -> None:
    for name in message():
        fields = message()
        del fields[name]
        with pytest.raises(InvalidVisitError, match=f"{name}.*missing"):
            parse_visit(fields)


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidVisitError) as e:
        parse_visit(message(groupId="/" * 100_000))
    assert len(str(e.value)) < 600


def test_age_is_by_efd_stamp_where_there_is_one() -> None:
    assert parse_visit(message()).age(NOW + 5) == pytest.approx(5)
    assert parse_visit(message(private_efdStamp=NOW - 100)).age(NOW) == pytest.approx(100)


def test_tai_minus_utc_is_still_right() -> None:
    from astropy.time import Time

    now = Time.now()
    assert pytest.approx(TAI_MINUS_UTC, abs=1e-3) == now.unix_tai - now.unix


def test_stale() -> None:
    visit = parse_visit(message())
    check_fresh(visit, NOW + 3599, 3600)
    with pytest.raises(StaleVisitError, match=r"2026-11-24T03:04:05\.123.*3601 s old"):
        check_fresh(visit, NOW + 3601, 3600)


def test_fan_out() -> None:
    visit = parse_visit(message())
    fanned = fan_out(visit, [0, 3])
    assert [v.detector for v in fanned] == [0, 3]
    assert visit.fan_out([0, 3]) == fanned
    assert parse_visit(fanned[1].model_dump_json()) == fanned[1]


_ANY = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*message(), "detector", "private_efdStamp"]), _ANY, max_size=4))
def test_garbage_raises_nothing_else(changes: dict[str, Any]) -> None:
    try:
        visit = parse_visit(message(**changes))
    except InvalidVisitError:
        return
    assert visit.ra is None or 0 <= visit.ra < 360
    assert math.isfinite(visit.age(NOW))


@pytest.mark.parametrize("start", [1.8e9, 0.0])
def test_renewed(start: float) -> None:
    """As if it were published now; when its exposure begins, or began, stays what it was."""
    old = parse_visit(message(startTime=start, private_sndStamp=1.7e9, private_efdStamp=1.7e9))
    new = renewed(old, 2.0e9)
    assert new.age(2.0e9) == pytest.approx(0.0)
    assert new.startTime == start or (start == 0.0 and new.startTime == 1.7e9)
    changed = {"startTime", "private_sndStamp", "private_efdStamp"}
    assert new.model_dump(exclude=changed) == old.model_dump(exclude=changed)
