"""``ppdctl doctor``, as it is called; `ppd.cli.doctor` has what it does."""

from __future__ import annotations

__all__ = ["add_doctor_command"]

import argparse
from typing import Any

from .options import add_command


def add_doctor_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    doctor = add_command(
        commands,
        common,
        "doctor",
        "what is wrong with this machine, and how to mend it",
        "Looks at Python, packages, clock, limits, folders, shared memory, raws, pipelines, central repo,"
        " replica, init-outputs, APDB, bucket and the running ppd. Exit code 1: there is a fault.",
    )
    doctor.add_argument(
        "--patience",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="what has not answered after so many seconds is a fault (20)",
    )
    doctor.set_defaults(run=_doctor, alone=True)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import run_doctor

    return run_doctor(arguments)
