"""``ppdctl config reference``: each setting in a table, as docs/configuration.md has it."""

from __future__ import annotations

__all__ = ["run_reference", "write_reference"]

import argparse
import json
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .._setting_types import PipelineNode, SkyRange, parse_size
from .._settings_sources import ENVIRONMENT
from ..config import Settings
from ..credentials import FILES, VALUES
from ..supervisor.setting_kinds import KINDS
from .options import print_json

_INTRODUCTION = """\
# Configuration

*Made by `ppdctl config reference` (`make reference`) from the settings themselves; a test
sees that it is current. Don't edit it.*

One YAML file, `/etc/ppd/ppd.yaml` unless `--config` or `PPD_CONFIG` says another; an example with
all settings is [etc/ppd.yaml](../etc/ppd.yaml). Unknown names are refused, with the nearest known one;
every mistake is named with its line. Relative paths are relative to the file's folder; `$NAME` and
`${NAME}` in paths and URIs are taken from the environment, where they must be set. Sizes are bytes or,
for example, `512 MiB` or `4 GB`; times are seconds. `ppdctl config check` looks for mistakes, `config show`
tells where each value comes from, `config schema` is for editors.

Where a setting has a name in the environment, it is that of `prompt_processing`, with its default where
it has one (but for `LOCAL_REPOS`, which is below `state_dir`). It wins over the file, and is no setting when
it is empty. `ppdctl config from-prompt-processing` makes a file of the values of its charts
([deployment.md](deployment.md)).

*A change* tells what a reload means for it ([commands.md](commands.md#reload)).

## Settings
"""

_NODES = """
## Nodes of the pipelines

`preprocessing_pipelines` and `main_pipelines` are lists of nodes; the first that matches the visit wins.

| field | type | default | meaning |
|---|---|---|---|
"""

_SECRETS = """
## Secrets

What is secret need be in no file that others read, nor in a command line. These variables, and those of
settings above, may be given as `NAME_FILE`, with the path of a file that has the value, or as a credential of
systemd of their name (`LoadCredential=`):

{values}

These name a file, which may itself be a credential of that name. Where a group can read the credential (by an
access list, as systemd makes them), a private copy in the runtime directory is used, since libpq and
the middleware refuse others:

{files}

A name and its `NAME_FILE` together are refused. What is in the environment wins over a credential. They are
read once, at the start. Children get none of those that open the central repo; what tasks need (the APDB's
password) is given to them as `PPD_TASKS_NAME`, for example `PPD_TASKS_LSST_DB_AUTH`.
"""


def write_reference() -> str:
    """Write the page.

    Returns
    -------
    text : `str`
        Markdown.
    """
    variables = {setting: name for name, setting in ENVIRONMENT.items()}
    rows = [
        "| setting | type | default | in the environment | a change | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        if name == "config_path":
            continue
        variable = f"`{variables[name]}`" if name in variables else ""
        rows.append(_row(f"`{name}`", *_columns(field), variable, KINDS[name].value, _meaning(field)))
    nodes = [
        _row(f"`{field.alias or name}`", *_columns(field), _meaning(field))
        for name, field in PipelineNode.model_fields.items()
    ]
    values = ", ".join(f"`{name}`" for name in VALUES if name not in ENVIRONMENT)
    secrets = _SECRETS.format(values=values, files=", ".join(f"`{name}`" for name in FILES))
    return _INTRODUCTION + "\n" + "\n".join(rows) + "\n" + _NODES + "\n".join(nodes) + "\n" + secrets


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _columns(field: FieldInfo) -> tuple[str, str]:
    return _type(field.annotation, field.metadata), _default(field)


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").replace("``", "`").split())


def _type(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """Say in words what a value may be."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        return ", ".join(_type(a, metadata) for a in arguments if a is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        return f"list of {_plural(arguments[0])}"
    if origin is dict:
        return f"mapping to {_plural(arguments[1])}"
    limits = _limits(metadata)
    if any(getattr(m, "func", None) is parse_size for m in metadata):
        return "size"
    name = _NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation))
    return f"{name} {limits}".strip()


def _limits(metadata: typing.Sequence[Any]) -> str:
    """The lower limit, if there is one that means something."""
    found = []
    for item in metadata:
        for part in getattr(item, "metadata", [item]):
            if isinstance(part, annotated_types.Gt):
                found.append(f"> {part.gt}")
            elif isinstance(part, annotated_types.Ge):
                found.append(f"≥ {part.ge}")
    return ", ".join(found)


_NAMES: dict[Any, str] = {
    bool: "true, false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    SkyRange: "`{min: , max: }`, degrees",
    PipelineNode: "node",
}
_PLURALS = {"text": "texts", "path": "paths", "node": "nodes"}


def _plural(annotation: Any) -> str:
    name = _type(annotation)
    return _PLURALS.get(name, f"{name}, each")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    if field.default_factory is not None:
        return "see there" if "when absent" in (field.description or "") else "`{}`"
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


# The command


def run_reference(arguments: argparse.Namespace) -> int:
    """Run ``ppdctl config reference``."""
    text = write_reference()
    if arguments.json:
        print_json({"markdown": text})
    else:
        print(text, end="")
    return 0
