"""``ppdctl inputs`` and ``ppdctl prefetch``."""

from __future__ import annotations

__all__ = ["add_input_commands"]

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import FILES, add_command, add_group, completed_by, tell

if TYPE_CHECKING:
    from rich.table import Table

    from .._control_messages import Pointing
    from ..control import ControlClient


def add_input_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to ``ppdctl``.

    Parameters
    ----------
    commands : `argparse._SubParsersAction`
        Where to add them.
    common : `argparse.ArgumentParser`
        Options that every command has.
    """
    inputs = add_command(
        commands,
        common,
        "inputs",
        "what a visit's detectors get, and what they lack",
        "With --detector dataset by dataset, with the reason. It is known of the last visits only.",
    )
    add_group(inputs)
    inputs.add_argument("--detector", type=int, metavar="N", help="only this detector, dataset by dataset")
    inputs.set_defaults(run=_inputs)
    prefetch = add_command(
        commands, common, "prefetch", "fetch the inputs of pointings when there is nothing else to do"
    )
    prefetch.add_argument("--ra", type=float, metavar="DEGREES", help="right ascension (ICRS)")
    prefetch.add_argument("--dec", type=float, metavar="DEGREES", help="declination (ICRS)")
    prefetch.add_argument("--filter", metavar="NAME", help="physical filter")
    files = prefetch.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="lists: RA DEC [FILTER] on each line; - for standard input",
    )
    completed_by(files, FILES)
    prefetch.set_defaults(run=_prefetch)


def _inputs(client: ControlClient, arguments: argparse.Namespace) -> int:
    reply = client.inputs(arguments.group, arguments.detector)
    if not reply.ok or arguments.json:
        return tell(reply, arguments)
    from .screen import make_console

    console = make_console()
    result = reply.result
    console.print("searched in: " + ", ".join(result["collections"]), highlight=False, markup=False)
    if result["looking"]:
        console.print(f"still looking for the inputs of {len(result['looking'])} detectors")
    detailed = arguments.detector is not None
    for detector, found in result["detectors"].items():
        kinds: dict[str, int] = {}
        for line in found["inputs"]:
            kinds[line["type"]] = kinds.get(line["type"], 0) + 1
        text = ", ".join(name if n == 1 else f"{name} ({n})" for name, n in kinds.items())
        console.print(f"{detector}: {text or 'nothing'}", highlight=False, markup=False)
        for name, missing in found["missing"].items():
            needed = "can do without" if missing["optional"] else "needed"
            console.print(f"  lacks {name} ({needed}): {missing['reason']}", highlight=False, markup=False)
        if detailed:
            console.print(_table(found["inputs"]))
    return 0


def _table(lines: list[dict[str, Any]]) -> Table:
    from .screen import make_table

    table = make_table("type", "data ID", "run", "why")
    for line in lines:
        data_id = " ".join(str(v) for v in line["data_id"].values())
        table.add_row(line["type"], data_id, line["run"], line.get("failure", line["why"]))
    return table


def _prefetch(client: ControlClient, arguments: argparse.Namespace) -> int:
    try:
        pointings = _pointings(arguments)
    except (OSError, ValueError) as e:
        print(f"ppdctl: {e}", file=sys.stderr)
        return 2
    reply = client.prefetch(pointings)
    return tell(reply, arguments, f"inputs of {len(pointings)} pointings are fetched when there is time")


def _pointings(arguments: argparse.Namespace) -> list[Pointing]:
    if (arguments.ra is None) != (arguments.dec is None):
        raise ValueError("--ra and --dec go together")
    pointings = []
    if arguments.ra is not None or (arguments.filter is not None and not arguments.files):
        pointings.append(_pointing(arguments.ra, arguments.dec, arguments.filter, "--ra, --dec"))
    for name in arguments.files:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if words:
                if len(words) not in (2, 3):
                    raise ValueError(f"{name}:{number}: not RA DEC [FILTER]: {line.strip()}")
                given = words[2] if len(words) == 3 else arguments.filter
                pointings.append(_pointing(words[0], words[1], given, f"{name}:{number}"))
    if not pointings:
        raise ValueError("no pointing is given: --ra and --dec, --filter, or a file")
    return pointings


def _pointing(ra: object, dec: object, physical_filter: str | None, where: str) -> Pointing:
    import pydantic

    from .._control_messages import Pointing

    try:
        return Pointing.model_validate({"ra": ra, "dec": dec, "physical_filter": physical_filter})
    except pydantic.ValidationError as e:
        faults = "; ".join(f"{x['loc'][0]}: {x['msg']}" for x in e.errors(include_url=False))
        raise ValueError(f"{where}: {faults}") from e
