"""Raws of the soak, good and bad, and what has to become of each."""

from __future__ import annotations

__all__ = ["BAD_KINDS", "Delivery", "RawPlan", "land", "make_visit", "plan_raw", "read_biases"]

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import astropy.io.fits
import numpy as np
from astropy.time import Time, TimeDelta
from lsst.daf.butler import Butler

from ppd.demo.camera import INSTRUMENT, focal_plane
from ppd.deployment import day_obs
from ppd.visit import TAI_MINUS_UTC

from .demo_visit import FILTER, DemoVisit
from .soak_site import SIDE

Expectation = Literal["succeed", "fail", "either"]
When = Literal["normal", "second", "late", "over"]

# Cards without which a raw can't be used.
_NEEDED = ("EXPID", "GROUPID", "DETNUM", "FILTER", "DATE-BEG", "DATE-END", "RA", "DEC", "ROTSKY", "INSTRUME")
# Cards whose value can't be off by a bit without the raw being refused.
_FATAL = ("GROUPID", "DETNUM", "FILTER", "INSTRUME", "BITPIX")
_CARD = 80


@dataclasses.dataclass(frozen=True)
class Delivery:
    """A file that lands."""

    data: bytes
    when: When
    """``second``: a little after the first; ``late``: shortly before the
    time-out; ``over``: when the detector-visit is over."""
    name: str = "raw.fits"
    in_place: bool = False
    """Whether it is written under its name, bit by bit; else it is renamed into place."""


@dataclasses.dataclass(frozen=True)
class RawPlan:
    """What lands for one detector-visit, and what must become of it."""

    kind: str
    expect: Expectation
    deliveries: tuple[Delivery, ...]
    sources: int
    flux: float
    """Of the good raw's sources, electrons."""
    exact: bool = True
    """Whether the outputs of a success must be those of the good raw."""


def read_biases(central: Path) -> dict[int, np.ndarray]:
    """Read the site's biases, by detector."""
    with Butler.from_config(str(central), writeable=False) as butler:
        refs = butler.query_datasets("bias", collections=f"{INSTRUMENT}/calib/soak/run", explain=False)
        return {int(r.dataId["detector"]): butler.get(r).array for r in refs}


