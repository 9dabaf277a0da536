"""``ppdctl pause``, ``resume`` and ``cancel``."""

from __future__ import annotations

__all__ = ["add_steering_commands", "describe_paused", "parse_detectors"]

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..control import ControlClient
from ..messages import MAX_DETECTORS, MAX_REASON, ControlReply, ControlRequest
from ..supervisor.pauses import Pause
from .options import ask_first


def add_steering_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    pause = commands.add_parser("pause", parents=[common], help="take no visits, or none of some detectors")
    resume = commands.add_parser("resume", parents=[common], help="go on with what is paused")
    cancel = commands.add_parser("cancel", parents=[common], help="end a visit, or some detectors of it")
    cancel.add_argument("group", help="group of the visit")
    for command in (pause, resume, cancel):
        command.add_argument(
            "--detectors",
            type=parse_detectors,
            default=(),
            metavar="LIST",
            help="only these, for example 94,100-103",
        )
    for command in (pause, cancel):
        command.add_argument("--reason", default="", help="why: others will read it")
    cancel.add_argument("--yes", action="store_true", help="do not ask")
    pause.set_defaults(run=_pause, command="pause")
    resume.set_defaults(run=_pause, command="resume", reason="")
    cancel.set_defaults(run=_cancel)


def parse_detectors(text: str) -> tuple[int, ...]:
    """Read a list of detectors.

    Parameters
    ----------
    text : `str`
        Numbers and ranges, with commas between them: ``94,100-103``.

    Returns
    -------
    detectors : `tuple` [ `int`, ... ]
        Each once, in order.

    Raises
    ------
    argparse.ArgumentTypeError
        Raised if it is no such list.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"not a list of detectors such as 94,100-103: {text!r}")
        begin, end = int(first), int(last or first)
        if end < begin or end - begin >= MAX_DETECTORS:
            raise argparse.ArgumentTypeError(f"no range of detectors: {part.strip()!r}")
        found.update(range(begin, end + 1))
    if len(found) > MAX_DETECTORS:
        raise argparse.ArgumentTypeError(f"more than {MAX_DETECTORS} detectors: {text!r}")
    return tuple(sorted(found))


def describe_paused(paused: Mapping[str, Any]) -> list[str]:
    """Say what is paused, a line for each reason.

    Parameters
    ----------
    paused : `dict`
        As ``ppdctl status --json`` has it.
    """
    lines = []
    if paused["all"]:
        lines.append(f"no visits are taken: {_since(paused['all'])}")
    together: dict[str, list[int]] = {}
    for detector, pause in paused["detectors"].items():
        together.setdefault(_since(pause), []).append(int(detector))
    for since, detectors in together.items():
        lines.append(f"detectors {_ranges(detectors)}: {since}")
    return lines


def _since(pause: Mapping[str, Any]) -> str:
    return str(Pause.model_validate(pause))


def _ranges(detectors: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(detectors):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _pause(client: ControlClient, arguments: argparse.Namespace) -> int:
    reply = client.request(
        ControlRequest(
            command=arguments.command, detectors=arguments.detectors, reason=arguments.reason[:MAX_REASON]
        )
    )
    if not reply.ok or arguments.json:
        return _tell(reply, arguments)
    print("\n".join(describe_paused(reply.result)) or "nothing is paused")
    return 0


def _cancel(client: ControlClient, arguments: argparse.Namespace) -> int:
    which = f"detectors {_ranges(arguments.detectors)}" if arguments.detectors else "all detectors"
    question = f"{which} of visit {arguments.group} will make no alerts. Cancel them?"
    code = ask_first("what is cancelled makes no alerts", question, arguments.yes)
    if code is not None:
        return code
    reply = client.request(
        ControlRequest(
            command="cancel",
            group=arguments.group,
            detectors=arguments.detectors,
            reason=arguments.reason[:MAX_REASON],
        )
    )
    if not reply.ok or arguments.json:
        return _tell(reply, arguments)
    print(f"cancelled: detectors {_ranges(reply.result['cancelled'])}")
    if reply.result["over"]:
        print(f"over before: detectors {_ranges(reply.result['over'])}")
    return 0


def _tell(reply: ControlReply, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps({"ok": reply.ok, "error": reply.error, **reply.result}))
    elif not reply.ok:
        print(f"ppdctl: {reply.error}", file=sys.stderr)
    return 0 if reply.ok else 1
