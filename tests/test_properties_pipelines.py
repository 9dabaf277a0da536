"""Which pipelines for which visit: the rules of the configuration, against independent reckoning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pydantic
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, assume, example, given, settings
from test_visit import message

from ppd.config import PipelineNode
from ppd.pipelines import all_pipelines, choose
from ppd.visit import BareVisit, parse_visit

_RA = st.floats(0.0, 360.0, exclude_max=True)
_DEC = st.floats(-90.0, 90.0)
_POSITIONS = st.none() | st.tuples(_RA, _DEC)
_YES, _NO = ("/p/Yes.yaml",), ("/p/No.yaml",)


def _node(**fields: Any) -> PipelineNode:
    return PipelineNode.model_validate({"pipelines": list(_YES), **fields})


def _visit(position: tuple[float, float] | None = (150.0, 0.0), survey: str = "s") -> BareVisit:
    if position is None:
        return parse_visit(message(coordinateSystem=1, survey=survey))
    return parse_visit(message(position=list(position), survey=survey))


def _is_in(node: PipelineNode, ra: float, dec: float) -> bool:
    return bool(choose([node], _visit(), (ra, dec)))


@settings(max_examples=300, deadline=None)
@given(st.integers(-360, 720), st.integers(1, 359), _RA, _DEC)
def test_right_ascension_wraps(low: int, width: int, ra: float, dec: float) -> None:
    """A range and the rest of the circle cover all; they share their two ends and nothing else."""
    inside = _node(ra={"min": low, "max": low + width})
    rest = _node(ra={"min": low + width, "max": low + 360})
    wrapped = _node(ra={"min": low % 360, "max": (low + width) % 360})
    assert _is_in(wrapped, ra, dec) == _is_in(inside, ra, dec)
    # The complement of the complement.
    again = _node(ra={"min": low + 360, "max": low + 360 + width})
    assert _is_in(again, ra, dec) == _is_in(inside, ra, dec)
    at_end = min(abs((ra - end + 180.0) % 360.0 - 180.0) for end in (low, low + width)) < 1e-9
    if at_end:
        assert _is_in(inside, ra, dec) or _is_in(rest, ra, dec)
    else:
        assert _is_in(inside, ra, dec) != _is_in(rest, ra, dec)
        # Counted in steps from the middle of the range, either way round.
        middle = low + width / 2.0
        assert _is_in(inside, ra, dec) == (abs((ra - middle + 180.0) % 360.0 - 180.0) < width / 2.0)


@settings(max_examples=100, deadline=None)
@given(_RA, _DEC, st.floats(-90.0, 90.0), st.floats(-90.0, 90.0))
def test_declination_does_not_wrap(ra: float, dec: float, one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    assert _is_in(_node(dec={"min": low, "max": high}), ra, dec) == (low <= dec <= high)
    if low < high:
        with pytest.raises(pydantic.ValidationError):
            _node(dec={"min": high, "max": low})


_SPATIAL = st.fixed_dictionaries(
    {},
    optional={
        "ra": st.tuples(st.integers(0, 360), st.integers(0, 360)).map(lambda p: {"min": p[0], "max": p[1]}),
        "dec": st.tuples(st.integers(-90, 90), st.integers(-90, 90)).map(
            lambda p: {"min": min(p), "max": max(p)}
        ),
        "survey": st.sampled_from(["a", "b", ""]),
        "coord-type": st.sampled_from(["detector", "boresight"]),
    },
)


def _expected(fields: dict[str, Any], visit: BareVisit, detector: tuple[float, float] | None) -> bool:
    """The rules again, in other words."""
    if fields.get("survey", visit.survey) != visit.survey:
        return False
    place = detector
    if fields.get("coord-type") == "boresight":
        place = None if visit.ra is None or visit.dec is None else (visit.ra, visit.dec)
    if not {"ra", "dec"} & set(fields):
        return True
    if place is None:
        return False
    ra, dec = place
    if "dec" in fields and (dec < fields["dec"]["min"] or dec > fields["dec"]["max"]):
        return False
    if "ra" in fields:
        low, high = fields["ra"]["min"], fields["ra"]["max"]
        if low <= high:
            return bool(low <= ra <= high or low <= ra + 360.0 <= high)
        return bool(ra >= low or ra <= high)
    return True


@settings(max_examples=400, deadline=None)
@given(
    st.lists(_SPATIAL, max_size=6),
    _POSITIONS,
    _POSITIONS,
    st.sampled_from(["a", "b", "c", ""]),
    st.sets(st.integers(0, 5)),
)
def test_first_match_wins(
    cases: list[dict[str, Any]],
    boresight: tuple[float, float] | None,
    detector: tuple[float, float] | None,
    survey: str,
    empty: set[int],
) -> None:
    visit = _visit(boresight, survey)
    nodes = [
        _node(**fields, **({"pipelines": None} if n in empty else {"pipelines": [f"/p/{n}.yaml"]}))
        for n, fields in enumerate(cases)
    ]
    matching = [n for n, fields in enumerate(cases) if _expected(fields, visit, detector)]
    chosen = choose(nodes, visit, detector)
    if not matching or matching[0] in empty:
        assert chosen == ()
    else:
        assert chosen == (f"/p/{matching[0]}.yaml",)
    # What comes after the first match does not matter, nor does what does not match.
    if matching:
        assert choose(nodes[: matching[0] + 1], visit, detector) == chosen
        assert choose([nodes[n] for n in matching], visit, detector) == chosen
    assert set(chosen) <= set(all_pipelines(nodes))


@given(st.sampled_from(["detector", "boresight"]), _POSITIONS, st.booleans())
def test_no_position_matches_no_spatial_key(
    coord_type: str, other: tuple[float, float] | None, with_map: bool
) -> None:
    """Not even the whole sky, nor a map that is not there."""
    whole = {"ra": {"min": 0, "max": 360}, "dec": {"min": -90, "max": 90}}
    spatial = {"binary-map": "/no/such/map.fits"} if with_map else whole
    nodes = [_node(**spatial, **{"coord-type": coord_type}), _node(pipelines=list(_NO))]
    visit = _visit(None if coord_type == "boresight" else other)
    detector = None if coord_type == "detector" else other
    assert choose(nodes, visit, detector) == _NO


# HEALPix, written down anew from Górski et al. (2005), equations 4 to 9


def _ring_centre(nside: int, pixel: int) -> tuple[float, float]:
    """Right ascension and declination of a pixel's centre in the RING scheme."""
    npix, cap = 12 * nside * nside, 2 * nside * (nside - 1)
    if pixel < cap:
        half = (pixel + 1) / 2.0
        i = int(math.sqrt(half - math.sqrt(int(half)))) + 1
        j = pixel + 1 - 2 * i * (i - 1)
        z, phi = 1.0 - i * i / (3.0 * nside * nside), (j - 0.5) * math.pi / (2.0 * i)
    elif pixel < npix - cap:
        rest = pixel - cap
        i, j = rest // (4 * nside) + nside, rest % (4 * nside) + 1
        shift = 1.0 if (i + nside) % 2 else 0.5
        z, phi = 4.0 / 3.0 - 2.0 * i / (3.0 * nside), (j - shift) * math.pi / (2.0 * nside)
    else:
        ra, dec = _ring_centre(nside, npix - 1 - pixel)
        return (360.0 - ra) % 360.0, -dec
    return math.degrees(phi) % 360.0, math.degrees(math.asin(z))


