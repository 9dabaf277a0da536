"""``ppdctl config``: whether the configuration can be used, and what is in it."""

from __future__ import annotations

__all__ = ["add_config_commands"]

import argparse
import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._settings_sources import read_settings
from ..config import Settings, find_config
from ..credentials import take_credentials
from ..logs import mask_secrets
from ..supervisor.setting_kinds import KINDS
from .config_reference import add_reference_command
from .migration import add_migration_command

_DEFAULT = "default"


def add_config_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    parser = commands.add_parser("config", help="whether the configuration can be used, and what is in it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser(
        "check", parents=[common], help="look for mistakes, in the pipelines and their tasks too"
    )
    check.set_defaults(run=_check, offline=True)
    show = actions.add_parser("show", parents=[common], help="each setting, and where it comes from")
    show.add_argument("names", nargs="*", metavar="SETTING", help="only these")
    show.add_argument("--set", action="store_true", help="only what is not at its default")
    show.set_defaults(run=_show, alone=True)
    schema = actions.add_parser("schema", parents=[common], help="JSON schema of the file, for editors")
    schema.set_defaults(run=_schema, alone=True)
    add_reference_command(actions, common)
    add_migration_command(actions, common)


def _check(settings: Settings, arguments: argparse.Namespace) -> int:
    # It needs the middleware, for which the other commands need not wait.
    from .._pipeline_checks import build_graphs

    graphs = build_graphs(settings)
    where = settings.config_path or "the environment"
    if arguments.json:
        print(json.dumps({"config": str(where), "pipelines": sorted(graphs)}))
    else:
        print(f"{where} can be used; {len(graphs)} pipelines can be built")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    take_credentials(os.environ)
    settings, places = read_settings(find_config(arguments.config, os.environ), os.environ)
    values = settings.to_dict()
    del values["config_path"]
    strange = [name for name in arguments.names if name not in values]
    if strange:
        print(f"ppdctl: no such settings: {', '.join(strange)}", file=sys.stderr)
        return 2
    chosen = [
        name
        for name in values
        if (not arguments.names or name in arguments.names) and (not arguments.set or name in places)
    ]
    rows = {
        name: {
            "value": _masked(values[name]),
            "from": places.get(name, _DEFAULT),
            "reload": KINDS[name].value,
            "meaning": Settings.model_fields[name].description,
        }
        for name in chosen
    }
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("setting", "value", "from", "a change counts", box=None, pad_edge=False)
    for name, row in rows.items():
        value = row["value"] if isinstance(row["value"], str) else json.dumps(row["value"])
        table.add_row(
            Text(name),
            Text(str(value), overflow="fold"),
            Text(str(row["from"]), overflow="fold"),
            str(row["reload"]),
        )
    Console().print(table)
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    schema = Settings.model_json_schema()
    del schema["properties"]["config_path"]
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2))
    return 0


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, dict):
        return {k: _masked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_masked(v) for v in value]
    return value
