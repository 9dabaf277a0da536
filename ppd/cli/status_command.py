"""``ppdctl status``: how ppd is and what it does, on one screen.

Written without `rich`, which takes as long to import as all the rest takes.
"""

from __future__ import annotations

__all__ = ["add_status_command"]

import argparse
import collections
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import NoSupervisorError
from .options import add_command, parse_count, print_alerts, print_json
from .steering_commands import describe_paused

if TYPE_CHECKING:
    from ..control import ControlClient

_COLOURS = {"ok": "green", "draining": "yellow", "paused": "yellow"}
_STYLES = {
    "bold": "1",
    "bold green": "1;32",
    "bold red": "1;31",
    "bold yellow": "1;33",
    "red": "31",
    "yellow": "33",
}
_ERRORS = 5
_COUNT_LINES = 2
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
    status.add_argument("--looks", type=parse_count, metavar="N", help="end --watch after so many looks")
    status.add_argument(
        "--accepting", action="store_true", help="1 unless a visit would be taken now, with the reason"
    )
    status.set_defaults(run=_status)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 3600.0:
        raise argparse.ArgumentTypeError(f"{text!r} are no seconds from 0.1 to 3600")
    return found


def _status(client: ControlClient, arguments: argparse.Namespace) -> int:
    if arguments.watch:
        try:
            return _watch(client, arguments)
        except KeyboardInterrupt:
            return 0
    status = client.status()
    refused = arguments.accepting and status["refuses"]
    error = f"no visit would be taken: {status['refuses']}" if refused else None
    if arguments.json:
        print_json(status, ok=error is None, code="ok" if error is None else "unavailable", error=error)
    else:
        print("\n".join(_paint(_lay_out(status))))
    if error is not None:
        print(f"ppdctl: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Look again and again; a ppd that does not answer may be back at the next look."""
    if arguments.json:
        return _repeat(client, arguments, _print_look)
    if not sys.stdout.isatty():
        return _repeat(
            client, arguments, lambda status, _: print(*_paint(_lay_out(status)), "", sep="\n", flush=True)
        )
    from .screen import Live, Text, make_console

    console = make_console()
    last: dict[str, Any] = {}
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(status: dict[str, Any], error: str) -> None:
            nonlocal last
            last = status if not error else last
            lines = _fit(last, error, max(_ROWS, console.height), max(_COLUMNS, console.width))
            live.update(Text.from_ansi("\n".join(_paint(lines))), refresh=True)

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
            show(client.status(), "")
            code = 0
        except NoSupervisorError as e:
            if number == 1:
                raise
            code = 3
            if arguments.json or sys.stdout.isatty():
                show({"health": "silent"}, str(e))
            else:
                print(f"ppdctl: {e}", file=sys.stderr)
    return code


def _print_look(status: dict[str, Any], error: str) -> None:
    print_json(status, ok=not error, code="no_answer" if error else "ok", error=error or None)


_Line = tuple[tuple[str, str], ...]
"""Texts with their styles, one after the other."""


def _lay_out(status: dict[str, Any]) -> list[_Line]:
    """Lay out all there is, whatever the screen."""
    return [
        *_head(status),
        *_troubles(status),
        *_state(status),
        *_visits(status["visits"]),
        _plain(_counts(status) or "nothing counted yet"),
        *_errors(status),
    ]


def _fit(status: dict[str, Any], error: str, height: int, width: int) -> list[_Line]:
    """Lay out what has room on a screen: the last visits and errors, two lines of counts."""
    head, troubles, state, errors = (list(part(status)) for part in (_head, _troubles, _state, _errors))
    if error:
        head = [((f"{_clock(time.time())} {error}", "bold red"),)]
    if len(troubles) > _TROUBLES:
        more = len(troubles) - _TROUBLES
        troubles = [*troubles[:_TROUBLES], ((f"  and {more} more: ppdctl status", "red"),)]
    counts = textwrap.wrap(_counts(status) or "nothing counted yet", width)
    if len(counts) > _COUNT_LINES:
        counts = [*counts[: _COUNT_LINES - 1], counts[_COUNT_LINES - 1][: width - 2] + " …"]
    used = len(head) + len(troubles) + len(state) + len(counts) + len(errors)
    visits = _visits(status["visits"][-max(1, height - used - 1) :])
    lines = [*head, *troubles, *state, *visits, *(_plain(line) for line in counts), *errors]
    return [_cut(line, width) for line in lines][:height]


def _plain(text: str) -> _Line:
    return ((text, ""),)


def _cut(line: _Line, width: int) -> _Line:
    """Cut a line where the screen ends."""
    left, parts = width, []
    for text, style in line:
        parts.append((text if len(text) <= left else f"{text[: max(0, left - 1)]}…", style))
        left -= len(text)
        if left < 0:
            break
    return tuple(parts)


def _paint(lines: Iterable[_Line]) -> list[str]:
    """Write lines as they go to the screen; what names of files and messages may hold does nothing there."""
    lines = [tuple((_harmless(text), style) for text, style in line) for line in lines]
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return ["".join(text for text, _ in line) for line in lines]
    return [
        "".join(f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style else text for text, style in line)
        for line in lines
    ]


def _harmless(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _head(status: dict[str, Any]) -> list[_Line]:
    health = (status["health"], f"bold {_COLOURS.get(status['health'], 'red')}")
    rest = (
        f"  {status['instrument']}  pid {status['pid']}  up {_span(status['uptime'])}  {status['deployment']}"
    )
    return [(health, (rest, ""))]


def _troubles(status: dict[str, Any]) -> list[_Line]:
    paused = [((f"  {line}", "yellow"),) for line in describe_paused(status["paused"])]
    return [*paused, *(((f"  {fault}", "red"),) for fault in status["faults"])]


def _state(status: dict[str, Any]) -> list[_Line]:
    """What is told in a line each."""
    lines = []
    if len(status["deployments"]) > 1:
        each = ", ".join(f"{d['id']} {d['detector_visits']}" for d in status["deployments"])
        lines.append(f"  side by side, with detector-visits at work: {each}")
    states = {k: v for k, v in status["detector_visits"].items() if v}
    lines.append("detector-visits: " + (_list(states) or "none"))
    phases = collections.Counter(c["phase"] or "starting" for c in status["children"])
    if phases:
        lines.append("children: " + _list(dict(phases.most_common())))
    slots, processors, cache, spool = (status[k] for k in ("slots", "processors", "cache", "spool"))
    lines.append(
        f"slots {slots['used']}/{slots['total']}"
        f"  processors {processors['used']}/{processors['total']} ({processors['queued']} queued)"
        f"  spool {spool['entries']} ({spool['bytes'] / 1e6:.1f} MB)"
        f"  raws waiting {status['raws_waiting']}"
    )
    lines += [_stream(source) for source in status["visit_sources"]]
    inherited, prefetch = status["inherited"], status["prefetch"]
    lines.append(
        f"cache {cache['datasets']} datasets, {cache['bytes_held'] / 1e6:.1f} MB"
        f"  inherited {inherited['datasets']}, {inherited['bytes'] / 1e6:.1f} MB"
        f"  fetched ahead {prefetch['fetched']}"
        + (f" ({prefetch['pointings']} pointings to go)" if prefetch["pointings"] else "")
    )
    loop = status["loop"]
    lines.append(
        f"longest turn {1000 * loop['longest_minute']:.0f} ms in the last minute,"
        f" {1000 * loop['longest']:.0f} ms since the start"
    )
    return [_plain(line) for line in lines]


def _stream(source: dict[str, Any]) -> str:
    told = [f"read {source['read']}", f"confirmed {source['confirmed']}"]
    told += [
        f"{name.replace('_', ' ')} {source[name]}"
        for name in ("claimed", "set_aside", "postponed", "gone")
        if source[name]
    ]
    lag, pending = ("?" if source[name] is None else source[name] for name in ("lag", "pending"))
    held = f"  not read: {source['held']}" if source["held"] else ""
    return f"visits from {source['name']}: {'  '.join(told)}  waiting {lag}  unconfirmed {pending}{held}"


def _visits(visits: list[dict[str, Any]]) -> list[_Line]:
    if not visits:
        return []
    rows = [("group", "filter", "accepted", "states")]
    for visit in visits:
        late = print_alerts(visit["alerts"], ("late", "expected_late"))
        states = _list(visit["states"]) + (f" ({late})" if late else "")
        rows.append((visit["group"], visit["filter"], _clock(visit["accepted"]), states))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    styles = ["bold", *("red" if visit["states"].get("failed") else "" for visit in visits)]
    return [
        (("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + f"  {row[3]}", style),)
        for row, style in zip(rows, styles)
    ]


def _counts(status: dict[str, Any]) -> str:
    return "  ".join(f"{name} {number}" for name, number in status["counts"].items())


def _errors(status: dict[str, Any]) -> list[_Line]:
    return [
        _plain(f"{_clock(e['time'])} {e['kind']} {e['what']}: {' '.join(e['message'][:300].split())}")
        for e in status["errors"][-_ERRORS:]
    ]


def _list(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(when))


def _span(seconds: float) -> str:
    """Write how long it is, so that it can be taken in at a glance."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
