"""What all commands of ``ppdctl`` are told: where ppd and its configuration are."""

from __future__ import annotations

__all__ = ["common_options", "settings_of"]

import argparse
import os
from pathlib import Path

from ..config import Settings, find_config, load_settings


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
    return load_settings(find_config(arguments.config, os.environ), os.environ)
