"""``ppdctl dead-letters``: outputs that central has not taken."""

from __future__ import annotations

__all__ = ["add_dead_letter_commands"]

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._limits import MAX_ENTRIES
from .options import add_command, ask_first, print_json, settings_of

if TYPE_CHECKING:
    from ..config import Settings
    from ..control import ControlClient


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
    listing = add_command(actions, common, "list", "all of them, with the reasons")
    listing.set_defaults(run=_list, offline=True)
    show = add_command(actions, common, "show", "one of them, with its files")
    show.add_argument("entry", metavar="ENTRY", help="its name")
    show.set_defaults(run=_show, offline=True)
    retry = add_command(actions, common, "retry", "export them once more")
    retry.add_argument("entries", nargs="*", metavar="ENTRY", help="their names")
    retry.add_argument("--all", action="store_true", help="all that there are")
    retry.set_defaults(run=_retry)
    drop = add_command(actions, common, "drop", "delete them: these outputs are lost then")
    drop.add_argument("entries", nargs="+", metavar="ENTRY", help="their names")
    drop.add_argument("--yes", action="store_true", help="do not ask")
    drop.set_defaults(run=_drop)


def _list(settings: Settings, arguments: argparse.Namespace) -> int:
    from ..supervisor.dead_letters import list_letters

    letters = list_letters(settings.spool_dir)
    if arguments.json:
        print_json({"dead_letters": [letter.model_dump(mode="json") for letter in letters]})
        return 0
    if not letters:
        print("no dead letters")
        return 0
    from .screen import Text, clock, make_console, make_table

    table = make_table("entry", "since", "kind", "datasets", "MB", "reason")
    for letter in letters:
        table.add_row(
            Text(letter.entry, overflow="fold"),
            clock(letter.time),
            letter.kind,
            str(letter.datasets),
            f"{letter.bytes / 1e6:.1f}",
            Text(letter.reason),
        )
    make_console().print(table)
    return 0


def _show(settings: Settings, arguments: argparse.Namespace) -> int:
    from ..supervisor.dead_letters import read_letter

    letter = read_letter(settings.spool_dir, arguments.entry)
    folder = settings.spool_dir / "dead-letters" / arguments.entry
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    if arguments.json:
        print_json({**letter.model_dump(mode="json"), "folder": str(folder), "files": files})
        return 0
    from .screen import Text, clock, make_console, make_table

    console = make_console()
    whose = str(letter.key) if letter.key else "unknown: its manifest can't be read"
    for name, value in (
        ("detector-visit", whose),
        ("set aside", f"{clock(letter.time)}  {letter.kind}"),
        ("reason", letter.reason),
        ("pipeline", "ran to its end" if letter.success else "failed"),
        ("folder", str(folder)),
    ):
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    table = make_table("bytes", "file")
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
        from ..supervisor.dead_letters import list_letters

        entries = [letter.entry for letter in list_letters(settings_of(arguments).spool_dir)]
    return _ask(client, "retry_dead_letters", entries, arguments)


def _drop(client: ControlClient, arguments: argparse.Namespace) -> int:
    question = f"The outputs of {len(arguments.entries)} dead letters will be lost. Drop them?"
    code = ask_first("dropping loses these outputs", question, arguments.yes)
    if code is not None:
        return code
    return _ask(client, "drop_dead_letters", arguments.entries, arguments)


def _ask(client: ControlClient, command: Any, entries: Sequence[str], arguments: argparse.Namespace) -> int:
    from .._control_messages import ControlRequest

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
        error = " ".join(refused.values()) or None
        code = "unknown" if refused else "ok"
        print_json({"done": done, "refused": refused}, ok=not refused, code=code, error=error)
    else:
        what = "sent again" if command == "retry_dead_letters" else "dropped"
        for name in done:
            print(f"{name}: {what}")
        if not entries:
            print("no dead letters")
    for reason in refused.values():
        print(f"ppdctl: {reason}", file=sys.stderr)
    return 1 if refused else 0
