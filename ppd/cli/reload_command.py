"""``ppdctl reload``."""

from __future__ import annotations

__all__ = ["add_reload_command"]

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from .options import add_command, print_json, tell

if TYPE_CHECKING:
    from ..control import ControlClient

_POLL_SECONDS = 0.2


def add_reload_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    reload = add_command(
        commands,
        common,
        "reload",
        "check the configuration, and put it in force",
        "As SIGHUP does; prints what has changed and from when it counts, or why nothing has.",
    )
    reload.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="seconds to wait until it is (600)"
    )
    reload.set_defaults(run=_reload)


def _reload(client: ControlClient, arguments: argparse.Namespace) -> int:
    from .._control_messages import ControlRequest

    reply = client.request(ControlRequest(command="reload"))
    if not reply.ok:
        return tell(reply, arguments)
    number, result = reply.result["number"], reply.result
    deadline = time.monotonic() + arguments.wait
    while result and result["state"] not in ("in_force", "refused") and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        result = client.request(ControlRequest(command="reloading", number=number)).result
    code, error = _judge(result)
    if arguments.json:
        own = {name: value for name, value in result.items() if name != "error"}
        print_json(own, ok=error is None, code=code, error=error)
    elif error is None and not result["changes"]:
        print("nothing is different")
    elif error is None:
        print("in force:")
        print("\n".join(f"  {change}" for change in result["changes"]))
    if error is not None:
        print(f"ppdctl: {error}", file=sys.stderr)
    return 0 if error is None else 1


def _judge(result: dict[str, Any]) -> tuple[str, str | None]:
    """Say in a word and in words what has gone wrong; ``ok`` and `None`: nothing."""
    if not result:
        return "unknown", "another reload has taken its place"
    if result["state"] == "refused":
        return "refused", f"nothing has changed: {result['error']}"
    if result["state"] != "in_force":
        return "unfinished", f"it is still at work ({result['state']}); ppdctl status tells more"
    return "ok", None
