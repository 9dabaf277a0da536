"""``ppdctl keys``: who may ask ppd from other machines."""

from __future__ import annotations

__all__ = ["add_key_commands"]

import argparse
import shutil
from pathlib import Path
from typing import Any

from .options import add_command, completed_by, print_json

_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
_DEFAULT = Path("/etc/ppd/keys")


def add_key_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Define ``ppdctl keys``."""
    keys = add_command(
        commands,
        common,
        "keys",
        "say who may ask ppd from other machines",
        "For control_listen. To take a key back, remove its file from FOLDER/look or FOLDER/change.",
    )
    parts = keys.add_subparsers(required=True, metavar="WHAT")
    server = add_command(parts, common, "server", "make ppd's own key, once")
    client = add_command(
        parts,
        common,
        "client",
        "make a key for somebody",
        "He gets the folder --out; his public key stays in FOLDER.",
    )
    client.add_argument("name", metavar="NAME", help="whose it is; the log has it")
    client.add_argument(
        "--role",
        choices=("look", "change"),
        default="look",
        help="what he may: look (default), or change too",
    )
    out = client.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what he gets")
    completed_by(out, _FOLDERS)
    for command in (server, client):
        folder = command.add_argument(
            "--folder", type=Path, default=_DEFAULT, metavar="FOLDER", help=f"control_keys ({_DEFAULT})"
        )
        completed_by(folder, _FOLDERS)
        command.set_defaults(alone=True)
    server.set_defaults(run=_server)
    client.set_defaults(run=_client)


def _server(arguments: argparse.Namespace) -> int:
    from .._keys import make_server

    public = make_server(arguments.folder)
    _give(arguments.folder)
    return _tell(arguments, public, f"{public} is what others know ppd by; set control_keys to its folder")


def _client(arguments: argparse.Namespace) -> int:
    from .._keys import make_client

    secret = make_client(arguments.folder, arguments.name, arguments.role, arguments.out)
    _give(arguments.folder)
    return _tell(arguments, secret, f"give {arguments.name} the folder {arguments.out}, and nobody else")


def _give(folder: Path) -> None:
    """Have all in the folder belong to whom it belongs to: root makes keys for ppd's user."""
    owner = folder.stat()
    for path in folder.rglob("*"):
        if path.stat().st_uid != owner.st_uid:
            shutil.chown(path, owner.st_uid, owner.st_gid)


def _tell(arguments: argparse.Namespace, made: Path, text: str) -> int:
    if arguments.json:
        print_json({"made": str(made)})
    else:
        print(text)
    return 0
