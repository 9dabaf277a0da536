"""What the parts of the benchmark have measured, side by side in one file."""

from __future__ import annotations

__all__ = ["merge_part"]

import json
from pathlib import Path
from typing import Any


def merge_part(path: Path, part: str, figures: dict[str, Any]) -> None:
    """Put a part's figures into the results, beside what is there.

    Parameters
    ----------
    path : `pathlib.Path`
        The JSON file; made if it does not exist.
    part : `str`
        Which part.
    figures : `dict`
        What it has measured.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
    path.write_text(json.dumps({**results, part: rounded}, indent=1) + "\n")
