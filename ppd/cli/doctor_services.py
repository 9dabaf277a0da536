"""What of the services around ppd can keep it from working, and how to mend it."""

from __future__ import annotations

__all__ = ["SERVICE_CHECKS"]

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator

from lsst.daf.butler import Butler

from ..config import Settings
from ..control import ControlClient, NoSupervisorError
from ..deployment import day_obs
from ..errors import NotInitializedError, PpdError, one_line
from ..initializer import check_initialized
from ..s3 import explain, make_client
from ..supervisor.reading import open_butler
from .doctor import Finding

_SLOW_SECONDS = 2.0
_DAY_SECONDS = 86400.0


def check_central(settings: Settings) -> Iterator[Finding]:
    """Whether the central repo can be opened and written, and knows the instrument."""
    yield from _check_repo(settings, settings.central_repo, "central_repo", writeable=True)


def check_replica(settings: Settings) -> Iterator[Finding]:
    """Whether the read replica answers, if one is configured."""
    if settings.read_central_repo is None:
        yield Finding("ok", "none is configured: inputs are read from the primary")
    else:
        yield from _check_repo(settings, settings.read_central_repo, "read_central_repo", writeable=False)


def _check_repo(settings: Settings, uri: str, name: str, *, writeable: bool) -> Iterator[Finding]:
    begin = time.monotonic()
    try:
        butler = open_butler(uri, writeable=writeable, attempts=1, delay=0.0)
    except PpdError as e:
        yield Finding("fault", str(e), f"see that its database runs and can be reached, or correct {name}")
        return
    with butler:
        opened = time.monotonic() - begin
        universe = butler.dimensions
        if not butler.query_dimension_records(
            "detector", instrument=settings.instrument, explain=False, limit=1
        ):
            yield Finding(
                "fault",
                f"{name} has no detectors of {settings.instrument}",
                "register the instrument (butler register-instrument), or correct instrument",
            )
            return
        if writeable and not butler.isWriteable():
            yield Finding("fault", f"{name} can't be written", "give this user the right to")
            return
    text = f"{uri} answers, opened in {opened:.1f} s, universe {universe.namespace} {universe.version}"
    if opened > _SLOW_SECONDS:
        yield Finding("warning", text, "look for load on its server, and at the way there")
    else:
        yield Finding("ok", text)


def check_init_outputs(settings: Settings) -> Iterator[Finding]:
    """Whether ppd-init has prepared this day, and the next where that should have been done."""
    now = time.time()
    today, soon = day_obs(now), day_obs(now + settings.rollover_lead)
    try:
        with Butler.from_config(settings.central_repo, writeable=False) as butler:
            for day in dict.fromkeys((today, soon)):
                try:
                    check_initialized(butler, settings, day)
                except NotInitializedError as e:
                    text, _, command = str(e).partition(" Run: ")
                    automatic = settings.initialize_automatically
                    yield Finding("warning" if automatic else "fault", text, command)
                else:
                    yield Finding("ok", f"init-outputs of {day} are there")
    except Exception as e:
        yield Finding("fault", f"they can't be looked for: {one_line(e)}", "see what is said of central")


def check_apdb(settings: Settings) -> Iterator[Finding]:
    """Whether the APDB answers: before a second try of anything it has to."""
    if settings.apdb_config is None:
        yield Finding("ok", "none is configured")
        return
    from lsst.dax.apdb import Apdb

    try:
        apdb = Apdb.from_uri(settings.apdb_config)
        apdb.containsVisitDetector(1, 1)
    except Exception as e:
        yield Finding(
            "fault",
            f"the APDB of {settings.apdb_config} does not answer: {one_line(e)}",
            "see that its database runs, or correct apdb_config",
        )
    else:
        yield Finding("ok", f"{settings.apdb_config} answers")


def check_bucket(settings: Settings) -> Iterator[Finding]:
    """Whether the bucket that raws come into can be listed, if one is configured."""
    if settings.raw_bucket is None:
        return
    try:
        client = make_client(settings.s3_endpoint)
        client.list_objects_v2(Bucket=settings.raw_bucket, Prefix=settings.raw_prefix, MaxKeys=1)
    except Exception as e:
        fault = explain(e)
        text = fault.text if fault is not None else one_line(e)
        yield Finding(
            "fault",
            f"bucket {settings.raw_bucket} can't be listed: {text}",
            "see raw_bucket, s3_endpoint and the credentials (AWS_*, ~/.aws)",
        )
    else:
        yield Finding("ok", f"bucket {settings.raw_bucket} can be listed")


def check_stream(settings: Settings) -> Iterator[Finding]:
    """Whether the Redis server of visits answers and has the stream's group, if one is configured."""
    if settings.redis_url is None:
        return
    from ..redis_client import explain as explain_redis
    from ..redis_client import make_client as make_redis_client
    from ..redis_client import public_url
    from ..sources.redis_stream import RedisStream

    where = public_url(settings.redis_url)
    try:
        with contextlib.closing(
            make_redis_client(settings.redis_url, ca_file=settings.redis_ca_file, name="ppdctl")
        ) as client:
            stream = RedisStream(client, settings.redis_stream, settings.redis_group, "ppdctl")
            standing = stream.standing()
    except Exception as e:
        yield Finding(
            "fault",
            f"{where} can't be asked: {explain_redis(e) or one_line(e)}",
            "see redis_url, redis_ca_file and REDIS_PASSWORD, and that the server runs",
        )
        return
    what = f"stream {settings.redis_stream}, group {settings.redis_group}"
    if standing is None:
        yield Finding(
            "warning",
            f"{where} answers and has no {what}: ppd will make it",
            "see redis_stream and redis_group, if others write or read there already",
        )
    else:
        lag, pending = standing
        waiting = "an unknown number of" if lag is None else lag
        yield Finding("ok", f"{where} answers; {what}: {waiting} entries wait, {pending} are not confirmed")


def check_daemon(settings: Settings) -> Iterator[Finding]:
    """Whether a ppd runs, and how it is."""
    try:
        with ControlClient(settings.socket_dir, 2.0) as client:
            status = client.status()
    except NoSupervisorError:
        command = ["ppd"]
        if settings.config_path is not None:
            command += ["--config", str(settings.config_path)]
        yield Finding("warning", "no ppd runs", f"systemctl start ppd, or {shlex.join(command)}")
        return
    if status["health"] in ("ok", "paused", "draining"):
        yield Finding("ok", f"ppd runs ({status['health']}), pid {status['pid']}")
    for fault in status["faults"]:
        yield Finding("fault", f"ppd runs and says: {fault}", "ppdctl status tells more")


SERVICE_CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "central": check_central,
    "replica": check_replica,
    "init-outputs": check_init_outputs,
    "apdb": check_apdb,
    "bucket": check_bucket,
    "stream": check_stream,
    "daemon": check_daemon,
}
"""Checks of what ppd talks to."""
