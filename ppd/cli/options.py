"""What all commands of ``ppdctl`` have in common: options, questions, answers and exit codes.

Nothing here is slow to import: an operator, a prompt or a monitor waits for it.
"""

from __future__ import annotations

__all__ = [
    "CODES",
    "EXIT_CODES",
    "FILES",
    "GROUPS",
    "add_command",
    "add_group",
    "ask_first",
    "common_options",
    "completed_by",
    "parse_count",
    "parse_detectors",
    "print_alerts",
    "print_detectors",
    "print_json",
    "settings_of",
    "sockets_of",
    "target_of",
    "tell",
]

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._config_file import find_config, find_sockets
from .._limits import MAX_DETECTORS

if TYPE_CHECKING:
    from .._control_messages import ControlReply
    from ..config import Settings
    from ..control import Remote

EXIT_CODES = {
    0: "done",
    1: "refused, or there is no such thing; the reason is printed",
    2: "wrong arguments or configuration",
    3: "no ppd answers",
    4: "not drained in time",
    130: "interrupted",
}
"""What `main` returns, whatever the command."""

CODES = {
    "ok": "it was done",
    "malformed": "what was sent can't be understood",
    "stale": "the message is too old",
    "duplicate": "it was accepted before",
    "ignored": "no pipeline is configured for it",
    "unavailable": "not now: ppd is paused, draining, has no room, or can't write",
    "forbidden": "this user or key may not ask for that",
    "unknown": "there is no such thing, or it is not in a state for that",
    "refused": "the configuration was not put in force; of ppd-init: the central repo contradicts it",
    "unfinished": "it was not over in time, and goes on",
    "unreadable": "a file can't be read",
    "incomplete": "something needed was not found",
    "faults": "the doctor has found some",
    "configuration": "the configuration can't be used",
    "failed": "anything else; the text says what",
    "no_answer": "no ppd answers; of ppd-init: nor does the central repo",
}
"""What went wrong in a word, for ``--json``."""

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
"""How a shell completes the name of a file."""
GROUPS = {"bash": "_ppdctl_groups", "zsh": "_ppdctl_groups"}
"""How it completes the group of a visit; see `ppd.cli.completion_command`."""

_ALERTS = {
    "on_time": "in time",
    "late": "late",
    "never": "never",
    "expected_late": "will be late",
    "not_judged": "not judged",
}


