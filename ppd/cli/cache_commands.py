"""``ppdctl cache``: what is in the cache, and what of it goes or stays."""

from __future__ import annotations

__all__ = ["add_cache_commands"]

import argparse
import sys
from typing import TYPE_CHECKING, Any, Literal

from .options import add_command, ask_first, tell

if TYPE_CHECKING:
    from .._control_messages import ControlReply
    from ..control import ControlClient


def add_cache_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    parser = commands.add_parser("cache", help="what is in the cache, and what of it goes or stays")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = add_command(
        actions,
        common,
        "show",
        "what is in the cache, by dataset type",
        "Leased is what a child or a nursery has been promised; lasting what every visit uses, and is"
        " evicted last.",
    )
    show.set_defaults(run=_show)
    evict = add_command(
        actions,
        common,
        "evict",
        "drop inputs that nobody holds, once you have said yes",
        "They are fetched again from central when a visit needs them. What is leased or pinned stays.",
    )
    evict.add_argument("types", nargs="*", metavar="TYPE", help="dataset types")
    evict.add_argument("--all", action="store_true", help="of all types that are not pinned")
    evict.add_argument("--yes", action="store_true", help="do not ask")
    evict.set_defaults(run=_evict)
    pin = add_command(
        actions,
        common,
        "pin",
        "never evict what is of some dataset types",
        "Until unpin, or until ppd ends. Pinned types may have half of cache_bytes: what would leave less for"
        " all else is refused, and what is fetched beyond is evicted as if it were not pinned. Where the"
        " cache's file system is full, nothing is pinned.",
    )
    unpin = add_command(actions, common, "unpin", "let what is of some dataset types go again")
    for command, name in ((pin, "pin"), (unpin, "unpin")):
        command.add_argument("types", nargs="+", metavar="TYPE", help="dataset types")
        command.set_defaults(run=_pin, command=name)


def _ask(
    client: ControlClient,
    command: Literal["show_cache", "evict", "pin", "unpin"],
    types: tuple[str, ...] = (),
) -> ControlReply:
    from .._control_messages import ControlRequest

    return client.request(ControlRequest(command=command, types=types))


def _show(client: ControlClient, arguments: argparse.Namespace) -> int:
    reply = _ask(client, "show_cache")
    if reply.ok and not arguments.json:
        _print(reply.result)
        return 0
    return tell(reply, arguments)


def _evict(client: ControlClient, arguments: argparse.Namespace) -> int:
    if bool(arguments.types) == arguments.all:
        print("ppdctl: either dataset types or --all", file=sys.stderr)
        return 2
    what = (
        "All inputs that nobody holds"
        if arguments.all
        else f"What nobody holds of {', '.join(arguments.types)}"
    )
    code = ask_first(
        "what is evicted has to be fetched again",
        f"{what} will have to be fetched again. Evict?",
        arguments.yes,
    )
    if code is not None:
        return code
    reply = _ask(client, "evict", tuple(arguments.types))
    done = ""
    if reply.ok:
        done = f"evicted: {reply.result['evicted']} datasets, {reply.result['evicted_bytes'] / 1e6:.1f} MB"
        done += f"; {reply.result['kept']} are leased and stay" if reply.result["kept"] else ""
    return tell(reply, arguments, done)


def _pin(client: ControlClient, arguments: argparse.Namespace) -> int:
    reply = _ask(client, arguments.command, tuple(arguments.types))
    pinned = [t["name"] for t in reply.result.get("types", ()) if t["pinned"]]
    return tell(reply, arguments, f"pinned: {', '.join(pinned) or 'nothing'}")


def _print(result: dict[str, Any]) -> None:
    from .screen import Text, make_console, make_table

    console = make_console()
    console.print(
        f"{result['bytes_held'] / 1e6:.1f} of {result['max_bytes'] / 1e6:.1f} MB in {result['place']},"
        f" {result['datasets']} datasets, {result['leases']} leases;"
        f" {result['bytes_fetched'] / 1e6:.1f} MB fetched and {result['evicted']} datasets evicted so far",
        markup=False,
        soft_wrap=True,
    )
    table = make_table("type", "datasets", "MB", "leased", "lasting", "")
    for column in table.columns[1:5]:
        column.justify = "right"
    for t in result["types"]:
        table.add_row(
            Text(t["name"], overflow="fold"),
            str(t["datasets"]),
            f"{t['bytes'] / 1e6:.3f}",
            str(t["leased"]),
            str(t["lasting"]),
            "pinned" if t["pinned"] else "",
        )
    console.print(table)
