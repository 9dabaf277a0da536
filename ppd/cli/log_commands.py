"""``ppdctl logs``: what the child of a detector-visit has logged."""

from __future__ import annotations

__all__ = ["add_log_commands"]

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from ..config import Settings
from ..errors import PpdError
from ..supervisor.history import Attempt, DetectorHistory, show_detector

_POLL_SECONDS = 0.25
_CHUNK_BYTES = 1 << 16
_OVER = ("exported", "failed", "handed_over")


def add_log_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    logs = commands.add_parser("logs", parents=[common], help="what the child of a detector-visit has logged")
    logs.add_argument("group", help="group of the visit")
    logs.add_argument("detector", type=int)
    logs.add_argument("--attempt", type=int, help="of which attempt; the last one unless given")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on until the detector-visit is over, its retries too"
    )
    logs.set_defaults(run=_logs, offline=True)


def _logs(settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.follow:
        return _follow(settings, arguments)
    found = show_detector(settings.state_dir, arguments.group, arguments.detector)
    attempt = _choose(found, arguments.attempt)
    if arguments.json:
        text = Path(attempt.log).read_text(errors="replace") if attempt.log_there else None
        print(json.dumps({"attempt": attempt.number, "file": attempt.log, "text": text}))
        return 0
    if not attempt.log_there:
        raise PpdError(f"The log {attempt.log} is not kept any more (child_log_days).")
    with Path(attempt.log).open("rb") as stream:
        _pass_on(stream)
    return 0


def _follow(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print what comes, attempt after attempt, until the detector-visit is over."""
    number = arguments.attempt or 1
    stream: IO[bytes] | None = None
    try:
        while True:
            found = show_detector(settings.state_dir, arguments.group, arguments.detector)
            # Looked at before the log: what is written last must not be missed.
            over = found.line.state in _OVER
            kept = [a for a in found.attempts if a.log_there and a.number >= number]
            if stream is None and kept:
                number = kept[0].number
                stream = Path(kept[0].log).open("rb")  # noqa: SIM115 - closed below
            if stream is not None:
                _pass_on(stream)
                if arguments.attempt is None and any(a.number > number for a in kept):
                    stream.close()
                    stream, number = None, number + 1
                    continue
            if over:
                return 0
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return 0
    finally:
        if stream is not None:
            stream.close()


def _choose(found: DetectorHistory, number: int | None) -> Attempt:
    attempts = [a for a in found.attempts if number is None or a.number == number]
    if not attempts:
        which = "No child" if number is None else f"No attempt {number}"
        raise PpdError(
            f"{which} of {found.visit.group}/{found.line.detector} has been started; "
            f"it is {found.line.state}{': ' + found.line.reason if found.line.reason else ''}."
        )
    return attempts[-1]


def _pass_on(stream: IO[bytes]) -> None:
    """Print what is there, as it is."""
    sys.stdout.flush()
    while chunk := stream.read(_CHUNK_BYTES):
        os.write(sys.stdout.fileno(), chunk)