def common_options() -> argparse.ArgumentParser:
    """Return a parser of the options that every command has."""
    common = argparse.ArgumentParser(add_help=False)
    config = common.add_argument("--config", type=Path, metavar="FILE", help="ppd's configuration file")
    socket_dir = common.add_argument(
        "--socket-dir", type=Path, metavar="FOLDER", help="ppd's folder of sockets, instead of --config"
    )
    common.add_argument(
        "--connect", metavar="ENDPOINT", help="a ppd on another machine, tcp://HOST:PORT; with --key"
    )
    key = common.add_argument(
        "--key", type=Path, metavar="FILE", help="the key to connect with, NAME.key_secret beside server.key"
    )
    completed_by(key, FILES)
    completed_by(config, FILES)
    completed_by(socket_dir, {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"})
    common.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="seconds to wait for an answer (5)"
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    return common


def add_command(
    commands: Any, common: argparse.ArgumentParser, name: str, summary: str, text: str = ""
) -> argparse.ArgumentParser:
    """Define a command: its help, its completion and its reference follow from this.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has.
    name : `str`
        How it is called.
    summary : `str`
        What it does, in a line.
    text : `str`, optional
        What else has to be known of it, in sentences.

    Returns
    -------
    command : `argparse.ArgumentParser`
        For its own arguments.
    """
    description = f"{summary[0].upper()}{summary[1:]}." + (f" {text}" if text else "")
    command: argparse.ArgumentParser = commands.add_parser(
        name, parents=[common], help=summary, description=description
    )
    return command


def add_group(command: argparse.ArgumentParser, **more: Any) -> None:
    """Add the argument that names a visit."""
    group = command.add_argument("group", metavar="GROUP", help="group of the visit", **more)
    completed_by(group, GROUPS)


def completed_by(action: argparse.Action, how: Mapping[str, str]) -> None:
    """Say how a shell completes an argument."""
    action.complete = how  # type: ignore[attr-defined]


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
    from ..config import load_settings
    from ..credentials import take_credentials

    take_credentials(os.environ)
    return load_settings(find_config(arguments.config, os.environ), os.environ)


def sockets_of(arguments: argparse.Namespace) -> Path:
    """Find ppd's folder of sockets, without reading the whole configuration if that can be.

    Parameters
    ----------
    arguments : `argparse.Namespace`
        With ``config`` and ``socket_dir``, from `common_options`.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if the configuration does not say.
    """
    given: Path | None = arguments.socket_dir
    path = find_config(arguments.config, os.environ)
    found = given or (find_sockets(path) if path is not None else None)
    return found or settings_of(arguments).socket_dir


def target_of(arguments: argparse.Namespace) -> Path | Remote:
    """Find where ppd is asked: its folder of sockets, or another machine.

    Parameters
    ----------
    arguments : `argparse.Namespace`
        From `common_options`.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if that is not said, or not said well.
    """
    from ..control import Remote
    from ..errors import ConfigurationError

    if arguments.connect is None and arguments.key is None:
        return sockets_of(arguments)
    if arguments.connect is None or arguments.key is None:
        raise ConfigurationError("--connect and --key are given together.")
    if not arguments.connect.startswith("tcp://"):
        raise ConfigurationError("--connect is tcp://HOST:PORT.")
    return Remote(arguments.connect, arguments.key)


def parse_count(text: str) -> int:
    """Read how many.

    Raises
    ------
    argparse.ArgumentTypeError
        Raised if it is no number from 1 to a million.
    """
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000000")
    return int(text)


def parse_detectors(text: str) -> tuple[int, ...]:
    """Read a list of detectors.

    Parameters
    ----------
    text : `str`
        Numbers and ranges, with commas between them: ``94,100-103``.

    Returns
    -------
    detectors : `tuple` [ `int`, ... ]
        Each once, in order.

    Raises
    ------
    argparse.ArgumentTypeError
        Raised if it is no such list.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"not a list of detectors such as 94,100-103: {text!r}")
        begin, end = int(first), int(last or first)
        if end < begin or end - begin >= MAX_DETECTORS:
            raise argparse.ArgumentTypeError(f"no range of detectors: {part.strip()!r}")
        found.update(range(begin, end + 1))
    if len(found) > MAX_DETECTORS:
        raise argparse.ArgumentTypeError(f"more than {MAX_DETECTORS} detectors: {text!r}")
    return tuple(sorted(found))


def print_detectors(detectors: Iterable[int]) -> str:
    """Write a list of detectors as `parse_detectors` reads it."""
    runs: list[list[int]] = []
    for number in sorted(detectors):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def print_alerts(alerts: Mapping[str, int], kinds: Iterable[str] = _ALERTS) -> str:
    """Write how many alerts were in time, late and so on; nothing of what there is none of.

    Parameters
    ----------
    alerts : `dict`
        As `ppd.supervisor.timeliness.count_timeliness` has them.
    kinds : iterable of `str`, optional
        Only of these.
    """
    return ", ".join(f"{alerts[kind]} {_ALERTS[kind]}" for kind in kinds if alerts[kind])


def print_json(
    found: Mapping[str, Any], *, ok: bool = True, code: str = "ok", error: str | None = None
) -> None:
    """Print what a command has to say to a program, in the one form that all have: an object on a line.

    Parameters
    ----------
    found : `dict`
        The command's own fields.
    ok : `bool`, optional
        Whether it was done.
    code : `str`, optional
        What went wrong, in a word: one of `CODES`.
    error : `str`, optional
        The same for people.
    """
    print(json.dumps({"ok": ok, "code": code, "error": error, **found}), flush=True)


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


def tell(reply: ControlReply, arguments: argparse.Namespace, done: str = "") -> int:
    """Print the answer to a request, as JSON where that is wanted.

    Parameters
    ----------
    reply : `ppd.messages.ControlReply`
        The answer.
    arguments : `argparse.Namespace`
        With ``json``, from `common_options`.
    done : `str`, optional
        What a person is told if it was done.

    Returns
    -------
    code : `int`
        Exit code.
    """
    if arguments.json:
        print_json(reply.result, ok=reply.ok, code=reply.code, error=reply.error)
    elif reply.ok and done:
        print(done)
    if not reply.ok:
        print(f"ppdctl: {reply.error}", file=sys.stderr)
    return 0 if reply.ok else 1
