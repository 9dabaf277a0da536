"""What settings are made of: sizes, times, names, and the nodes of the pipelines configuration."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import pydantic

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})")
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "VERBOSE", "DEBUG", "TRACE")


def parse_size(value: object) -> object:
    """Read a size in bytes.

    Parameters
    ----------
    value : `object`
        A number, or text such as ``4 GiB``, ``500MB`` or ``1024``.

    Returns
    -------
    size : `object`
        Bytes as `int` if the value is such a text, else the value unchanged.

    Raises
    ------
    ValueError
        Raised if a text is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("not a size: write bytes or, for example, 512 MiB or 4 GiB")
    number, prefix, binary = match.groups()
    factor = 1024 if binary else 1000
    try:
        return int(float(number) * factor ** " KMGT".index(prefix.upper() or " "))
    except OverflowError:
        raise ValueError("more bytes than there are") from None


def _check_regex(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError(f"not a regular expression: {e}") from e
    return value


def _check_level(value: object) -> object:
    if isinstance(value, str):
        value = value.upper()
        if value not in _LEVELS:
            raise ValueError(f"not a log level; these are: {', '.join(_LEVELS)}")
    return value


def split_levels(value: object) -> object:
    # SERVICE_LOG_LEVELS: "lsst.daf=DEBUG .=INFO", "." being the root logger.
    if not isinstance(value, str):
        return value
    levels = {}
    for pair in value.replace(",", " ").split():
        name, equals, level = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} is not logger=LEVEL")
        levels[name] = level
    return levels


def _check_listen(value: object) -> object:
    # Nothing, or what YAML and people write for it, means: no page.
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "off")):
        return None
    return value


def split_listen(value: str) -> tuple[str, int]:
    """Split ``host:port`` into both.

    Parameters
    ----------
    value : `str`
        As in the setting ``http_listen``; an IPv6 address is in brackets.

    Returns
    -------
    host, port : `str`, `int`
        Where to listen; port 0: any that is free.

    Raises
    ------
    ValueError
        Raised if it is not of this form.
    """
    match = _LISTEN.fullmatch(value.strip())
    if match is None or int(match[3]) > 65535:
        raise ValueError("not host:port, as 127.0.0.1:8642 or [::1]:8642; port 0: any that is free")
    return match[1] or match[2], int(match[3])


def _check_address(value: str) -> str:
    split_listen(value)
    return value.strip()


def _check_redis(value: object) -> object:
    if not isinstance(value, str) or not value.strip():
        return value
    url = value.strip()
    # The environment of prompt_processing has just a host.
    url = url if "://" in url else f"redis://{url}"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise ValueError(f"no URL of a Redis server: {e}") from None
    if parts.scheme == "unix" and parts.path and not parts.query:
        return url
    good = parts.scheme in ("redis", "rediss") and parts.hostname and port != 0
    if not good or parts.query or parts.fragment or not re.fullmatch(r"/?\d{0,5}", parts.path):
        raise ValueError("no URL of a Redis server: redis://host:port/db, rediss://… or unix:///path")
    return url


Bytes = Annotated[int, pydantic.BeforeValidator(parse_size), pydantic.Field(ge=0, lt=2**63)]
Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Grace = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, pydantic.Field(ge=1, lt=2**31)]
Name = Annotated[str, pydantic.Field(min_length=1)]
Regex = Annotated[str, pydantic.AfterValidator(_check_regex)]
Url = Annotated[str, pydantic.Field(pattern=r"^https?://[^/\s]+")]
RedisUrl = Annotated[str, pydantic.BeforeValidator(_check_redis), pydantic.Field(min_length=1)]
Level = Annotated[str, pydantic.BeforeValidator(_check_level)]
Listen = Annotated[
    Annotated[str, pydantic.AfterValidator(_check_address)] | None, pydantic.BeforeValidator(_check_listen)
]
Degrees = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class Frozen(pydantic.BaseModel):
    """A model that does not change and knows all its fields."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )


class SkyRange(Frozen):
    """A closed range of right ascension or declination, in degrees."""

    min: Degrees
    """Lower bound, degrees; a right ascension may wrap (340 to 20, or -20 to 20)."""

    max: Degrees
    """Upper bound, degrees."""


class PipelineNode(Frozen):
    """One case of the pipelines configuration; the first that matches wins."""

    survey: str | None = None
    """Survey of the visit; any when absent."""

    ra: SkyRange | None = None
    """Range of right ascension, ICRS degrees."""

    dec: SkyRange | None = None
    """Range of declination, ICRS degrees."""

    binary_map: Path | None = pydantic.Field(default=None, alias="binary-map")
    """All-sky HEALPix map (FITS, implicit indexing); its value 1 matches, 0 and 16 (unknown) don't."""

    coord_type: Literal["detector", "boresight"] = pydantic.Field(default="detector", alias="coord-type")
    """Whether ra, dec and map are compared with the detector's centre or with the boresight."""

    pipelines: tuple[Name, ...]
    """Pipeline files in order of preference; none: the visit is ignored."""

    @pydantic.field_validator("pipelines", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return () if value is None or value == "None" else value

    @pydantic.field_validator("pipelines")
    @classmethod
    def _unique_stems(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # The stem names the output run.
        stems = [PurePosixPath(path).stem for path in value]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise ValueError(f"two pipeline files of one node have the same name: {', '.join(twice)}")
        return value

    @pydantic.field_validator("dec")
    @classmethod
    def _ordered(cls, value: SkyRange | None) -> SkyRange | None:
        if value is not None and value.min > value.max:
            raise ValueError("min is greater than max; only right ascension wraps")
        return value
