"""``ppdctl config reference``: each setting in a table, as docs/configuration.md has it."""

from __future__ import annotations

__all__ = ["run_reference", "write_reference"]

import argparse

from pydantic.fields import FieldInfo

from .._setting_types import PipelineNode
from .._settings_sources import ENVIRONMENT
from ..config import Settings
from ..credentials import FILES, VALUES
from ..supervisor.setting_kinds import KINDS
from .field_words import say_default, say_type, tidy, write_row
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
([moving-over.md](moving-over.md)).

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
        rows.append(write_row(f"`{name}`", *_columns(field), variable, KINDS[name].value, _meaning(field)))
    nodes = [
        write_row(f"`{field.alias or name}`", *_columns(field), _meaning(field))
        for name, field in PipelineNode.model_fields.items()
    ]
    values = ", ".join(f"`{name}`" for name in VALUES if name not in ENVIRONMENT)
    secrets = _SECRETS.format(values=values, files=", ".join(f"`{name}`" for name in FILES))
    return _INTRODUCTION + "\n" + "\n".join(rows) + "\n" + _NODES + "\n".join(nodes) + "\n" + secrets


def _columns(field: FieldInfo) -> tuple[str, str]:
    # What follows from another setting is told in the sentence.
    made = field.default_factory is not None and "when absent" in (field.description or "")
    return say_type(field.annotation, field.metadata), "see there" if made else say_default(field)


def _meaning(field: FieldInfo) -> str:
    return tidy(field.description or "")


# The command


def run_reference(arguments: argparse.Namespace) -> int:
    """Run ``ppdctl config reference``."""
    text = write_reference()
    if arguments.json:
        print_json({"markdown": text})
    else:
        print(text, end="")
    return 0
