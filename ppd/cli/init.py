"""``ppd-init``: prepare the central repo for a day's work.

Exit codes:

====  =====================================================================
0     the central repo is prepared, now or already before
1     something unexpected happened
2     the configuration or a pipeline can't be used (nothing was written)
3     the central repo does not answer
4     what is in the central repo contradicts what would be written
====  =====================================================================
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import ctypes
import dataclasses
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..config import Settings
from ..deployment import date_string, day_obs, deployment_id
from ..errors import CentralUnavailableError, ConfigurationError
from ..logs import setup_logging
from .options import print_json, settings_of

_LOG = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def _day_obs(text: str) -> int:
    digits = text.replace("-", "")
    try:
        date_string(int(digits))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date; write YYYYMMDD") from None
    return int(digits)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppd-init",
        description="Prepare the central repo for a day's work: dataset types, runs with the init-outputs of "
        "every configured pipeline, and the day's chain. Doing it again changes nothing.",
        epilog="Exit codes: 0 prepared; 2 configuration can't be used; 3 central repo does not answer; "
        "4 the central repo contradicts the configuration; 1 anything else.",
    )
    parser.add_argument("-c", "--config", type=Path, help="configuration file (default: $PPD_CONFIG)")
    parser.add_argument("--day-obs", type=_day_obs, help="day to prepare, YYYYMMDD (default: today)")
    parser.add_argument("--ahead", type=float, default=0.0, help="the day that it is in so many seconds")
    parser.add_argument(
        "--settings", choices=["-"], help="read settings as JSON from standard input: for ppd"
    )
    parser.add_argument("--expect", help="deployment ID that it has to be, or nothing is written: for ppd")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    if args.settings is None:
        return settings_of(args)
    # The supervisor that has started this may end before it does: then nobody wants it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return Settings.from_dict(json.load(sys.stdin))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ppd-init``.

    Parameters
    ----------
    argv : sequence of `str`, optional
        Arguments; those of the process by default.

    Returns
    -------
    code : `int`
        Exit code; see the module.
    """
    args = _parser().parse_args(argv)
    try:
        settings = _settings(args)
    except ConfigurationError as e:
        return _fail(args, str(e), 2, "configuration")
    setup_logging(settings)
    # Seconds of imports, which a wrong configuration need not wait for.
    from lsst.daf.butler.registry import ConflictingDefinitionError

    from ..initializer import initialize

    try:
        if args.expect is not None and deployment_id(settings) != args.expect:
            raise ConfigurationError(
                f"The pipelines, or what is installed, are not those of {args.expect} any more: "
                "reload the configuration, or restart ppd."
            )
        report = initialize(settings, args.day_obs or day_obs(time.time() + args.ahead))
    except ConfigurationError as e:
        return _fail(args, f"nothing was written.\n{e}", 2, "configuration")
    except CentralUnavailableError as e:
        return _fail(args, str(e), 3, "no_answer")
    except ConflictingDefinitionError as e:
        return _fail(args, f"the central repo contradicts this configuration: {e}", 4, "refused")
    except Exception as e:
        _LOG.exception("ppd-init failed.")
        return _fail(args, f"{type(e).__name__}: {e}", 1, "failed")
    if args.json:
        print_json(dataclasses.asdict(report))
    elif report.written:
        print(f"Prepared {report.chain} for {report.deployment} in {report.seconds:.1f} s:")
        print("\n".join(f"  {run}" for run in report.runs))
    else:
        print(f"Already initialized: {report.chain} for {report.deployment}.")
    return 0


def _fail(args: argparse.Namespace, error: str, code: int, word: str) -> int:
    if args.json:
        print_json({}, ok=False, code=word, error=error)
    print(f"ppd-init: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
