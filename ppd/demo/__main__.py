"""``python -m ppd.demo``: a simulated night, from sky to report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .runner import run_demo


def main() -> int:
    """Read the arguments and run the demo.

    Returns
    -------
    code : `int`
        0; 1 if something of the night failed; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="ppd.demo", description="A simulated night against a real ppd.")
    parser.add_argument("--visits", type=int, default=6, help="visits of nine detectors (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sky (default 1)")
    # Two processors need ten seconds or so for a visit: one is done before the next.
    parser.add_argument(
        "--cadence", type=float, default=18.0, help="seconds from visit to visit (default 18)"
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where the results go")
    arguments = parser.parse_args()
    if arguments.visits < 1 or arguments.cadence <= 0:
        parser.error("a night has at least one visit and a cadence above zero")
    return run_demo(arguments.output, visits=arguments.visits, seed=arguments.seed, cadence=arguments.cadence)


if __name__ == "__main__":
    sys.exit(main())
