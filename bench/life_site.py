"""The observatory of the life part: DemoCam's repo, its raws, and a real ppd to run."""

from __future__ import annotations

__all__ = [
    "PIPELINE",
    "build_life_central",
    "life_settings",
    "make_life_visit",
    "start_ppd",
    "write_raw",
]

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import yaml
from astropy.time import Time, TimeDelta
from lsst.daf.butler import Butler, CollectionType, Config, DatasetType, Timespan

from ppd.config import Settings
from ppd.control import ControlClient, NoSupervisorError
from ppd.demo.camera import INSTRUMENT, focal_plane
from ppd.demo.democam import DemoCam
from ppd.deployment import day_obs
from ppd.initializer import initialize
from ppd.visit import TAI_MINUS_UTC

from .demo_visit import FILTER, DemoVisit
from .servers import end_with_parent

PIPELINE = Path(__file__).parent / "pipelines" / "Life.yaml"

_CALIB = f"{INSTRUMENT}/calib/life"
_SIDE = 2048  # 8 MB of 16-bit pixels
_TYPES = (
    ("raw", ("instrument", "exposure", "detector"), "ImageV2", False),
    ("bias", ("instrument", "detector"), "StructuredDataDict", True),
    ("flat", ("instrument", "detector", "physical_filter"), "StructuredDataDict", True),
)
_START_SECONDS = 90.0


def make_life_visit(number: int) -> DemoVisit:
    """Make up a visit.

    Parameters
    ----------
    number : `int`
        Unlike that of any other visit of the run.
    """
    day = day_obs(time.time())
    return DemoVisit(
        number=number,
        group=f"life-{day}-{number:05d}",
        exposure=day * 100_000 + number + 1,
        ra=(37.0 * number) % 360.0,
        dec=-60.0 + (7.0 * number) % 70.0,
        rotation=(53.0 * number) % 360.0,
    )


def write_raw(path: Path, visit: DemoVisit, detector: int) -> None:
    """Write a raw under another name beside its place, for `os.rename`.

    Parameters
    ----------
    path : `pathlib.Path`
        Where to.
    visit : `DemoVisit`
        The visit.
    detector : `int`
        The detector.
    """
    begin = Time(time.time() + TAI_MINUS_UTC, format="unix_tai", scale="tai")
    number = visit.number + 1
    cards = {
        "INSTRUME": INSTRUMENT,
        "OBSID": f"DC_{visit.exposure}",
        "EXPID": visit.exposure,
        "GROUPID": visit.group,
        "DETNUM": detector,
        "DETNAME": focal_plane().outline(detector).name,
        "FILTER": FILTER,
        "DATE-BEG": begin.isot,
        "DATE-END": (begin + TimeDelta(30.0, format="sec")).isot,
        "TIMESYS": "TAI",
        "EXPTIME": 30.0,
        "DARKTIME": 30.5,
        "RA": visit.ra,
        "DEC": visit.dec,
        "ROTSKY": visit.rotation,
        "AZ": 120.0,
        "EL": 62.0,
        "AIRMASS": 1.13,
        "OBJECT": "somewhere",
        "PROGRAM": "BENCH",
        "DAYOBS": visit.exposure // 100_000,
        "SEQNUM": number,
        "SEQSTART": number,
        "SEQEND": number,
    }
    pixels = np.random.default_rng(visit.number).integers(0, 65536, (_SIDE, _SIDE), dtype=np.uint16)
    hdu = astropy.io.fits.PrimaryHDU(pixels)
    hdu.header.update(cards)
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu.writeto(path)


def build_life_central(root: Path, config: Config | None = None) -> None:
    """Build the central repo.

    Parameters
    ----------
    root : `pathlib.Path`
        The repo; must not exist.
    config : `lsst.daf.butler.Config`, optional
        Where its registry is; SQLite in the root when absent.
    """
    with Butler.from_config(Butler.makeRepo(str(root), config=config), writeable=True) as butler:
        DemoCam().register(butler.registry)
        for name, dimensions, storage_class, calibration in _TYPES:
            butler.registry.registerDatasetType(
                DatasetType(
                    name, dimensions, storage_class, universe=butler.dimensions, isCalibration=calibration
                )
            )
        run = f"{_CALIB}/run"
        butler.collections.register(run)
        butler.collections.register(f"{INSTRUMENT}/raw/all")
        butler.collections.register(_CALIB, CollectionType.CALIBRATION)
        refs = []
        for outline in focal_plane().detectors:
            data_id = {"instrument": INSTRUMENT, "detector": outline.id}
            refs.append(butler.put({"level": 100.0}, "bias", data_id, run=run))
            refs.append(butler.put({"response": 1.0}, "flat", data_id, physical_filter=FILTER, run=run))
        butler.registry.certify(_CALIB, refs, Timespan(None, None))
        for chain, children in (
            (f"{INSTRUMENT}/calib", [_CALIB]),
            (f"{INSTRUMENT}/defaults", [f"{INSTRUMENT}/calib"]),
        ):
            butler.collections.register(chain, CollectionType.CHAINED)
            butler.collections.redefine_chain(chain, children)


def life_settings(folder: Path, central: Path, sockets: Path) -> Settings:
    """Make ppd's settings.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where ppd may keep its state.
    central : `pathlib.Path`
        The central repo.
    sockets : `pathlib.Path`
        Folder of the sockets; its path is short.
    """
    return Settings.model_validate(
        {
            "instrument": INSTRUMENT,
            "central_repo": str(central),
            "main_pipelines": [{"pipelines": [str(PIPELINE)]}],
            "state_dir": str(folder / "state"),
            "socket_dir": str(sockets),
            "raw_dirs": [str(folder / "raws")],
            "cache_bytes": "256 MiB",
            "shm_min_free": "16 MiB",
            "spool_min_free": "1 MiB",
            "image_timeout": 120.0,
            "retries": 0,
            "http_listen": None,
        }
    )


@contextlib.contextmanager
def start_ppd(settings: Settings, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], ControlClient]]:
    """Run ppd; it is ready when this is entered, and gone when it is left.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Its settings.
    folder : `pathlib.Path`
        Where to write configuration and log.
    """
    initialize(settings)
    config, log = folder / "ppd.yaml", folder / "ppd.log"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude={"config_path"})))
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "ppd.cli.daemon", "--config", str(config)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
            start_new_session=True,  # an interrupt is for the benchmark to handle
        )
    client = ControlClient(settings.socket_dir, timeout=10.0)
    try:
        await_that(lambda: _is_quick(process, client), _START_SECONDS, "ppd to be prepared")
        yield process, client
    except RuntimeError as e:
        raise RuntimeError(f"{e}\n{log.read_text()[-3000:]}") from e
    finally:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # what waits for raws is not waited for
        try:
            process.wait(60.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
        client.close()


def _is_quick(process: subprocess.Popen[bytes], client: ControlClient) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"ppd ended with {process.returncode}")
    try:
        return bool(client.status(timeout=1.0)["inherited"]["quick"])
    except NoSupervisorError:
        return False


def await_that(condition: Any, seconds: float, what: str) -> Any:
    """Wait until something is so, bounded; return what the condition did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise RuntimeError(f"{seconds:.0f} s are not enough for {what}")
