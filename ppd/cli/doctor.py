"""``ppdctl doctor``: what is wrong, and how to mend it."""

from __future__ import annotations

__all__ = ["Finding", "examine", "run_doctor"]

import argparse
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from ..errors import ConfigurationError, one_line
from .options import print_json, settings_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check has found."""

    level: Literal["ok", "warning", "fault"]
    text: str
    remedy: str = ""
    """How to mend it."""


_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}

Check = Callable[[], Iterator[Finding]]


def run_doctor(arguments: argparse.Namespace) -> int:
    """Look at everything, and print what was found; see `ppd.cli.doctor_command`."""
    # They need the middleware, for which the other commands need not wait.
    from .doctor_checks import LOCAL_CHECKS, SETTINGS_CHECKS
    from .doctor_services import SERVICE_CHECKS

    logging.disable(logging.CRITICAL)  # what they would say is said here
    checks: dict[str, Check] = dict(LOCAL_CHECKS)
    findings: dict[str, list[Finding]] = {}
    try:
        settings = settings_of(arguments)
    except ConfigurationError as e:
        remedy = "correct it; ppdctl config check tells when it is"
        findings["configuration"] = [Finding("fault", line, remedy) for line in str(e).splitlines()[1:]]
    else:
        where = settings.config_path or "the environment"
        findings["configuration"] = [Finding("ok", f"{where} can be used")]
        some = SETTINGS_CHECKS | SERVICE_CHECKS
        checks |= {name: functools.partial(check, settings) for name, check in some.items()}
    findings |= examine(checks, arguments.patience)
    faults = sum(f.level == "fault" for some in findings.values() for f in some)
    if arguments.json:
        found = {name: [dataclasses.asdict(f) for f in some] for name, some in findings.items()}
        error = f"{faults} faults" if faults else None
        print_json({"findings": found}, ok=not faults, code="faults" if faults else "ok", error=error)
    else:
        from .screen import make_console

        _print(findings, make_console())
    return 1 if faults else 0


def examine(checks: Mapping[str, Check], patience: float) -> dict[str, list[Finding]]:
    """Do checks side by side, and wait for none of them for ever.

    Parameters
    ----------
    checks : `~collections.abc.Mapping` [ `str`, callable ]
        Checks by name.
    patience : `float`
        Seconds that they may take.

    Returns
    -------
    findings : `dict` [ `str`, `list` [ `Finding` ] ]
        What each has found, in the order of the checks.
    """
    done: dict[str, list[Finding]] = {}
    # What hangs in a database's or a disk's driver can't be ended: it must not keep the process.
    threads = [
        threading.Thread(target=_examine, args=(name, check, done), daemon=True)
        for name, check in checks.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = Finding(
        "fault", f"no answer within {patience:g} s", "something hangs: a server, a mount, the way there"
    )
    return {name: done.get(name, [silent]) for name in checks}


def _examine(name: str, check: Check, done: dict[str, list[Finding]]) -> None:
    try:
        done[name] = list(check())
    except Exception as e:
        done[name] = [Finding("fault", f"it can't be checked: {type(e).__name__}: {one_line(e)}")]


def _print(findings: Mapping[str, list[Finding]], console: Console) -> None:
    from .screen import Text

    for name, some in findings.items():
        for finding in some:
            line = Text.assemble((f"{finding.level:<8}", _STYLES[finding.level]), f"{name}: {finding.text}")
            console.print(line, soft_wrap=True)
            if finding.remedy and finding.level != "ok":
                console.print(Text(f"        -> {finding.remedy}"), soft_wrap=True)
    counts = [
        sum(f.level == level for some in findings.values() for f in some) for level in ("fault", "warning")
    ]
    console.print(f"{counts[0]} faults, {counts[1]} warnings", highlight=False)