def _nested_centre(nside: int, pixel: int) -> tuple[float, float]:
    """The same in the NESTED scheme: bits of x and y within one of twelve faces."""
    face, within = divmod(pixel, nside * nside)
    x = y = 0
    for bit in range(nside.bit_length()):
        x |= (within >> (2 * bit) & 1) << bit
        y |= (within >> (2 * bit + 1) & 1) << bit
    row, column = face // 4, face % 4
    f1, f2 = row + 2, 2 * column - row % 2 + 1
    v, h = x + y, x - y
    i = f1 * nside - v - 1
    ring = min(i, nside, 4 * nside - i)
    phi = (f2 * ring + h) * math.pi / (4.0 * ring)
    if i < nside:
        z = 1.0 - i * i / (3.0 * nside * nside)
    elif i <= 3 * nside:
        z = 4.0 / 3.0 - 2.0 * i / (3.0 * nside)
    else:
        z = -1.0 + (4 * nside - i) ** 2 / (3.0 * nside * nside)
    return math.degrees(phi) % 360.0, math.degrees(math.asin(z))


_NSIDES = (1, 2, 8, 32)


class _Maps(dict[tuple[int, str], tuple[Path, np.ndarray]]):
    def __repr__(self) -> str:
        return "maps"


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> _Maps:
    """A random map of each size and ordering, with the values 0, 1 and 16."""
    folder = tmp_path_factory.mktemp("maps")
    found = _Maps()
    for nside in _NSIDES:
        for ordering in ("RING", "NESTED"):
            values = np.random.default_rng(nside).choice(np.array([0, 1, 16], np.uint8), 12 * nside**2)
            hdu = fits.BinTableHDU.from_columns([fits.Column("M", format="B", array=values)])
            hdu.header.update({"PIXTYPE": "HEALPIX", "ORDERING": ordering, "INDXSCHM": "IMPLICIT"})
            path = folder / f"{nside}-{ordering}.fits"
            hdu.writeto(path)
            found[nside, ordering] = (path, values)
    return found


