"""``ppdctl visits``, ``submit`` and ``retry``: the visits that ppd has in hand, and what it is to take on."""

from __future__ import annotations

__all__ = ["add_visit_commands"]

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._limits import MAX_REASON
from .options import (
    FILES,
    GROUPS,
    add_command,
    add_group,
    completed_by,
    parse_count,
    parse_detectors,
    print_alerts,
    print_detectors,
    print_json,
    tell,
)

if TYPE_CHECKING:
    from ..control import ControlClient


def add_visit_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    visits = add_command(
        commands,
        common,
        "visits",
        "the visits that ppd has in hand, one a line",
        "Those of tonight and what is unfinished of earlier nights: pointing, detectors by state, how many"
        " were tried more than once, and how many alerts were in time, late or never out, counted from the"
        " shutter's close in the raw's header, or will be late. Not judged: those without a raw, or of an"
        " old visit. ppd forgets those that are over, but for the last 50; history has them all.",
    )
    visits.add_argument("--last", type=parse_count, metavar="N", help="the last N, of whatever night")
    visits.add_argument("--groups", action="store_true", help="only their groups, for other programs")
    visits.set_defaults(run=_visits)
    submit = add_command(
        commands,
        common,
        "submit",
        "announce visits, from files or from the journal",
        "A file has a nextVisit message as the scheduler publishes it; what was accepted before is refused"
        " as a duplicate. --replay takes the message from the journal, with a new time of publication:"
        " detectors that failed are tried again, as retry does it, and those that were not accepted then"
        " (they were paused, say, or had no pipeline) are accepted now. What was exported or is at work"
        " is left alone.",
    )
    files = submit.add_argument(
        "files", nargs="*", metavar="FILE", help="nextVisit messages (JSON); - for standard input"
    )
    replay = submit.add_argument(
        "--replay", action="append", default=[], metavar="GROUP", help="a visit in the journal, once more"
    )
    completed_by(files, FILES)
    completed_by(replay, GROUPS)
    submit.set_defaults(run=_submit)
    retry = add_command(
        commands,
        common,
        "retry",
        "try detector-visits again that failed for good",
        "They begin anew from their announcement, with the next attempt's number, all retries and as much"
        " time as a new visit has; their raws must still be there. Refused is what has outputs already:"
        " it was exported, is at work, waits in the spool or is among the dead letters. The APDB is asked"
        " before the main pipeline begins, and what it has is not processed again. Detectors that were"
        " not accepted when the visit was announced are for submit --replay.",
    )
    add_group(retry)
    retry.add_argument(
        "only",
        nargs="?",
        type=parse_detectors,
        default=(),
        metavar="DETECTORS",
        help="only these, for example 94,100-103",
    )
    for command in (submit, retry):
        command.add_argument(
            "--detectors",
            type=parse_detectors,
            default=(),
            metavar="LIST",
            help="only these, for example 0-4,7",
        )
        command.add_argument("--reason", default="", metavar="TEXT", help="why it is tried again")
    retry.set_defaults(run=_retry)


def _visits(client: ControlClient, arguments: argparse.Namespace) -> int:
    found = client.visits()
    visits = found["visits"]
    if arguments.last is not None:
        visits = visits[-arguments.last :]
    elif not arguments.groups:
        visits = [v for v in visits if v["night"] == found["night"] or not v["over"]]
    if arguments.json:
        print_json(
            {"night": found["night"], "visits": [v["group"] for v in visits] if arguments.groups else visits}
        )
    elif arguments.groups:
        print("\n".join(v["group"] for v in visits))
    elif not visits:
        print("no visits tonight; ppdctl history has those of earlier nights")
    else:
        _print_visits(visits)
    return 0


def _print_visits(visits: list[dict[str, Any]]) -> None:
    from .screen import Text, clock, make_console, make_table

    table = make_table("group", "filter", "ra", "dec", "accepted", "age", "detectors", "alerts", "reason")
    for visit in visits:
        states = ", ".join(f"{state} {count}" for state, count in visit["states"].items())
        again = f" ({visit['again']} more than once)" if visit["again"] else ""
        alerts = visit["alerts"]
        table.add_row(
            Text(visit["group"], no_wrap=True),
            Text(visit["filter"]),
            _degrees(visit["ra"]),
            _degrees(visit["dec"]),
            clock(visit["accepted"], date=False),
            f"{visit['age']:.0f} s",
            Text(states + again, style="red" if visit["states"].get("failed") else ""),
            Text(print_alerts(alerts), style="yellow" if alerts["late"] or alerts["expected_late"] else ""),
            Text(visit["reason"]),
        )
    make_console().print(table)


def _degrees(angle: float | None) -> str:
    return "" if angle is None else f"{angle:.3f}"


def _submit(client: ControlClient, arguments: argparse.Namespace) -> int:
    if not arguments.files and not arguments.replay:
        print("ppdctl: nothing to announce: name files, or a visit with --replay", file=sys.stderr)
        return 2
    code = 0
    for name in arguments.files:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text()
        except (OSError, UnicodeDecodeError) as e:
            error = f"{name} can't be read: {e}"
            if arguments.json:
                print_json({}, ok=False, code="unreadable", error=error)
            print(f"ppdctl: {error}", file=sys.stderr)
            code = 1
            continue
        reply = client.submit(text, arguments.detectors)
        if not reply.ok:
            reply = reply.model_copy(update={"error": f"{name}: {reply.error}"})
        done = f"{name}: accepted for {len(reply.result['detectors'])} detectors" if reply.ok else ""
        code = max(code, tell(reply, arguments, done))
    for group in arguments.replay:
        code = max(code, _again(client, arguments, "replay", group, arguments.detectors))
    return code


def _retry(client: ControlClient, arguments: argparse.Namespace) -> int:
    if arguments.only and arguments.detectors:
        print("ppdctl: either GROUP DETECTORS or --detectors", file=sys.stderr)
        return 2
    return _again(client, arguments, "retry", arguments.group, arguments.only or arguments.detectors)


def _again(
    client: ControlClient,
    arguments: argparse.Namespace,
    command: Literal["retry", "replay"],
    group: str,
    detectors: tuple[int, ...],
) -> int:
    from .._control_messages import ControlRequest

    reply = client.request(
        ControlRequest(
            command=command, group=group, detectors=detectors, reason=arguments.reason[:MAX_REASON]
        )
    )
    if not arguments.json:
        for name, what in (("tried_again", "tried again"), ("accepted", "accepted")):
            if reply.result.get(name):
                print(f"{group}: {what}: detectors {print_detectors(reply.result[name])}")
    return tell(reply, arguments)
