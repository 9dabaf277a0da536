"""What people see of ``ppdctl``: tables, and colours where there is a terminal.

Imported by a command when it prints, since it takes a while.
"""

from __future__ import annotations

__all__ = ["Console", "Live", "Table", "Text", "clock", "make_console", "make_table"]

import os
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

# Where nobody sees a right margin, lines are not broken at one.
_WIDE = 240


def make_console() -> Console:
    """Return where to print: without colours if it is no terminal, or ``NO_COLOR`` is set."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(width=width, highlight=False)


def make_table(*columns: str) -> Table:
    """Return a table without lines; what is in the first column is copied by people, and never cut."""
    first, *others = columns
    return Table(Column(first, no_wrap=True), *others, box=None, pad_edge=False)


def clock(when: float, date: bool = True) -> str:
    """Write a time, Unix seconds, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S", time.gmtime(when))
