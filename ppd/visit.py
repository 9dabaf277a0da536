"""The nextVisit message, bare or fanned out, and its validation."""

from __future__ import annotations

__all__ = [
    "GROUP_PATTERN",
    "TAI_MINUS_UTC",
    "BareVisit",
    "CoordSys",
    "Dome",
    "FannedOutVisit",
    "RotSys",
    "check_fresh",
    "fan_out",
    "parse_visit",
    "renewed",
]

import enum
import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import pydantic

from .errors import InvalidVisitError, StaleVisitError

TAI_MINUS_UTC = 37.0
"""TAI - UTC in seconds: constant since 2017-01-01 (IERS Bulletin C 52); no
leap second is foreseen before their abolition."""

GROUP_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:+=#@~-]{0,127}$"
"""Regular expression of the groups that there can be."""

_MAX_BYTES = 1 << 20
# Unix seconds of the year 2286: times beyond are garbage that time libraries
# would choke on.
_MAX_TIME = 1e10

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


class CoordSys(enum.IntEnum):
    """Coordinate system of a visit's position."""

    NONE = 1
    ICRS = 2
    OBSERVED = 3
    MOUNT = 4


class RotSys(enum.IntEnum):
    """System of a visit's camera angle."""

    NONE = 1
    SKY = 2
    HORIZON = 3
    MOUNT = 4


class Dome(enum.IntEnum):
    """State of the dome that a visit asks for."""

    CLOSED = 1
    OPEN = 2
    EITHER = 3


_Float = Annotated[float, pydantic.Field(allow_inf_nan=False)]
_Time = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=0, le=_MAX_TIME)]
# What else is in a message is only kept; each detector's job has a copy.
_Integer = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]
_Text = Annotated[str, pydantic.Field(max_length=256)]
# Groups and instruments become parts of paths and queries.
_Group = Annotated[str, pydantic.Field(pattern=GROUP_PATTERN)]
_Instrument = Annotated[str, pydantic.Field(pattern=r"^[\w-]{0,64}$")]
_Label = Annotated[str, pydantic.Field(pattern=r"^[^\x00-\x1f\x7f'\"]{0,128}$")]


