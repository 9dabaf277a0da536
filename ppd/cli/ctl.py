"""``ppdctl``: show and steer a running ppd.

Exit codes: 0 done; 1 refused or not there, the reason is printed; 2 wrong arguments or
configuration; 3 no ppd answers; 4 not drained in time.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import ConfigurationError, PpdError
from .client import ControlClient, NoSupervisorError
from .config_commands import add_config_commands
from .dead_letter_commands import add_dead_letter_commands
from .doctor import add_doctor_command
from .history_commands import add_history_commands
from .input_commands import add_input_commands
from .log_commands import add_log_commands
from .options import common_options, settings_of
from .reload_command import add_reload_command
from .steering_commands import add_steering_commands, describe_paused


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ppdctl``.

    Parameters
    ----------
    argv : sequence of `str`, optional
        Arguments; those of the process by default.

    Returns
    -------
    code : `int`
        Exit code; see the module's docstring.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.alone:  # it wants to see itself what can't be used
            return int(arguments.run(arguments))
        if arguments.offline:  # it reads what is on disk, and needs no ppd
            return int(arguments.run(settings_of(arguments), arguments))
        socket_dir = arguments.socket_dir or settings_of(arguments).socket_dir
        with ControlClient(socket_dir, arguments.timeout) as client:
            return int(arguments.run(client, arguments))
    except ConfigurationError as e:
        print(f"ppdctl: {e}", file=sys.stderr)
        return 2
    except PpdError as e:
        print(f"ppdctl: {e}", file=sys.stderr)
        return 1
    except NoSupervisorError as e:
        print(f"ppdctl: {e}", file=sys.stderr)
        return 3
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    common = common_options()
    parser = argparse.ArgumentParser(prog="ppdctl", description="Show and steer a running ppd.")
    parser.set_defaults(offline=False, alone=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", parents=[common], help="how ppd is and what it does")
    status.add_argument(
        "--accepting",
        action="store_true",
        help="exit code 1 unless a visit would be taken now, with the reason",
    )
    status.set_defaults(run=_status)
    submit = commands.add_parser("submit", parents=[common], help="announce visits from files")
    submit.add_argument("files", nargs="+", help="nextVisit messages (JSON); - for standard input")
    submit.set_defaults(run=_submit)
    add_input_commands(commands, common)
    add_history_commands(commands, common)
    add_log_commands(commands, common)
    add_dead_letter_commands(commands, common)
    add_reload_command(commands, common)
    add_config_commands(commands, common)
    add_doctor_command(commands, common)
    add_steering_commands(commands, common)
    drain = commands.add_parser("drain", parents=[common], help="finish what was accepted, take no more")
    drain.add_argument("--wait", type=float, default=0.0, help="seconds to wait until all is exported")
    drain.set_defaults(run=_drain)
    stop = commands.add_parser("stop", parents=[common], help="end ppd; what is unfinished stays for later")
    stop.add_argument("--now", action="store_true", help="kill children, leave the spool as it is")
    stop.set_defaults(run=_stop)
    return parser


def _submit(client: ControlClient, arguments: argparse.Namespace) -> int:
    code = 0
    for name in arguments.files:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text()
        except (OSError, UnicodeDecodeError) as e:
            print(f"ppdctl: {name} can't be read: {e}", file=sys.stderr)
            code = 1
            continue
        reply = client.submit(text)
        if arguments.json:
            print(reply.model_dump_json(exclude={"kind"}))
        elif reply.ok:
            print(f"{name}: accepted for {len(reply.result['detectors'])} detectors")
        if not reply.ok:
            code = 1
            if not arguments.json:
                print(f"ppdctl: {name}: {reply.error}", file=sys.stderr)
    return code


def _drain(client: ControlClient, arguments: argparse.Namespace) -> int:
    drained = client.drain(arguments.wait)
    if arguments.json:
        print(json.dumps({"drained": drained}))
    else:
        print("drained: nothing is left" if drained else "draining: no more visits are taken")
    return 0 if drained or not arguments.wait else 4


def _stop(client: ControlClient, arguments: argparse.Namespace) -> int:
    reply = client.stop(now=arguments.now)
    print(json.dumps({"ok": reply.ok}) if arguments.json else "ppd stops")
    return 0


def _status(client: ControlClient, arguments: argparse.Namespace) -> int:
    status = client.status()
    if arguments.json:
        print(json.dumps(status, indent=2))
    else:
        _print_status(status, Console())
    if arguments.accepting and status["refuses"]:
        print(f"ppdctl: no visit would be taken: {status['refuses']}", file=sys.stderr)
        return 1
    return 0


def _print_status(status: dict[str, Any], console: Console) -> None:
    colour = {"ok": "green", "draining": "yellow", "paused": "yellow"}.get(status["health"], "red")
    console.print(
        f"[bold {colour}]{status['health']}[/]  {status['instrument']}  pid {status['pid']}  "
        f"up {status['uptime']:.0f} s  {status['deployment']}",
        highlight=False,
    )
    if len(status["deployments"]) > 1:
        each = ", ".join(f"{d['id']} {d['detector_visits']}" for d in status["deployments"])
        console.print(f"  side by side, with detector-visits at work: {each}", highlight=False)
    for line in describe_paused(status["paused"]):
        console.print(f"  {line}", style="yellow", markup=False, highlight=False)
    for fault in status["faults"]:
        console.print(f"  [red]{escape(fault)}[/]", markup=True)
    states = {k: v for k, v in status["detector_visits"].items() if v}
    console.print("detector-visits: " + (", ".join(f"{k} {v}" for k, v in states.items()) or "none"))
    slots, processors, cache, spool = (status[k] for k in ("slots", "processors", "cache", "spool"))
    console.print(
        f"slots {slots['used']}/{slots['total']}  processors {processors['used']}/{processors['total']} "
        f"({processors['queued']} queued)  "
        f"cache {cache['datasets']} datasets, {cache['bytes_held'] / 1e6:.1f} MB"
        f"  spool {spool['entries']} ({spool['bytes'] / 1e6:.1f} MB)  raws waiting {status['raws_waiting']}",
        highlight=False,
    )
    inherited, prefetch = status["inherited"], status["prefetch"]
    console.print(
        f"inherited {inherited['datasets']} inputs, {inherited['bytes'] / 1e6:.1f} MB"
        f"  fetched ahead {prefetch['fetched']}"
        + (f" ({prefetch['pointings']} pointings to go)" if prefetch["pointings"] else "")
        + f"  longest turn {1000 * status['loop']['longest_minute']:.0f} ms in the last minute,"
        f" {1000 * status['loop']['longest']:.0f} ms since the start",
        highlight=False,
    )
    if status["visits"]:
        table = Table("group", "filter", "accepted", "states", box=None, pad_edge=False)
        for visit in status["visits"]:
            accepted = time.strftime("%H:%M:%S", time.gmtime(visit["accepted"]))
            states_text = ", ".join(f"{k} {v}" for k, v in visit["states"].items())
            if visit.get("late"):
                states_text += f" ({visit['late']} late)"
            table.add_row(visit["group"], visit["filter"], accepted, states_text)
        console.print(table)
    counts = "  ".join(f"{k} {v}" for k, v in status["counts"].items())
    console.print(counts or "nothing counted yet", highlight=False)
    for error in status["errors"][-5:]:
        when = time.strftime("%H:%M:%S", time.gmtime(error["time"]))
        console.print(f"{when} {error['kind']} {error['what']}: {error['message'][:300]}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
