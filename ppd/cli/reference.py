"""The reference of ``ppdctl``, made from the definitions of its commands: ``docs/ppdctl.md``.

``python -m ppd.cli.reference`` prints it.
"""

from __future__ import annotations

__all__ = ["write_reference"]

import argparse
import sys
from collections.abc import Iterator

from .ctl import make_parser
from .options import CODES, EXIT_CODES

_HEAD = """# ppdctl

Made from the definitions of the commands by `python -m ppd.cli.reference > docs/ppdctl.md`; a
test sees that it is current. [commands.md](commands.md) has `ppd` and `ppd-init`, and what is counted.

`ppdctl` talks to the ppd whose sockets are in `--socket-dir`, or whose configuration is
`--config`, else `$PPD_CONFIG`, else `/etc/ppd/ppd.yaml`. It prints tables for people and, with
`--json`, JSON for programs. Colours are for terminals alone, and off with `NO_COLOR`. What
destroys something asks once; `--yes` is for programs.

| exit code | |
|---|---|
"""
_JSON = """
## JSON

With `--json` a command prints one object on one line, which always begins with

| field | |
|---|---|
| `ok` | whether it was done: `true` with exit code 0, else `false` |
| `code` | a word of the table below |
| `error` | the same for people, which is on standard error too; `null` if there is none |

The command's own fields follow at the same level: `visits` of `visits` and `history`, `dead_letters` of
`dead-letters list`, `settings` of `config show`, `findings` of `doctor`, `text` of `metrics` and `logs`,
what `status` tells, and so on; when it failed, they may be absent. `submit` prints a line for each
visit, `status --watch` for each look, `logs --follow` for each line of the log. Wrong arguments are told
on standard error alone. `ppd-init --json` begins its report with the same fields.

| `code` | |
|---|---|
"""
_COMMON = ("connect", "key", "config", "socket_dir", "timeout", "json")


def write_reference() -> str:
    """Write the reference.

    Returns
    -------
    text : `str`
        Markdown.
    """
    parser = make_parser()
    commands = list(_commands(parser))
    lines = [_HEAD + "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())]
    lines += [_JSON + "\n".join(f"| `{code}` | {meaning} |" for code, meaning in CODES.items()), ""]
    lines += ["## All commands", ""]
    lines += ["Each command that is not `completion` takes:", ""]
    first = commands[0]
    lines += [_line(a) for a in first._actions if a.dest in _COMMON]
    lines += [""]
    for command in commands:
        name = command.prog.partition(" ")[2]
        own = [a for a in command._actions if a.dest not in (*_COMMON, "help")]
        lines += [f"## {name}", "", f"    {command.prog}{_usage(own)}", ""]
        lines += [command.description or "", ""]
        if own:
            lines += [*(_line(a) for a in own), ""]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Find the commands that can be run, in the order of their definition."""
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not subparsers:
        yield parser
    for action in subparsers:
        for child in action.choices.values():
            yield from _commands(child)


def _usage(actions: list[argparse.Action]) -> str:
    """Write what follows a command: its arguments, and that there are options."""
    words = []
    for action in actions:
        if not action.option_strings:
            name = _value(action)
            form = {"*": f"[{name} ...]", "+": f"{name} [{name} ...]", "?": f"[{name}]"}
            words.append(form.get(str(action.nargs), name))
    return "".join(f" {word}" for word in words) + (
        " [options]" if any(a.option_strings for a in actions) else ""
    )


def _line(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{_value(action)}`"
    if action.option_strings and action.nargs != 0:
        names += f" `{_value(action)}`"
    return f"- {names}: {action.help}"


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return str(action.metavar or action.dest.upper())


if __name__ == "__main__":
    sys.stdout.write(write_reference())
