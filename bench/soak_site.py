"""The soak's observatory: a small central repo, an APDB, and a real ppd."""

from __future__ import annotations

__all__ = ["SIDE", "Place", "Site"]

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import yaml
from lsst.daf.butler import Butler, CollectionType, Config, DatasetType, Timespan
from lsst.dax.apdb.sql import ApdbSql
from lsst.images import Image

from ppd.config import Settings, load_settings
from ppd.control import ControlClient, NoSupervisorError
from ppd.demo.camera import INSTRUMENT, focal_plane
from ppd.demo.central import build_apdb
from ppd.demo.democam import DemoCam
from ppd.demo.leftovers import count_leftovers
from ppd.initializer import initialize

from . import moved_clock
from .servers import end_with_parent

SIDE = 64
"""Rows and columns of a raw: what is soaked is ppd, not the pixels."""

_PIPELINES = Path(__file__).parent / "pipelines"
_TYPES = (
    ("raw", ("instrument", "exposure", "detector"), "ImageV2", False),
    ("bias", ("instrument", "detector"), "ImageV2", True),
    ("flat", ("instrument", "detector", "physical_filter"), "StructuredDataDict", True),
)
_CALIB = f"{INSTRUMENT}/calib/soak"
_START_SECONDS = 90.0
_STOP_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Place:
    """What of a site is elsewhere than in its folder."""

    registry_url: str | None = None
    """Empty database of the central registry; else SQLite."""
    apdb_url: str | None = None
    """Empty database of the APDB; else SQLite."""
    state_dir: Path | None = None
    clock: Path | None = None
    """What moves ppd's clock; see `bench.moved_clock`."""


class Site:
    """A site in a folder, with ppd running; all of it ends with the context.

    Parameters
    ----------
    folder : `pathlib.Path`
        An empty folder.
    image_timeout : `float`
        Seconds that a child waits for its raw.
    slots : `int`
        How many children may live at once.
    place : `Place`, optional
        What is elsewhere than in the folder.
    **changes
        Settings.
    """

    def __init__(
        self, folder: Path, image_timeout: float, slots: int, place: Place | None = None, **changes: Any
    ):
        self.folder = folder
        self.central = folder / "central"
        self.raws = folder / "raws"
        self.raws.mkdir()
        self._place = place = place or Place()
        self.registry_url = place.registry_url or f"sqlite:///{self.central / 'gen3.sqlite3'}"
        self.apdb_url = place.apdb_url or f"sqlite:///{folder.resolve() / 'apdb.db'}"
        self._sockets = Path(tempfile.mkdtemp(prefix="ppd-soak-"))
        _build_central(self.central, place.registry_url)
        self.apdb_config = (
            build_apdb(folder) if place.apdb_url is None else _build_apdb(folder, place.apdb_url)
        )
        self.config = folder / "ppd.yaml"
        values = {**self._values(image_timeout, slots), **changes}
        self.config.write_text(yaml.safe_dump(values))
        self.settings: Settings = load_settings(self.config, {})
        self.client = ControlClient(self.settings.socket_dir, timeout=20.0)
        self.log = folder / "ppd.log"
        self.process: subprocess.Popen[bytes] | None = None

    def _values(self, image_timeout: float, slots: int) -> dict[str, Any]:
        return {
            "instrument": INSTRUMENT,
            "central_repo": str(self.central),
            "apdb_config": str(self.apdb_config),
            "preprocessing_pipelines": [{"pipelines": [str(_PIPELINES / "SoakPreprocess.yaml")]}],
            "main_pipelines": [{"pipelines": [str(_PIPELINES / "Soak.yaml")]}],
            "state_dir": str(self._place.state_dir or self.folder / "state"),
            "socket_dir": str(self._sockets / "s"),
            "raw_dirs": [str(self.raws)],
            "raw_settle": 0.5,
            "cache_bytes": "256 MiB",
            "shm_min_free": "16 MiB",
            "spool_min_free": "1 MiB",
            "image_timeout": image_timeout,
            "slots": slots,
            "running": 2,
            "heartbeat_interval": 0.5,
            "heartbeat_timeout": 8.0,
            "worker_timeout": 120.0,
            "log_format": "text",
            "http_listen": None,
        }

    def __enter__(self) -> Self:
        try:
            initialize(self.settings)
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start ppd, without waiting for anything."""
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **single, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        if self._place.clock is not None:
            environment = moved_clock.environment(self._place.clock, environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ppd.cli.daemon", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),
                start_new_session=True,  # an interrupt is for the soak to handle
            )
        return self.process

    def _start(self) -> None:
        process = self.launch()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(NoSupervisorError):
                self.client.status(timeout=1.0)
                return
        raise RuntimeError(f"ppd does not start:\n{self.log.read_text()[-3000:]}")

    def nursery(self) -> psutil.Process:
        """Find the nursery."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return next(p for p in children if "ppd.workers.nursery" in p.cmdline())

    def stop(self) -> int | None:
        """End ppd as an operator does; return its exit code, `None` if it had to be killed."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10.0)
                return None
        return self.process.returncode

    def left_behind(self) -> dict[str, int]:
        """Count what an ended ppd should not have left."""
        spool = self.settings.spool_dir
        entries = {
            f"spool_{name}": sum(1 for _ in (spool / name).iterdir())
            for name in ("building", "ready", "dead-letters")
            if (spool / name).is_dir()
        }
        return {**count_leftovers(self.settings), **entries}

    def close(self) -> None:
        """End what runs."""
        self.stop()
        self.client.close()
        shutil.rmtree(self._sockets, ignore_errors=True)


def _build_apdb(folder: Path, url: str) -> Path:
    path = folder / "apdb.yaml"
    ApdbSql.init_database(url, read_sources_months=12).save(str(path))
    return path


def _build_central(root: Path, registry_url: str | None) -> None:
    rng = np.random.default_rng(1)
    config = Config()
    if registry_url is not None:
        config["registry", "db"] = registry_url
    with Butler.from_config(Butler.makeRepo(str(root), config=config), writeable=True) as butler:
        DemoCam().register(butler.registry)
        for name, dimensions, storage_class, calibration in _TYPES:
            butler.registry.registerDatasetType(
                DatasetType(
                    name,
                    dimensions,
                    storage_class,
                    universe=butler.dimensions,
                    isCalibration=calibration,
                )
            )
        run = f"{_CALIB}/run"
        butler.collections.register(run)
        butler.collections.register(f"{INSTRUMENT}/raw/all")
        butler.collections.register(_CALIB, CollectionType.CALIBRATION)
        with butler.transaction():
            refs = []
            for outline in focal_plane().detectors:
                data_id = {"instrument": INSTRUMENT, "detector": outline.id}
                bias = Image(np.round(rng.normal(100.0, 2.0, (SIDE, SIDE))).astype(np.float32))
                refs.append(butler.put(bias, "bias", data_id, run=run))
                # Only of the one filter: through the other nothing can be processed.
                flat = {"response": 1.0}
                refs.append(butler.put(flat, "flat", data_id, physical_filter="demo-r", run=run))
        butler.registry.certify(_CALIB, refs, Timespan(None, None))
        for chain, children in (
            (f"{INSTRUMENT}/calib", [_CALIB]),
            (f"{INSTRUMENT}/defaults", [f"{INSTRUMENT}/calib"]),
        ):
            butler.collections.register(chain, CollectionType.CHAINED)
            butler.collections.redefine_chain(chain, children)
