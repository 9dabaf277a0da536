"""``ppdctl dead-letters``: outputs that central has not taken."""

from __future__ import annotations

__all__ = ["add_dead_letter_commands"]

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import Settings
from ..control import ControlClient
from ..messages import MAX_ENTRIES, ControlRequest
from ..supervisor.dead_letters import list_letters, read_letter
from .options import ask_first, settings_of


def add_dead_letter_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    parser = commands.add_parser("dead-letters", help="outputs that central has not taken")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", parents=[common], help="all of them, with the reasons")
    listing.set_defaults(run=_list, offline=True)
    show = actions.add_parser("show", parents=[common], help="one of them, with its files")
    show.add_argument("entry", help="its name")
    show.set_defaults(run=_show, offline=True)
    retry = actions.add_parser("retry", parents=[common], help="export them once more")
    retry.add_argument("entries", nargs="*", metavar="ENTRY", help="their names")
    retry.add_argument("--all", action="store_true", help="all that there are")
    retry.set_defaults(run=_retry)
    drop = actions.add_parser("drop", parents=[common], help="delete them: these outputs are lost then")
    drop.add_argument("entries", nargs="+", metavar="ENTRY", help="their names")
    drop.add_argument("--yes", action="store_true", help="do not ask")
    drop.set_defaults(run=_drop)


def _list(settings: Settings, arguments: argparse.Namespace) -> int:
    letters = list_letters(settings.spool_dir)
    if arguments.json:
        print(json.dumps([letter.model_dump(mode="json") for letter in letters], indent=2))
        return 0
    console = Console()
    if not letters:
        console.print("no dead letters")
        return 0
    table = Table("entry", "since", "kind", "datasets", "MB", "reason", box=None, pad_edge=False)
    for letter in letters:
        table.add_row(
            Text(letter.entry, overflow="fold"),
            _clock(letter.time),
            letter.kind,
            str(letter.datasets),
            f"{letter.bytes / 1e6:.1f}",
            Text(letter.reason),
        )
    console.print(table)
    return 0


def _show(settings: Settings, arguments: argparse.Namespace) -> int:
    letter = read_letter(settings.spool_dir, arguments.entry)
    folder = settings.spool_dir / "dead-letters" / arguments.entry
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    if arguments.json:
        found = {**letter.model_dump(mode="json"), "folder": str(folder), "files": files}
        print(json.dumps(found, indent=2))
        return 0
    console = Console()
    whose = str(letter.key) if letter.key else "unknown: its manifest can't be read"
    for name, value in (
        ("detector-visit", whose),
        ("set aside", f"{_clock(letter.time)}  {letter.kind}"),
        ("reason", letter.reason),
        ("pipeline", "ran to its end" if letter.success else "failed"),
        ("folder", str(folder)),
    ):
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    table = Table("bytes", "file", box=None, pad_edge=False)
    for name, size in files.items():
        table.add_row(str(size), Text(name, overflow="fold"))
    console.print(table)
    return 0


def _retry(client: ControlClient, arguments: argparse.Namespace) -> int:
    if bool(arguments.entries) == arguments.all:
        print("ppdctl: either names of dead letters or --all", file=sys.stderr)
        return 2
    entries = arguments.entries
    if arguments.all:
        entries = [letter.entry for letter in list_letters(settings_of(arguments).spool_dir)]
    return _ask(client, "retry_dead_letters", entries, arguments)


def _drop(client: ControlClient, arguments: argparse.Namespace) -> int:
    question = f"The outputs of {len(arguments.entries)} dead letters will be lost. Drop them?"
    code = ask_first("dropping loses these outputs", question, arguments.yes)
    if code is not None:
        return code
    return _ask(client, "drop_dead_letters", arguments.entries, arguments)


def _ask(client: ControlClient, command: Any, entries: Sequence[str], arguments: argparse.Namespace) -> int:
    done: list[str] = []
    refused: dict[str, str] = {}
    for begin in range(0, len(entries), MAX_ENTRIES):
        some = tuple(entries[begin : begin + MAX_ENTRIES])
        reply = client.request(ControlRequest(command=command, entries=some))
        done += reply.result.get("done", [])
        refused |= reply.result.get("refused", {})
        if not reply.ok and not reply.result:
            refused |= dict.fromkeys(some, reply.error or reply.code)
    if arguments.json:
        print(json.dumps({"done": done, "refused": refused}, indent=2))
    else:
        what = "sent again" if command == "retry_dead_letters" else "dropped"
        for name in done:
            print(f"{name}: {what}")
        if not entries:
            print("no dead letters")
        for reason in refused.values():
            print(f"ppdctl: {reason}", file=sys.stderr)
    return 1 if refused else 0


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when))