def _offset(ra: float, dec: float, angle: float, distance: float) -> tuple[float, float]:
    """A position near another, never over a pole."""
    new = dec + distance * math.sin(angle)
    return (ra + distance * math.cos(angle) / max(0.02, math.cos(math.radians(dec)))) % 360.0, max(
        -90.0, min(90.0, new)
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(_NSIDES),
    st.sampled_from(["RING", "NESTED"]),
    st.data(),
    st.floats(0.0, 6.28),
    st.sampled_from(["detector", "boresight"]),
)
def test_map(
    maps: _Maps,
    nside: int,
    ordering: str,
    data: st.DataObject,
    angle: float,
    coord_type: str,
) -> None:
    """At and about the centre of each pixel its value decides, in both orderings; 16 is unknown."""
    path, values = maps[nside, ordering]
    pixel = data.draw(st.integers(0, values.size - 1))
    centre = (_ring_centre if ordering == "RING" else _nested_centre)(nside, pixel)
    # A fifth of a pixel's radius is within it wherever it lies.
    place = _offset(*centre, angle, 0.1 * 58.6 / nside / 2.0)
    node = _node(**{"binary-map": str(path), "coord-type": coord_type})
    elsewhere = (0.0, 0.0)
    visit = _visit(place if coord_type == "boresight" else elsewhere)
    chosen = choose(
        [node, _node(pipelines=list(_NO))], visit, elsewhere if coord_type == "boresight" else place
    )
    assert chosen == (_YES if values[pixel] == 1 else _NO)


def test_centres_are_those_of_healpix() -> None:
    """Published values for nside 1 and 2, and both schemes name the same places."""
    assert _ring_centre(1, 0) == pytest.approx((45.0, 41.8103149))
    assert _ring_centre(1, 4) == pytest.approx((0.0, 0.0))
    assert _ring_centre(1, 11) == pytest.approx((315.0, -41.8103149))
    assert _nested_centre(1, 4) == pytest.approx((0.0, 0.0))
    assert _nested_centre(2, 3) == pytest.approx((45.0, 66.4435348), abs=1e-6)
    for nside in _NSIDES:
        ring = {tuple(np.round(_ring_centre(nside, p), 6)) for p in range(12 * nside**2)}
        nested = {tuple(np.round(_nested_centre(nside, p), 6)) for p in range(12 * nside**2)}
        assert ring == nested
        assert len(ring) == 12 * nside**2


# Nodes


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("None"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_KEYS = ["survey", "ra", "dec", "binary-map", "coord-type", "pipelines", "binary_map", "coord_type", "x"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES))
@example({"pipelines": ["a/X.yaml", "b/X.yaml"]})
@example({"ra": {"min": math.nan, "max": 1}, "pipelines": []})
@example({"ra": {"min": -(10**400), "max": 1}, "pipelines": []})
def test_any_node(fields: dict[str, Any]) -> None:
    """A node is of use or refused; never something else."""
    try:
        node = PipelineNode.model_validate(fields)
    except pydantic.ValidationError as e:
        assert all(error["loc"] for error in e.errors(include_url=False))
        return
    assume(node.binary_map is None)
    for position in (None, (0.0, -90.0), (359.999, 90.0)):
        assert choose([node], _visit(survey="x"), position) in ((), node.pipelines)
    assert PipelineNode.model_validate(node.model_dump(mode="json")) == node
