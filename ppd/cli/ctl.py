"""``ppdctl``: show and steer a running ppd.

Each command is defined once, by `make_parser`: parsing, help, completion and
the reference in ``docs/ppdctl.md`` follow from that.  What takes a while to
import is imported by the command that needs it.
"""

from __future__ import annotations

__all__ = ["main", "make_parser"]

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, NoSupervisorError, PpdError
from .cache_commands import add_cache_commands
from .completion_command import add_completion_command
from .config_commands import add_config_commands
from .dead_letter_commands import add_dead_letter_commands
from .doctor_command import add_doctor_command
from .history_commands import add_history_commands
from .input_commands import add_input_commands
from .key_commands import add_key_commands
from .log_commands import add_log_commands
from .metrics_command import add_metrics_command
from .options import EXIT_CODES, add_command, common_options, print_json, settings_of, target_of, tell
from .reload_command import add_reload_command
from .status_command import add_status_command
from .steering_commands import add_steering_commands
from .visit_commands import add_visit_commands

if TYPE_CHECKING:
    from ..control import ControlClient


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ppdctl``.

    Parameters
    ----------
    argv : sequence of `str`, optional
        Arguments; those of the process by default.

    Returns
    -------
    code : `int`
        Exit code; see `ppd.cli.options.EXIT_CODES`.
    """
    arguments = make_parser().parse_args(argv)
    try:
        return _run(arguments)
    except ConfigurationError as e:
        return _fail(arguments, e, 2, "configuration")
    except PpdError as e:
        return _fail(arguments, e, 1, "failed")
    except NoSupervisorError as e:
        return _fail(arguments, e, 3, "no_answer")
    except BrokenPipeError:
        # Whoever read it has read enough; nothing more is to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.alone:  # it wants to see itself what can't be used
        return int(arguments.run(arguments))
    if arguments.offline and arguments.connect is not None:
        raise ConfigurationError("This command reads files of the machine that ppd is on: run it there.")
    if arguments.offline:  # it reads what is on disk, and needs no ppd
        return int(arguments.run(settings_of(arguments), arguments))
    from ..control import ControlClient

    with ControlClient(target_of(arguments), arguments.timeout) as client:
        return int(arguments.run(client, arguments))


def _fail(arguments: argparse.Namespace, error: Exception, code: int, word: str) -> int:
    if arguments.json:
        print_json({}, ok=False, code=word, error=str(error))
    print(f"ppdctl: {error}", file=sys.stderr)
    return code


def make_parser() -> argparse.ArgumentParser:
    """Define all commands.

    Returns
    -------
    parser : `argparse.ArgumentParser`
        Its results have what is to be called as ``run``.
    """
    common = common_options()
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="ppdctl", description="Show and steer a running ppd.", epilog=f"Exit codes: {codes}."
    )
    parser.set_defaults(offline=False, alone=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_status_command(commands, common)
    add_visit_commands(commands, common)
    add_history_commands(commands, common)
    add_log_commands(commands, common)
    add_input_commands(commands, common)
    add_steering_commands(commands, common)
    add_cache_commands(commands, common)
    add_dead_letter_commands(commands, common)
    add_config_commands(commands, common)
    add_doctor_command(commands, common)
    add_metrics_command(commands, common)
    add_reload_command(commands, common)
    _add_endings(commands, common)
    add_key_commands(commands, common)
    add_completion_command(commands, common)
    return parser


def _add_endings(commands: Any, common: argparse.ArgumentParser) -> None:
    drain = add_command(commands, common, "drain", "finish what was accepted, take no more")
    drain.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="seconds to wait until all is exported (0)"
    )
    drain.set_defaults(run=_drain)
    stop = add_command(
        commands,
        common,
        "stop",
        "end ppd; what is unfinished stays for the next start",
        "As SIGTERM does; --now as a second one does.",
    )
    stop.add_argument("--now", action="store_true", help="kill children, leave the spool as it is")
    stop.set_defaults(run=_stop)


def _drain(client: ControlClient, arguments: argparse.Namespace) -> int:
    drained = client.drain(arguments.wait)
    error = None if drained or not arguments.wait else f"not drained within {arguments.wait:g} s"
    if arguments.json:
        print_json({"drained": drained}, ok=error is None, code="unfinished" if error else "ok", error=error)
    else:
        print("drained: nothing is left" if drained else "draining: no more visits are taken")
    return 0 if error is None else 4


def _stop(client: ControlClient, arguments: argparse.Namespace) -> int:
    return tell(client.stop(now=arguments.now), arguments, "ppd stops")


if __name__ == "__main__":
    sys.exit(main())
