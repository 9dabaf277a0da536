"""``ppdctl pause``, ``resume`` and ``cancel``."""

from __future__ import annotations

__all__ = ["add_steering_commands", "describe_paused"]

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._limits import MAX_REASON
from .options import add_command, add_group, ask_first, parse_detectors, print_detectors, tell

if TYPE_CHECKING:
    from ..control import ControlClient


def add_steering_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    pause = add_command(
        commands,
        common,
        "pause",
        "take no visits, or none of some detectors",
        "What was accepted is finished. Visits are taken without paused detectors; a message for one of them"
        " alone is ignored. A start in between knows it too.",
    )
    resume = add_command(
        commands,
        common,
        "resume",
        "go on with what is paused",
        "Without --detectors with all of it, paused detectors too.",
    )
    cancel = add_command(
        commands,
        common,
        "cancel",
        "end a visit, or some detectors of it",
        "What is not over ends as a failure, with that as the reason, once you have said yes; what a child"
        " has stored in the APDB stays. retry begins again what has no outputs.",
    )
    add_group(cancel)
    for command in (pause, resume, cancel):
        command.add_argument(
            "--detectors",
            type=parse_detectors,
            default=(),
            metavar="LIST",
            help="only these, for example 94,100-103",
        )
    for command in (pause, cancel):
        command.add_argument("--reason", default="", metavar="TEXT", help="why: others will read it")
    cancel.add_argument("--yes", action="store_true", help="do not ask")
    pause.set_defaults(run=_pause, command="pause")
    resume.set_defaults(run=_pause, command="resume", reason="")
    cancel.set_defaults(run=_cancel)


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
        lines.append(f"detectors {print_detectors(detectors)}: {since}")
    return lines


def _since(pause: Mapping[str, Any]) -> str:
    # As `ppd.supervisor.pauses.Pause` says it, which takes a while to import.
    clock = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(pause["since"]))
    return f"paused since {clock}" + (f": {pause['reason']}" if pause["reason"] else "")


def _pause(client: ControlClient, arguments: argparse.Namespace) -> int:
    from .._control_messages import ControlRequest

    reply = client.request(
        ControlRequest(
            command=arguments.command, detectors=arguments.detectors, reason=arguments.reason[:MAX_REASON]
        )
    )
    if not reply.ok or arguments.json:
        return tell(reply, arguments)
    print("\n".join(describe_paused(reply.result)) or "nothing is paused")
    return 0


def _cancel(client: ControlClient, arguments: argparse.Namespace) -> int:
    which = f"detectors {print_detectors(arguments.detectors)}" if arguments.detectors else "all detectors"
    question = f"{which} of visit {arguments.group} will make no alerts. Cancel them?"
    code = ask_first("what is cancelled makes no alerts", question, arguments.yes)
    if code is not None:
        return code
    from .._control_messages import ControlRequest

    reply = client.request(
        ControlRequest(
            command="cancel",
            group=arguments.group,
            detectors=arguments.detectors,
            reason=arguments.reason[:MAX_REASON],
        )
    )
    if not reply.ok or arguments.json:
        return tell(reply, arguments)
    print(f"cancelled: detectors {print_detectors(reply.result['cancelled'])}")
    if reply.result["over"]:
        print(f"over before: detectors {print_detectors(reply.result['over'])}")
    return 0
