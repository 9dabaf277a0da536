"""``ppdctl metrics``: what Prometheus would read."""

from __future__ import annotations

__all__ = ["add_metrics_command"]

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .options import add_command, tell

if TYPE_CHECKING:
    from ..control import ControlClient


def add_metrics_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    metrics = add_command(
        commands,
        common,
        "metrics",
        "print the metrics, as Prometheus reads them",
        "The same is at /metrics of the status page's address.",
    )
    metrics.set_defaults(run=_metrics)


def _metrics(client: ControlClient, arguments: argparse.Namespace) -> int:
    from ..messages import ControlRequest

    reply = client.request(ControlRequest(command="metrics"))
    if reply.ok and not arguments.json:
        sys.stdout.write(reply.result["text"])
        return 0
    return tell(reply, arguments)
