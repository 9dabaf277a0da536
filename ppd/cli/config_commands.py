"""``ppdctl config``: whether the configuration can be used, and what is in it."""

from __future__ import annotations

__all__ = ["add_config_commands"]

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import FILES, add_command, completed_by, print_json

if TYPE_CHECKING:
    from ..config import Settings

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
    check = add_command(actions, common, "check", "look for mistakes, in the pipelines and their tasks too")
    check.set_defaults(run=_check, offline=True)
    show = add_command(
        actions,
        common,
        "show",
        "each setting, and where it comes from",
        "A line of the file, a name in the environment, or the default; and when a change counts."
        " Passwords are masked.",
    )
    show.add_argument("names", nargs="*", metavar="SETTING", help="only these")
    show.add_argument("--set", action="store_true", help="only what is not at its default")
    show.set_defaults(run=_show, alone=True)
    schema = add_command(actions, common, "schema", "JSON schema of the file, for editors")
    schema.set_defaults(run=_schema, alone=True)
    reference = add_command(actions, common, "reference", "all settings in a table, as the docs have it")
    reference.set_defaults(run=_reference, alone=True)
    migration = add_command(
        actions,
        common,
        "from-prompt-processing",
        "make our file of that of a prompt_processing site",
        "From values of its Helm charts, what env prints, or Kubernetes' lists of variables. What is not"
        " carried over is told on standard error, with the reason; 1: something needed was not found.",
    )
    files = migration.add_argument(
        "files", nargs="+", metavar="FILE", help="later ones win; - for standard input"
    )
    completed_by(files, FILES)
    migration.add_argument("--output", type=Path, help="file to write, which must not be there")
    migration.set_defaults(run=_migrate, alone=True)


def _check(settings: Settings, arguments: argparse.Namespace) -> int:
    # It needs the middleware, for which the other commands need not wait.
    from .._pipeline_checks import build_graphs

    graphs = build_graphs(settings)
    where = settings.config_path or "the environment"
    if arguments.json:
        print_json({"config": str(where), "pipelines": sorted(graphs)})
    else:
        print(f"{where} can be used; {len(graphs)} pipelines can be built")
    return 0


def _reference(arguments: argparse.Namespace) -> int:
    from .config_reference import run_reference

    return run_reference(arguments)


def _migrate(arguments: argparse.Namespace) -> int:
    from .migration import run_migration

    return run_migration(arguments)


def _show(arguments: argparse.Namespace) -> int:
    from .._settings_sources import read_settings
    from ..config import Settings, find_config
    from ..credentials import take_credentials
    from ..supervisor.setting_kinds import KINDS

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
        print_json({"settings": rows})
        return 0
    from .screen import Text, make_console, make_table

    table = make_table("setting", "value", "from", "a change counts")
    for name, row in rows.items():
        value = row["value"] if isinstance(row["value"], str) else json.dumps(row["value"])
        table.add_row(
            Text(name),
            Text(str(value), overflow="fold"),
            Text(str(row["from"]), overflow="fold"),
            str(row["reload"]),
        )
    make_console().print(table)
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from ..config import Settings

    schema = Settings.model_json_schema()
    del schema["properties"]["config_path"]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    if arguments.json:
        print_json({"schema": schema})
    else:
        print(json.dumps(schema, indent=2))
    return 0


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        from ..logs import mask_secrets

        return mask_secrets(value)
    if isinstance(value, dict):
        return {k: _masked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_masked(v) for v in value]
    return value
