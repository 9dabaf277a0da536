"""``python -m ppd.demo.site``: the demo observatory as a site, for the tutorial and compose.yaml."""

from __future__ import annotations

__all__ = ["BucketPlayer", "main"]

import argparse
import collections
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Config

from ..config import find_config, load_settings
from ..control import ControlClient, NoSupervisorError
from ..credentials import take_credentials
from ..errors import ConfigurationError
from ..s3 import make_client
from .configuration import write_config
from .night import NightPlan, load_plan, simulate_night
from .player import NightPlayer

_READY_SECONDS = 300.0
_DRAIN_SECONDS = 300.0


class BucketPlayer(NightPlayer):
    """Plays a night whose raws come into a bucket.

    Parameters
    ----------
    plan : `ppd.demo.night.NightPlan`
        The night.
    publish : callable
        Called with each nextVisit message.
    client : `botocore.client.S3`
        Of the bucket's service.
    bucket, prefix : `str`
        Where raws go.
    """

    def __init__(
        self,
        plan: NightPlan,
        publish: Callable[[dict[str, Any]], object],
        client: Any,
        bucket: str,
        prefix: str,
    ):
        super().__init__(plan, Path(), publish)
        self._client, self._bucket, self._prefix = client, bucket, prefix

    def _rename(self, relative: Path, raw: bytes) -> None:
        # An object is there whole or not at all.
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}{relative}", Body=raw)
        with self._count:
            self.dropped += 1

    _write_slowly = _rename


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a site, or play its night.

    Parameters
    ----------
    argv : sequence of `str`, optional
        Arguments; those of the process by default.

    Returns
    -------
    code : `int`
        0; 1 if ppd did not take the night, or not all of it; 2 if there is no usable configuration.
    """
    parser = argparse.ArgumentParser(prog="ppd.demo.site", description="The demo observatory as a site.")
    actions = parser.add_subparsers(required=True)
    prepare = actions.add_parser("prepare", help="simulate the survey")
    prepare.add_argument("folder", type=Path)
    prepare.add_argument(
        "--registry", help="URL of an empty database; without it, a file, and FOLDER/ppd.yaml for a ppd"
    )
    prepare.add_argument("--replica", help="URL of its replica, for FOLDER/replica/butler.yaml")
    prepare.add_argument("--visits", type=int, default=6, help="how many (6)")
    prepare.set_defaults(run=_prepare)
    play = actions.add_parser("play", help="announce the visits to ppd, and let the raws come")
    play.add_argument("folder", type=Path)
    play.add_argument("--config", type=Path)
    play.add_argument(
        "--visits", type=_numbers, metavar="RANGE", help="only these of the night, counted from 1: 3 or 2-4"
    )
    play.set_defaults(run=_play)
    arguments = parser.parse_args(argv)
    take_credentials(os.environ)
    try:
        return int(arguments.run(arguments))
    except ConfigurationError as e:
        print(f"ppd.demo.site: {e}", file=sys.stderr)
        return 2


def _numbers(text: str) -> range:
    """Read the first and the last."""
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found or found.start < 1:
        raise argparse.ArgumentTypeError(f"no visits: {text!r}")
    return found


def _prepare(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder.resolve()
    if (folder / "night.json").exists():
        print(f"{folder} has a night already.")
        return 0
    # What an attempt has left that was broken off.
    for name in ("central_repo", "staged", "replica"):
        shutil.rmtree(folder / name, ignore_errors=True)
    plan = simulate_night(folder, visits=arguments.visits, registry=arguments.registry)
    if arguments.replica is not None:
        config = Config(str(Path(plan.central) / "butler.yaml"))
        config["registry", "db"] = arguments.replica
        # A standby refuses them; and the files are the repo's.
        config["registry", "temporary_tables"] = False
        config["root"] = plan.central
        (folder / "replica").mkdir()
        config.dumpToUri(str(folder / "replica" / "butler.yaml"))
    if arguments.registry is None:
        write_config(folder, plan)
    print(f"{len(plan.visits)} visits are ready in {folder}.")
    return 0


def _play(arguments: argparse.Namespace) -> int:
    settings = load_settings(find_config(arguments.config, os.environ), os.environ)
    plan = load_plan(arguments.folder / "night.json")
    if arguments.visits is not None:
        plan = _only(plan, arguments.visits)
    with (
        ControlClient(settings.socket_dir, timeout=10.0) as client,
        ControlClient(settings.socket_dir, timeout=10.0) as publisher,
    ):
        if not _wait(client, lambda status: not status["refuses"], _READY_SECONDS):
            print("ppd takes no visits.", file=sys.stderr)
            return 1
        player: NightPlayer
        if settings.raw_bucket is not None:
            s3 = make_client(settings.s3_endpoint, connections=8)
            held = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
            if settings.raw_bucket not in held:
                s3.create_bucket(Bucket=settings.raw_bucket)
            player = BucketPlayer(plan, publisher.submit, s3, settings.raw_bucket, settings.raw_prefix)
        else:
            player = NightPlayer(plan, settings.raw_dirs[0], publisher.submit)
        player.start()
        seconds = max(when for when, *_ in player.schedule()) + _DRAIN_SECONDS
        became: dict[str, dict[str, int]] = {}

        def is_over(status: dict[str, Any]) -> bool:
            # Noted at each look: ppd forgets what is over, but for the last visits.
            became.update((v["group"], v["states"]) for v in client.visits()["visits"])
            return not player.playing and status["idle"]

        over = _wait(client, is_over, seconds)
        player.stop()
    code = _tell(plan, player, became)
    return code if over else 1


def _tell(plan: NightPlan, player: NightPlayer, became: Mapping[str, Mapping[str, int]]) -> int:
    """Say what became of the visits that were played: exit code 1 unless all is in central."""
    states: collections.Counter[str] = collections.Counter()
    for visit in plan.visits:
        states.update(became.get(visit.group, {}))
    print(
        f"{player.announced} visits announced, {player.dropped} raws have come; "
        f"{states['exported']} detector-visits are exported, {states['failed']} failed."
    )
    return 0 if player.announced == len(plan.visits) and set(states) == {"exported"} else 1


def _only(plan: NightPlan, numbers: range) -> NightPlan:
    """Leave some visits of a night, of which the first begins at once."""
    visits = [visit for number, visit in enumerate(plan.visits, 1) if number in numbers]
    if not visits:
        raise SystemExit(f"The night has visits 1 to {len(plan.visits)}.")
    begin = min(visit.announce for visit in visits)
    moved = [
        {"announce": visit.announce - begin, "shutter_close": visit.shutter_close - begin} for visit in visits
    ]
    return plan.model_copy(
        update={"visits": tuple(visit.model_copy(update=times) for visit, times in zip(visits, moved))}
    )


def _wait(client: ControlClient, enough: Callable[[dict[str, Any]], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if enough(client.status()):
                return True
        except NoSupervisorError:
            pass
        time.sleep(1.0)
    return False


if __name__ == "__main__":
    sys.exit(main())
