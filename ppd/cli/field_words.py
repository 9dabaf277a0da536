"""A model's fields in words: what a value may be, and what it is if none is given."""

from __future__ import annotations

__all__ = ["say_default", "say_type", "tidy", "write_row"]

import enum
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .._setting_types import PipelineNode, SkyRange, parse_size

_NAMES: dict[Any, str] = {
    bool: "true, false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Any: "anything",
    SkyRange: "`{min: , max: }`, degrees",
    PipelineNode: "node",
}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
# What any integer of 64 bits is, any process ID, or any time until the year 2286.
_MOOT = (-(2**63), 2**63, 2**31, 1e10)
_PLURALS = {"text": "texts", "path": "paths", "node": "nodes", "number": "numbers", "integer": "integers"}


def say_type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say in words what a value may be.

    Parameters
    ----------
    annotation : `object`
        The field's type.
    metadata : sequence of `object`, optional
        What pydantic has set apart from it: limits.

    Returns
    -------
    words : `str`
        Markdown.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return say_type(arguments[0], [*arguments[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        return ", ".join(say_type(a, metadata) for a in arguments if a is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)} {_plural(arguments[0])}"
    if origin is tuple:
        most = next((m.max_length for m in metadata if getattr(m, "max_length", None)), None)
        return f"list of {_plural(arguments[0])}" + (f", at most {most}" if most else "")
    if origin is dict:
        # Of keys and values that may be anything there is no more to say.
        return "object" if arguments[1] is Any else f"mapping to {_plural(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"{one.value} {one.name}" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return _NAMES.get(annotation) or f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if any(getattr(m, "func", None) is parse_size for m in metadata):
        return "size"
    name = _NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation))
    return f"{name} {_limits(metadata)}".strip()


def _limits(metadata: Sequence[Any]) -> str:
    """The limits, if there are any that mean something."""
    found = []
    for item in metadata:
        for part in getattr(item, "metadata", [item]):
            for name, sign in _SIGNS.items():
                limit = getattr(part, name, None)
                if limit is not None and limit not in _MOOT:
                    found.append(f"{sign} {limit:g}" if isinstance(limit, float) else f"{sign} {limit}")
            if getattr(part, "max_length", None) is not None:
                found.append(f"at most {part.max_length} long")
            if getattr(part, "pattern", None) is not None:
                found.append(f"that matches `{part.pattern}`")
    return ", ".join(found)


def _plural(annotation: Any) -> str:
    name = say_type(annotation)
    return name if name.startswith("[") else _PLURALS.get(name, f"{name}, each")


def say_default(field: FieldInfo) -> str:
    """Say in words what a field is if nothing is given.

    Parameters
    ----------
    field : `pydantic.fields.FieldInfo`
        The field.

    Returns
    -------
    words : `str`
        Markdown; empty: nothing.
    """
    if field.is_required():
        return "*needed*"
    if field.default_factory is not None:
        return "`{}`"
    value = field.default
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return f"`{json.dumps(list(value))}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"`{value // 2**30} GiB`" if value % 2**30 == 0 else f"`{value // 2**20} MiB`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return '`""`' if value == "" else f"`{value}`"


def tidy(sentences: str) -> str:
    """Make a docstring's text one line of Markdown."""
    return " ".join(sentences.replace("``", "`").split())


def write_row(*cells: str) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
