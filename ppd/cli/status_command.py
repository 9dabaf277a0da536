"""``ppdctl status``: how ppd is and what it does, on one screen."""

from __future__ import annotations

__all__ = ["add_status_command"]

import argparse
import collections
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .options import NoSupervisorError, add_command
from .steering_commands import describe_paused

if TYPE_CHECKING:
    from rich.console import Group

    from .client import ControlClient

_COLOURS = {"ok": "green", "draining": "yellow", "paused": "yellow"}
_ERRORS = 5
_TROUBLES = 3
# The least that a terminal is taken to have.
_ROWS, _COLUMNS = 12, 40


def add_status_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    status = add_command(
        commands,
        common,
        "status",
        "how ppd is and what it does",
        "Health and what is wrong, visits, slots, processors, cache, what children inherit, spool,"
        " counts, the last errors. With --watch and --json, one line for each look.",
    )
    status.add_argument("--watch", action="store_true", help="look again and again, until Ctrl-C")
    status.add_argument(
        "--every", type=_seconds, default=1.0, metavar="SECONDS", help="how often, with --watch (1)"
    )
    status.add_argument("--looks", type=_looks, metavar="N", help="end --watch after so many looks")
    status.set_defaults(run=_status)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 3600.0:
        raise argparse.ArgumentTypeError(f"{text!r} are no seconds from 0.1 to 3600")
    return found


def _looks(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000000")
    return int(text)


def _status(client: ControlClient, arguments: argparse.Namespace) -> int:
    if arguments.watch:
        try:
            return _watch(client, arguments)
        except KeyboardInterrupt:
            return 0
    status = client.status()
    if arguments.json:
        print(json.dumps(status, indent=2))
    else:
        from .screen import make_console

        make_console().print(_render(status))
    return 0


def _watch(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Look each second; a ppd that does not answer may be back at the next look."""
    if arguments.json:
        return _repeat(client, arguments, lambda status, _: print(json.dumps(status), flush=True))
    from .screen import Live, Text, make_console

    console = make_console()
    if not sys.stdout.isatty():
        return _repeat(client, arguments, lambda status, _: console.print(_render(status), Text()))
    last: dict[str, Any] = {}
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(status: dict[str, Any], error: str) -> None:
            nonlocal last
            last = status or last
            height = max(_ROWS, console.height)
            live.update(_render(last, error, height, max(_COLUMNS, console.width)), refresh=True)

        return _repeat(client, arguments, show)


def _repeat(
    client: ControlClient, arguments: argparse.Namespace, show: Callable[[dict[str, Any], str], object]
) -> int:
    number, code = 0, 0
    while arguments.looks is None or number < arguments.looks:
        if number:
            time.sleep(arguments.every)
        number += 1
        try:
            status, error, code = client.status(), "", 0
        except NoSupervisorError as e:
            if number == 1:
                raise
            status, error, code = {"health": "silent", "error": str(e)}, str(e), 3
            if not arguments.json and not sys.stdout.isatty():
                print(f"ppdctl: {e}", file=sys.stderr)
                continue
        show({} if error and not arguments.json else status, error)
    return code


def _render(
    status: dict[str, Any], error: str = "", height: int | None = None, width: int = _COLUMNS
) -> Group:
    """Lay it out; with a height, on a screen of so many lines, where the last visits and errors have room."""
    from rich.console import Group

    from .screen import Text, clock

    head, *state = _state(status)
    if error:
        head = Text(f"{clock(time.time(), date=False)} {error}", style="bold red")
    troubles = [Text(f"  {line}", style="yellow") for line in describe_paused(status["paused"])]
    troubles += [Text(f"  {fault}", style="red") for fault in status["faults"]]
    counts = "  ".join(f"{name} {number}" for name, number in status["counts"].items())
    errors = [
        Text(f"{clock(e['time'], date=False)} {e['kind']} {e['what']}: {e['message'][:300]}")
        for e in status["errors"][-_ERRORS:]
    ]
    visits = status["visits"]
    if height is not None:
        if len(troubles) > _TROUBLES:
            more = f"  and {len(troubles) - _TROUBLES} more: ppdctl status"
            troubles = [*troubles[:_TROUBLES], Text(more, style="red")]
        counts = counts if len(counts) <= 2 * width else counts[: 2 * width - 1] + "…"
        for text in (head, *state, *troubles, *errors):
            text.no_wrap, text.overflow = True, "ellipsis"
        # Two lines of counts and a title of the table; the visits have what is left.
        used = 1 + len(state) + len(troubles) + len(errors) + 2 + 1
        visits = visits[-max(1, height - used) :]
    lines = [head, *troubles, *state]
    if visits:
        lines.append(_visits(visits))
    return Group(*lines, Text(counts or "nothing counted yet"), *errors)


def _state(status: dict[str, Any]) -> list[Any]:
    """What is told in a line each."""
    from .screen import Text

    head = Text.assemble(
        (status["health"], f"bold {_COLOURS.get(status['health'], 'red')}"),
        f"  {status['instrument']}  pid {status['pid']}  up {_span(status['uptime'])}",
        f"  {status['deployment']}",
    )
    lines = [head]
    if len(status["deployments"]) > 1:
        each = ", ".join(f"{d['id']} {d['detector_visits']}" for d in status["deployments"])
        lines.append(Text(f"  side by side, with detector-visits at work: {each}"))
    states = {k: v for k, v in status["detector_visits"].items() if v}
    lines.append(Text("detector-visits: " + (_list(states) or "none")))
    phases = collections.Counter(c["phase"] or "starting" for c in status["children"])
    if phases:
        lines.append(Text("children: " + _list(dict(phases.most_common()))))
    slots, processors, cache, spool = (status[k] for k in ("slots", "processors", "cache", "spool"))
    lines.append(
        Text(
            f"slots {slots['used']}/{slots['total']}"
            f"  processors {processors['used']}/{processors['total']} ({processors['queued']} queued)"
            f"  spool {spool['entries']} ({spool['bytes'] / 1e6:.1f} MB)"
            f"  raws waiting {status['raws_waiting']}"
        )
    )
    inherited, prefetch = status["inherited"], status["prefetch"]
    lines.append(
        Text(
            f"cache {cache['datasets']} datasets, {cache['bytes_held'] / 1e6:.1f} MB"
            f"  inherited {inherited['datasets']}, {inherited['bytes'] / 1e6:.1f} MB"
            f"  fetched ahead {prefetch['fetched']}"
            + (f" ({prefetch['pointings']} pointings to go)" if prefetch["pointings"] else "")
        )
    )
    loop = status["loop"]
    lines.append(
        Text(
            f"longest turn {1000 * loop['longest_minute']:.0f} ms in the last minute,"
            f" {1000 * loop['longest']:.0f} ms since the start"
        )
    )
    return lines


def _visits(visits: list[dict[str, Any]]) -> Any:
    from .screen import Text, clock, make_table

    table = make_table("group", "filter", "accepted", "states")
    for visit in visits:
        text = _list(visit["states"]) + (f" ({visit['late']} late)" if visit.get("late") else "")
        style = "red" if visit["states"].get("failed") else ""
        cells = (visit["group"], visit["filter"], clock(visit["accepted"], date=False))
        table.add_row(*(Text(c, no_wrap=True) for c in cells), Text(text, style=style, no_wrap=True))
    return table


def _list(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _span(seconds: float) -> str:
    """Write how long it is, so that it can be taken in at a glance."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