class BareVisit(pydantic.BaseModel):
    """A nextVisit message for all detectors, with the names it has at Rubin.

    Fields that ppd does not know are tolerated and dropped.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    salIndex: _Integer
    """Script queue."""
    scriptSalIndex: _Integer
    """Script in the queue."""
    instrument: _Instrument
    """Short name; empty: not an observation."""
    groupId: _Group
    """Butler ``group`` name."""
    coordinateSystem: CoordSys
    """System of `position`, which is usable only in ICRS."""
    position: Annotated[tuple[_Float, _Float] | None, pydantic.Field(validate_default=True)] = None
    """Right ascension and declination in ICRS, degrees; `None` in system NONE."""
    startTime: _Time
    """Expected start, TAI Unix seconds."""
    rotationSystem: RotSys
    """System of `cameraAngle`, which is usable only in SKY."""
    cameraAngle: Annotated[_Float | None, pydantic.Field(validate_default=True)] = None
    """Focal-plane +Y east of north in SKY, degrees; `None` in system NONE."""
    filters: _Label
    """Physical filter; empty: none in particular."""
    dome: Dome
    """State of the dome."""
    duration: Annotated[float, pydantic.Field(allow_inf_nan=False, ge=0, le=86400)]
    """Seconds that the script runs."""
    nimages: Annotated[int, pydantic.Field(ge=0, le=10_000)]
    """Snaps to expect; 0: unknown."""
    survey: _Label
    """Survey name."""
    totalCheckpoints: _Integer
    """Checkpoints of the script."""
    private_sndStamp: _Time
    """Publication time, TAI Unix seconds."""
    private_efdStamp: _Time = 0.0
    """Publication time, UTC Unix seconds; 0: not known."""
    private_kafkaStamp: _Time = 0.0
    """When the message entered Kafka, TAI Unix seconds."""
    private_rcvStamp: _Time = 0.0
    """When it was received, TAI Unix seconds."""
    private_identity: _Text = ""
    """Who published it."""
    private_revCode: _Text = ""
    """Revision of the message's schema."""
    private_origin: _Integer = 0
    """Process that published it."""
    private_seqNum: _Integer = 0
    """Number of the message."""

    @pydantic.field_validator("coordinateSystem", "rotationSystem", "dome", mode="before")
    @classmethod
    def _number_from_text(cls, value: object) -> object:
        # A Redis stream has every field as text.
        if isinstance(value, str) and value.strip().isdecimal() and len(value) < 9:
            return int(value)
        return value

    @pydantic.field_validator("position", mode="before")
    @classmethod
    def _read_position(cls, value: object, info: pydantic.ValidationInfo) -> object:
        if info.data.get("coordinateSystem") == CoordSys.NONE:
            return None
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError("not a list of two numbers") from None
        if value is None and "coordinateSystem" in info.data:
            raise ValueError("missing, though coordinateSystem is not NONE")
        return value

    @pydantic.field_validator("position")
    @classmethod
    def _on_the_sky(
        cls, value: tuple[float, float] | None, info: pydantic.ValidationInfo
    ) -> tuple[float, float] | None:
        if value is not None and info.data.get("coordinateSystem") == CoordSys.ICRS:
            ra, dec = value
            if not 0 <= ra <= 360:
                raise ValueError(f"right ascension {ra:g} is outside 0 to 360 degrees")
            if not -90 <= dec <= 90:
                raise ValueError(f"declination {dec:g} is outside -90 to 90 degrees")
        return value

    @pydantic.field_validator("cameraAngle", mode="before")
    @classmethod
    def _read_angle(cls, value: object, info: pydantic.ValidationInfo) -> object:
        if info.data.get("rotationSystem") == RotSys.NONE:
            return None
        if value is None and "rotationSystem" in info.data:
            raise ValueError("missing, though rotationSystem is not NONE")
        return value

    @pydantic.field_validator("cameraAngle")
    @classmethod
    def _is_an_angle(cls, value: float | None) -> float | None:
        if value is not None and not -360 <= value <= 360:
            raise ValueError(f"camera angle {value:g} is outside -360 to 360 degrees")
        return value

    @property
    def identity(self) -> str:
        """What to call the visit in a message to people."""
        return f"{self.instrument or 'no instrument'} group {self.groupId}"

    @property
    def is_observation(self) -> bool:
        """Whether an instrument is going to take images."""
        return bool(self.instrument)

    @property
    def ra(self) -> float | None:
        """Boresight right ascension, ICRS degrees in [0, 360); `None` when not announced so."""
        if self.position is None or self.coordinateSystem != CoordSys.ICRS:
            return None
        return self.position[0] % 360.0

    @property
    def dec(self) -> float | None:
        """Boresight declination, ICRS degrees; `None` when not announced so."""
        if self.position is None or self.coordinateSystem != CoordSys.ICRS:
            return None
        return self.position[1]

    @property
    def rotation(self) -> float | None:
        """Focal-plane +Y east of north, degrees; `None` when not announced so."""
        return self.cameraAngle if self.rotationSystem == RotSys.SKY else None

    @property
    def pointing(self) -> tuple[float, float, float] | None:
        """`ra`, `dec` and `rotation`, degrees; `None` when one of them was not announced so."""
        if self.ra is None or self.dec is None or self.rotation is None:
            return None
        return self.ra, self.dec, self.rotation

    def age(self, now: float) -> float:
        """Tell how long ago the message was published.

        Parameters
        ----------
        now : `float`
            The time, UTC Unix seconds.

        Returns
        -------
        age : `float`
            Seconds; by ``private_efdStamp`` where there is one, else by
            ``private_sndStamp``.
        """
        return now - (self.private_efdStamp or self.private_sndStamp - TAI_MINUS_UTC)

    def fan_out(self, detectors: Iterable[int]) -> tuple[FannedOutVisit, ...]:
        """Make one message per detector; see `fan_out`."""
        return fan_out(self, detectors)


