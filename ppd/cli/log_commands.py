"""``ppdctl logs``: what the child of a detector-visit has logged."""

from __future__ import annotations

__all__ = ["add_log_commands"]

import argparse
import os
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import PpdError
from .options import add_command, add_group, print_json

if TYPE_CHECKING:
    from ..config import Settings
    from ..supervisor.history import Attempt, DetectorHistory

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
    logs = add_command(
        commands,
        common,
        "logs",
        "what the child of a detector-visit has logged",
        "It needs no ppd. With --follow and --json, one line for each that was logged.",
    )
    add_group(logs)
    logs.add_argument("detector", type=int, metavar="DETECTOR", help="the detector")
    logs.add_argument("--attempt", type=int, metavar="N", help="of which attempt; the last one unless given")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on until the detector-visit is over, its retries too"
    )
    logs.set_defaults(run=_logs, offline=True)


def _logs(settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.follow:
        return _follow(settings, arguments)
    from ..supervisor.history import show_detector

    found = show_detector(settings.state_dir, arguments.group, arguments.detector)
    attempt = _choose(found, arguments.attempt)
    if not attempt.log_there:
        raise PpdError(f"The log {attempt.log} is not kept any more (child_log_days).")
    if arguments.json:
        text = Path(attempt.log).read_text(errors="replace")
        print_json({"attempt": attempt.number, "file": attempt.log, "text": text})
        return 0
    with Path(attempt.log).open("rb") as stream:
        _pass_on(stream)
    return 0


def _follow(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print what comes, attempt after attempt, until the detector-visit is over."""
    from ..supervisor.history import show_detector

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
                another = arguments.attempt is None and any(a.number > number for a in kept)
                _pass_on(stream, number if arguments.json else None, whole=over or another)
                if another:
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


def _pass_on(stream: IO[bytes], attempt: int | None = None, whole: bool = True) -> None:
    """Print what is there, as it is; or as JSON, with the attempt, line by line, the last if it is whole."""
    sys.stdout.flush()
    if attempt is not None:
        while line := stream.readline():
            if not line.endswith(b"\n") and not whole:
                stream.seek(-len(line), os.SEEK_CUR)
                return
            text = line.removesuffix(b"\n").decode(errors="replace")
            print_json({"attempt": attempt, "text": text})
        return
    while chunk := stream.read(_CHUNK_BYTES):
        os.write(sys.stdout.fileno(), chunk)