def land(raws: Path, visit: DemoVisit, detector: int, delivery: Delivery) -> Callable[[], None] | None:
    """Let a raw land.

    Parameters
    ----------
    raws : `pathlib.Path`
        The folder that ppd watches.
    visit : `DemoVisit`
        The visit.
    detector : `int`
        Detector ID.
    delivery : `Delivery`
        The file.

    Returns
    -------
    finish : callable or `None`
        Of a file that is written in place: writes its second half.
    """
    path = (
        raws / INSTRUMENT / str(detector) / visit.group / "0" / str(visit.exposure) / "demo-r" / delivery.name
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not delivery.in_place:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(delivery.data)
        temporary.rename(path)
        return None
    stream = path.open("wb")
    half = len(delivery.data) // 2
    stream.write(delivery.data[:half])
    stream.flush()

    def finish() -> None:
        stream.write(delivery.data[half:])
        stream.close()

    return finish


def make_visit(number: int, rng: np.random.Generator) -> DemoVisit:
    """Make up a visit."""
    day = day_obs(time.time())
    return DemoVisit(
        number=number,
        group=f"soak-{day}-{number:05d}",
        exposure=day * 100_000 + number + 1,
        ra=float(rng.uniform(0.0, 360.0)),
        dec=float(rng.uniform(-70.0, 10.0)),
        rotation=float(rng.uniform(0.0, 360.0)),
    )


class _Good:
    """The good raw of a detector-visit, and bad ones made of it."""

    def __init__(self, visit: DemoVisit, detector: int, rng: np.random.Generator):
        self.visit, self.detector, self.rng = visit, detector, rng
        pixels = np.round(rng.normal(100.0, 3.0, (SIDE, SIDE)))
        self.sources = int(rng.integers(3, 12))
        where = rng.choice(SIDE * SIDE, self.sources, replace=False)
        pixels.flat[where] = rng.integers(10_000, 60_000, self.sources)
        self.pixels = pixels.astype(np.uint16)
        self.bright = where
        self.data = self.write()

    def write(self, drop: str | None = None, **changes: Any) -> bytes:
        """Write it as FITS, some cards changed or one left out."""
        v = self.visit
        begin = Time(time.time() + TAI_MINUS_UTC, format="unix_tai", scale="tai")
        cards: dict[str, Any] = {
            "INSTRUME": INSTRUMENT,
            "OBSID": f"DC_{v.exposure}",
            "EXPID": v.exposure,
            "GROUPID": v.group,
            "DETNUM": self.detector,
            "DETNAME": focal_plane().outline(self.detector).name,
            "FILTER": FILTER,
            "DATE-BEG": begin.isot,
            "DATE-END": (begin + TimeDelta(30.0, format="sec")).isot,
            "TIMESYS": "TAI",
            "EXPTIME": 30.0,
            "DARKTIME": 30.5,
            "RA": v.ra,
            "DEC": v.dec,
            "ROTSKY": v.rotation,
            "AZ": 120.0,
            "EL": 62.0,
            "AIRMASS": 1.13,
            "OBJECT": "somewhere",
            "PROGRAM": "SOAK",
            "DAYOBS": v.exposure // 100_000,
            "SEQNUM": v.number + 1,
            "SEQSTART": v.number + 1,
            "SEQEND": v.number + 1,
        }
        cards |= changes
        if drop is not None:
            del cards[drop]
        hdu = astropy.io.fits.PrimaryHDU(self.pixels)
        hdu.header.update(cards)
        stream = io.BytesIO()
        hdu.writeto(stream)
        return stream.getvalue()

    def flip(self, card: str | None) -> bytes:
        """Flip a bit: in a card's value, or (`None`) anywhere in the header."""
        data = bytearray(self.data)
        starts = {}
        for start in range(0, len(data), _CARD):
            name = bytes(data[start : start + 8]).decode("ascii").strip()
            starts.setdefault(name, start)
            if name == "END":
                break
        if card is not None:
            text = bytes(data[starts[card] + 10 : starts[card] + _CARD])
            value = text.partition(b"/")[0]
            places = [i for i, c in enumerate(value) if chr(c).isalnum()]
            place = starts[card] + 10 + int(self.rng.choice(places))
            bit = int(self.rng.integers(0, 3))  # what is printable stays so
        else:
            # A good exposure ID of another visit can't be told from the right
            # one, and would take that visit's place.
            own = range(starts["EXPID"], starts["EXPID"] + _CARD)
            place = int(self.rng.choice([i for i in range(starts["END"] + _CARD) if i not in own]))
            bit = int(self.rng.integers(0, 8))
        data[place] ^= 1 << bit
        return bytes(data)


type _Maker = Callable[[_Good], tuple[Expectation, list[Delivery]]]


def _bad(make: Callable[[_Good], bytes]) -> _Maker:
    """A raw that can't be used; one time in three a good one follows."""

    def plan(good: _Good) -> tuple[Expectation, list[Delivery]]:
        first = Delivery(make(good), "normal")
        if good.rng.random() < 1 / 3:
            return "succeed", [first, Delivery(good.data, "second", "again.fits")]
        return "fail", [first]

    return plan


def _off(good: _Good, degrees: float) -> float:
    return (good.visit.rotation + degrees) % 360.0


BAD_KINDS: dict[str, _Maker] = {
    "empty": _bad(lambda g: b""),
    "truncated": _bad(lambda g: g.data[: int(g.rng.integers(1, len(g.data)))]),
    "not-fits": _bad(lambda g: g.rng.bytes(int(g.rng.integers(1, 20_000)))),
    "bit-in-needed-card": _bad(lambda g: g.flip(str(g.rng.choice(_FATAL)))),
    "other-detector": _bad(lambda g: g.write(DETNUM=(g.detector + 1) % 9)),
    "other-group": _bad(lambda g: g.write(GROUPID=f"{g.visit.group}-other")),
    # It would take another visit's place.
    "other-exposure": _bad(lambda g: g.write(EXPID=g.visit.exposure + 1)),
    "unknown-filter": _bad(lambda g: g.write(FILTER="u_99")),
    "card-missing": _bad(lambda g: g.write(drop=str(g.rng.choice(_NEEDED)))),
    "rotated": _bad(lambda g: g.write(ROTSKY=_off(g, float(g.rng.uniform(3.0, 180.0))))),
    "astray": _bad(lambda g: g.write(DEC=g.visit.dec + float(g.rng.uniform(0.5, 5.0)))),
    # It is ingested as what it is, so no good one is waited for.
    "other-filter": lambda g: ("fail", [Delivery(g.write(FILTER="demo-g"), "normal")]),
    # A few columns less can't be told from the header; a task fails on it.
    "bit-in-size": lambda g: ("fail", [Delivery(g.flip(str(g.rng.choice(("NAXIS1", "NAXIS2")))), "normal")]),
    "bit-in-idle-card": lambda g: ("succeed", [Delivery(g.flip("OBJECT"), "normal")]),
    "bit-anywhere": lambda g: ("either", [Delivery(g.flip(None), "normal")]),
    # It may be processed; the visit's other detectors may not suffer from it.
    "other-day": lambda g: (
        "either",
        [Delivery(g.write(DAYOBS=g.visit.exposure // 100_000 + 1), "normal")],
    ),
    "never": lambda g: ("fail", []),
    "twice": lambda g: (
        "succeed",
        [Delivery(g.data, "normal"), Delivery(g.data, "second", "again.fits")],
    ),
    "same-file-twice": lambda g: ("succeed", [Delivery(g.data, "normal"), Delivery(g.data, "second")]),
    "late": lambda g: ("succeed", [Delivery(g.data, "late")]),
    "too-late": lambda g: ("fail", [Delivery(g.data, "over")]),
    "twice-too-late": lambda g: (
        "succeed",
        [Delivery(g.data, "normal"), Delivery(g.data, "over", "again.fits")],
    ),
}


def plan_raw(
    visit: DemoVisit, detector: int, rng: np.random.Generator, bias: np.ndarray, kind: str | None
) -> RawPlan:
    """Plan what lands for a detector-visit.

    Parameters
    ----------
    visit : `DemoVisit`
        The visit.
    detector : `int`
        Detector ID.
    rng : `numpy.random.Generator`
        Chance.
    bias : `numpy.ndarray`
        The detector's bias, to know what must come out.
    kind : `str` or `None`
        A key of `BAD_KINDS`; `None`: a good raw.

    Returns
    -------
    plan : `RawPlan`
        The plan.
    """
    good = _Good(visit, detector, rng)
    if kind is None:
        expect: Expectation = "succeed"
        deliveries = [Delivery(good.data, "normal", in_place=bool(rng.random() < 0.1))]
    else:
        expect, deliveries = BAD_KINDS[kind](good)
    flux = float(np.sum(good.pixels.flat[good.bright].astype(float) - bias.flat[good.bright]))
    return RawPlan(
        kind=kind or "good",
        expect=expect,
        deliveries=tuple(deliveries),
        sources=good.sources,
        flux=flux,
        exact=kind != "bit-anywhere",
    )
