"""Where the configuration is, and what of it can be told without reading all of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_DEFAULT_CONFIG = Path("/etc/ppd/ppd.yaml")
# A plain scalar at the beginning of a line is a setting's value in any YAML file.
_FOLDER = r"^{name}:[ \t]+(/[\w./-]+)[ \t]*(?:[ \t]#.*)?$"

# Settings that decide where sockets are, and where below; the first that is given counts.
_NAMES = {"socket_dir": ".", "state_dir": "sockets"}


def find_config(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Find the configuration file of a command.

    Parameters
    ----------
    given : `pathlib.Path` or `None`
        What the command line says.
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        The environment.

    Returns
    -------
    path : `pathlib.Path` or `None`
        The file given, else that of ``PPD_CONFIG``, else
        ``/etc/ppd/ppd.yaml`` where there is one.
    """
    if given is not None:
        return given
    if environ.get("PPD_CONFIG"):
        return Path(environ["PPD_CONFIG"])
    return _DEFAULT_CONFIG if _DEFAULT_CONFIG.exists() else None


def find_sockets(path: Path) -> Path | None:
    """Find the folder of sockets in a configuration file at a glance.

    To read and check all settings takes several times as long as to ask a
    running ppd how it is.

    Parameters
    ----------
    path : `pathlib.Path`
        The file.

    Returns
    -------
    folder : `pathlib.Path` or `None`
        `None`: it is not written plainly, or the file can't be read; then the
        settings have to be read in earnest.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    found = {name: re.findall(_FOLDER.format(name=name), text, re.MULTILINE) for name in _NAMES}
    written = {name: len(re.findall(rf"^[\"']?{name}\b", text, re.MULTILINE)) for name in _NAMES}
    for name, below in _NAMES.items():
        if written[name]:
            return Path(found[name][0]) / below if len(found[name]) == written[name] == 1 else None
    return None