class FannedOutVisit(BareVisit):
    """A nextVisit message for one detector."""

    detector: Annotated[int, pydantic.Field(ge=0, le=100_000)]
    """Detector number."""

    @property
    def identity(self) -> str:
        """What to call the detector-visit in a message to people."""
        return f"{self.instrument or 'no instrument'} group {self.groupId} detector {self.detector}"


def fan_out(visit: BareVisit, detectors: Iterable[int]) -> tuple[FannedOutVisit, ...]:
    """Make one message per detector.

    Parameters
    ----------
    visit : `BareVisit`
        The visit.
    detectors : `~collections.abc.Iterable` [ `int` ]
        Detector numbers.

    Returns
    -------
    visits : `tuple` [ `FannedOutVisit` ]
        In the order of ``detectors``.
    """
    fields = {**dict(visit), "detector": None}
    return tuple(FannedOutVisit.model_validate({**fields, "detector": d}) for d in detectors)


def check_fresh(visit: BareVisit, now: float, expiration: float) -> None:
    """Refuse a message that is too old.

    Parameters
    ----------
    visit : `BareVisit`
        The visit.
    now : `float`
        The time, UTC Unix seconds.
    expiration : `float`
        Greatest age, seconds.

    Raises
    ------
    StaleVisitError
        Raised if the message is older.
    """
    age = visit.age(now)
    if age > expiration:
        raise StaleVisitError(
            f"Visit {visit.identity}: the message is {age:.0f} s old and expired after {expiration:.0f} s."
        )


def renewed(visit: BareVisit, now: float) -> BareVisit:
    """Return the message as if it had been published now; what it announces stays.

    Parameters
    ----------
    visit : `BareVisit`
        The visit.
    now : `float`
        The time, UTC Unix seconds.
    """
    return visit.model_copy(
        update={
            # Where nothing else says when it began, the publication does.
            "startTime": visit.startTime or visit.private_sndStamp,
            "private_sndStamp": now + TAI_MINUS_UTC,
            "private_efdStamp": 0.0,
        }
    )


def parse_visit(data: bytes | str | Mapping[str, Any]) -> BareVisit:
    """Read a nextVisit message.

    Parameters
    ----------
    data : `bytes`, `str` or `~collections.abc.Mapping`
        JSON text or the object it stands for; values may be flat strings, as
        in a Redis stream.

    Returns
    -------
    visit : `BareVisit`
        The message; a `FannedOutVisit` if it names a detector.

    Raises
    ------
    InvalidVisitError
        Raised if the message can't be used; the text has what is known of
        the visit's identity and every fault.
    """
    fields = _read_object(data)
    model = FannedOutVisit if "detector" in fields else BareVisit
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as e:
        faults = [_describe(error) for error in e.errors(include_url=False)]
        raise InvalidVisitError(f"Visit {_identity_of(fields)}: {'; '.join(faults)}.") from None


def _read_object(data: bytes | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(data, bytes | str):
        if len(data) > _MAX_BYTES:
            raise InvalidVisitError(f"Visit unknown: a message of {len(data)} bytes is no nextVisit.")
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise InvalidVisitError(f"Visit unknown: the message is not JSON: {e}.") from None
    if not isinstance(data, Mapping):
        raise InvalidVisitError(f"Visit unknown: the message is not an object but {_REPR.repr(data)}.")
    return data


def _identity_of(fields: Mapping[str, Any]) -> str:
    parts = [_REPR.repr(fields.get("instrument", "no instrument")).strip("'")]
    parts.append("group " + _REPR.repr(fields.get("groupId", "unknown")).strip("'"))
    if "detector" in fields:
        parts.append("detector " + _REPR.repr(fields["detector"]).strip("'"))
    return " ".join(parts)


def _describe(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{name} is missing"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    shown = "NaN" if isinstance(value, float) and math.isnan(value) else _REPR.repr(value)
    return f"{name}: {message} (got {shown})"
