"""``ppdctl history`` and ``ppdctl show``: they read the journal, whether ppd runs or not."""

from __future__ import annotations

__all__ = ["add_history_commands"]

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..supervisor.states import STATES
from .options import add_command, add_group, parse_count, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ..config import Settings
    from ..supervisor.history import DetectorHistory, VisitHistory, VisitLine

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# What people want to know of an announcement; the rest is in --json.
_ESSENTIALS = ("survey", "position", "cameraAngle", "rotationSystem", "nimages", "duration", "scriptSalIndex")


def add_history_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    history = add_command(
        commands,
        common,
        "history",
        "visits that are at work or over, one a line, from the journal",
        "The last ones, with the last reason that was written down for any detector. It needs no ppd, as it"
        " reads the journal, which has history_nights nights (30 unless configured); what is unfinished,"
        " has a dead letter, or might be announced again while its message is fresh stays longer.",
    )
    history.add_argument("--night", type=_night, metavar="YYYYMMDD", help="only of this night (day_obs)")
    history.add_argument("--since", type=_span, metavar="SPAN", help="only of the last 90s, 30m, 2h or 7d")
    history.add_argument("--state", choices=STATES, help="only those with a detector in this state")
    history.add_argument(
        "--detector", type=int, metavar="N", help="only those with this detector, and only it"
    )
    history.add_argument("--limit", type=parse_count, default=50, metavar="N", help="how many (50)")
    history.set_defaults(run=_history, offline=True)
    show = add_command(
        commands,
        common,
        "show",
        "all that is known of a visit or detector",
        "Of a visit its announcement, and what became of each detector; of a detector its raws, its children"
        " and how they ended, where their logs are, and all that happened, in seconds from the acceptance."
        " It needs no ppd.",
    )
    add_group(show)
    show.add_argument(
        "detector", type=int, nargs="?", metavar="DETECTOR", help="this detector, event by event"
    )
    show.set_defaults(run=_show, offline=True)


def _night(text: str) -> int:
    try:
        time.strptime(text, "%Y%m%d")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no night: write YYYYMMDD") from None
    return int(text)


def _span(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time: write 90s, 30m, 2h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _history(settings: Settings, arguments: argparse.Namespace) -> int:
    from ..supervisor.history import list_visits

    visits = list_visits(
        settings.state_dir,
        night=arguments.night,
        since=None if arguments.since is None else time.time() - arguments.since,
        state=arguments.state,
        detector=arguments.detector,
        limit=arguments.limit,
    )
    if arguments.json:
        import dataclasses

        print_json({"visits": [dataclasses.asdict(v) for v in visits]})
        return 0
    if not visits:
        print("no such visit")
        return 0
    from .screen import Text, clock, make_console, make_table

    table = make_table("group", "night", "filter", "accepted", "states", "reason")
    for visit in visits:
        table.add_row(
            Text(visit.group),
            str(visit.night),
            Text(visit.filter),
            clock(visit.accepted),
            _states(visit),
            Text(visit.reason),
        )
    make_console().print(table)
    return 0


def _show(settings: Settings, arguments: argparse.Namespace) -> int:
    from ..supervisor.history import VisitHistory, show_detector, show_visit

    found: VisitHistory | DetectorHistory
    if arguments.detector is None:
        found = show_visit(settings.state_dir, arguments.group)
    else:
        found = show_detector(settings.state_dir, arguments.group, arguments.detector)
    if arguments.json:
        import dataclasses

        print_json(dataclasses.asdict(found))
        return 0
    from .screen import make_console

    if isinstance(found, VisitHistory):
        _print_visit(found, make_console())
    else:
        _print_detector(found, make_console())
    return 0


def _print_visit(found: VisitHistory, console: Console) -> None:
    _print_head(found.visit, console)
    essentials = [f"{name} {found.message[name]}" for name in _ESSENTIALS if found.message.get(name)]
    console.print("  ".join(essentials), highlight=False, markup=False)
    from .screen import Text, make_table

    table = make_table("detector", "state", "attempts", "pipeline", "after", "alerts", "reason")
    for d in found.detectors:
        table.add_row(
            str(d.detector),
            d.state,
            str(d.attempt),
            Text(Path(d.pipeline).stem),
            f"{d.updated - found.visit.accepted:.1f} s",
            d.alerts.replace("_", " "),
            Text(d.reason),
        )
    console.print(table)


def _print_detector(found: DetectorHistory, console: Console) -> None:
    _print_head(found.visit, console)
    line = found.line
    text = (
        f"detector {line.detector}  {line.state}  attempt {line.attempt}  {found.datasets} outputs in central"
    )
    if line.pipeline:
        text += f"  {line.pipeline}"
    console.print(text, highlight=False, markup=False)
    for name, values in (("reason", [line.reason] if line.reason else []), ("raw", found.raws)):
        for value in values:
            console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    for attempt in found.attempts:
        ended = f"{attempt.how} while {attempt.phase or 'starting'}" if attempt.ended else "not seen to end"
        log = attempt.log if attempt.log_there else f"{attempt.log} (not kept)"
        console.print(
            f"attempt {attempt.number}: process {attempt.pid}, {ended}; log: {log}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    from .screen import Text, make_table

    table = make_table("seconds", "event", "detail")
    for h in found.happenings:
        detail = "  ".join(f"{k}={_short(v)}" for k, v in h.detail.items())
        table.add_row(f"{h.seconds:+.3f}", h.name, Text(detail))
    console.print(table)


def _print_head(visit: VisitLine, console: Console) -> None:
    from .screen import clock

    console.print(
        f"{visit.instrument} {visit.group}  night {visit.night}  {visit.filter}  "
        f"accepted {clock(visit.accepted)} from {visit.source}  {visit.deployment}",
        highlight=False,
        markup=False,
    )
    console.print(_states(visit), highlight=False)


def _states(visit: VisitLine) -> Text:
    from .screen import Text

    text = Text(", ".join(f"{state} {count}" for state, count in visit.states.items()) or "no such detector")
    if visit.states.get("failed"):
        text.stylize("red")
    if visit.again:
        text.append(f" ({visit.again} more than once)")
    return text


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
