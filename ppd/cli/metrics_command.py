"""``ppdctl metrics``: what Prometheus would read."""

from __future__ import annotations

__all__ = ["add_metrics_command"]

import argparse
import json
import sys
from typing import Any

from ..messages import ControlRequest
from .client import ControlClient


def add_metrics_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to a parser."""
    metrics = commands.add_parser("metrics", parents=[common], help="the metrics, as Prometheus reads them")
    metrics.set_defaults(run=_metrics)


def _metrics(client: ControlClient, arguments: argparse.Namespace) -> int:
    reply = client.request(ControlRequest(command="metrics"))
    if not reply.ok:
        print(f"ppdctl: {reply.error}", file=sys.stderr)
        return 1
    sys.stdout.write(json.dumps(reply.result) + "\n" if arguments.json else reply.result["text"])
    return 0
