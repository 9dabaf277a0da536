"""What all commands of ``ppdctl`` are told: where ppd and its configuration are."""

from __future__ import annotations

__all__ = ["ask_first", "common_options", "settings_of"]

import argparse
import os
import sys
from pathlib import Path

from ..config import Settings, find_config, load_settings
from ..credentials import take_credentials


def common_options() -> argparse.ArgumentParser:
    """Return a parser of the options that every command has."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, help="ppd's configuration file")
    common.add_argument("--socket-dir", type=Path, help="ppd's folder of sockets, instead of --config")
    common.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for an answer")
    common.add_argument("--json", action="store_true", help="print JSON")
    return common


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Read the configuration.

    Parameters
    ----------
    arguments : `argparse.Namespace`
        With ``config``, from `common_options`.

    Returns
    -------
    settings : `ppd.config.Settings`
        The settings.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if they can't be used.
    """
    take_credentials(os.environ)
    return load_settings(find_config(arguments.config, os.environ), os.environ)


def ask_first(consequence: str, question: str, yes: bool) -> int | None:
    """Ask once before something that can't be undone.

    Parameters
    ----------
    consequence : `str`
        What it costs, for a program that did not say ``--yes``.
    question : `str`
        What a person is asked.
    yes : `bool`
        Whether ``--yes`` was said.

    Returns
    -------
    code : `int` or `None`
        Exit code if it is not to be done: 2 if nobody can be asked, 1 if the answer is no.
    """
    if yes:
        return None
    if not sys.stdin.isatty():
        print(f"ppdctl: {consequence}; say --yes", file=sys.stderr)
        return 2
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return None
    print("nothing is done")
    return 1
