"""``ppdctl completion``: what a shell needs to complete its commands, made from their definitions."""

from __future__ import annotations

__all__ = ["add_completion_command", "write_completion"]

import argparse
from typing import Any

# The groups of the visits in hand are asked for at each TAB: it takes as long as status does.
_ASK = "ppdctl visits --groups --timeout 1 2>/dev/null"
_PREAMBLE = {
    # Groups have colons, at which bash would take a word to end.
    "bash": f"""
COMP_WORDBREAKS="${{COMP_WORDBREAKS//:/}}"
_ppdctl_groups() {{ compgen -W "$({_ASK})" -- "$1"; }}
""",
    "zsh": f"""
_ppdctl_groups() {{ local -a groups; groups=(${{(f)"$({_ASK})"}}); compadd -a groups; }}
""",
}


def add_completion_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add it.
    common : `argparse.ArgumentParser`
        Options that every command has; this one prints a script in any case.
    """
    text = (
        "Source what it prints: source <(ppdctl completion bash) in ~/.bashrc, or put it as _ppdctl into a"
        " folder of zsh's fpath. At TAB it asks the running ppd for the groups of its visits."
    )
    summary = "print what a shell needs to complete commands"
    completion = commands.add_parser(
        "completion", help=summary, description=f"{summary[0].upper()}{summary[1:]}. {text}"
    )
    completion.add_argument("shell", choices=sorted(_PREAMBLE), help="which shell")
    completion.set_defaults(run=_completion, alone=True, json=False)


def write_completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Write the script for a shell.

    Parameters
    ----------
    parser : `argparse.ArgumentParser`
        All commands.
    shell : `str`
        ``bash`` or ``zsh``.

    Returns
    -------
    script : `str`
        To be sourced, or put where the shell looks for it.
    """
    import shtab

    script: str = shtab.complete(parser, shell=shell, preamble=_PREAMBLE)  # type: ignore[arg-type]
    return script


def _completion(arguments: argparse.Namespace) -> int:
    from .ctl import make_parser

    print(write_completion(make_parser(), arguments.shell))
    return 0
