"""A small central repo in the midst of a night, and what gathers inputs from it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetRef,
    DatasetType,
)
from lsst.sphgeom import HtmPixelization
from repo_support import (
    DETECTORS,
    INSTRUMENT,
    OLD,
    SKYMAP,
    TRACTS,
    certify,
    grid_plane,
    make_grid_repo,
    put,
)

from ppd.cache.repo import CacheRepo
from ppd.config import Settings
from ppd.deployment import chain_name, date_string
from ppd.initializer import expected_runs
from ppd.instruments.description import InstrumentDescription
from ppd.messages import InputType, PipelineSummary
from ppd.supervisor.gather import Gatherer
from ppd.supervisor.reading import CentralButlers
from ppd.supervisor.requests import Resolve, Resolved
from ppd.visit import BareVisit, parse_visit
from ppd.workers.local_repo import clone_repo

GRIDCAM = InstrumentDescription(
    name=INSTRUMENT, focal_plane=grid_plane(), raw_formatter="none", raw_storage_class="StructuredDataDict"
)

MAIN = "/pipelines/Main.yaml"
DAY, DEPLOYMENT = 20230226, "pipelines-1-config-1"
NIGHT_MJD = 60005.0


def site_settings(folder: Path, central: Path, **changes: Any) -> Settings:
    """Configure a ppd of one pipeline for a central repo."""
    names = {"instrument": INSTRUMENT, "skymap": SKYMAP, "central_repo": str(central)}
    places = {"state_dir": folder / "state", "socket_dir": "/nowhere", "shm_dir": folder, "shm_min_free": 0}
    return Settings.from_dict({"main_pipelines": [{"pipelines": [MAIN]}], **names, **places, **changes})


def prepare_day(butler: Butler, settings: Settings) -> None:
    """Make the runs of a day with an init-output, and the chain, as ppd-init does."""
    runs = expected_runs(settings, DAY, DEPLOYMENT)
    for run in runs.values():
        butler.collections.register(run)
    schema = DatasetType("schema", (), "StructuredDataDict", universe=butler.dimensions)
    butler.registry.registerDatasetType(schema)
    put(butler, "schema", runs[MAIN])
    chain = chain_name(settings.instrument, date_string(DAY))
    butler.collections.register(chain, CollectionType.CHAINED)
    butler.collections.prepend_chain(chain, list(runs.values()))


def input_type(butler: Butler, name: str, optional: bool = False) -> InputType:
    """Declare a dataset type as a pipeline's input."""
    dataset_type = butler.get_dataset_type(name)
    return InputType(
        name=name,
        dimensions=tuple(dataset_type.dimensions.names),
        storage_class=dataset_type.storageClass_name,
        is_calibration=dataset_type.isCalibration(),
        is_prerequisite=True,
        optional=optional,
        multiple=False,
    )


def declare(butler: Butler, *names: str, optional: tuple[str, ...] = (), path: str = MAIN) -> PipelineSummary:
    """Summarize a pipeline that has these inputs."""
    inputs = tuple(input_type(butler, name, name in optional) for name in names)
    return PipelineSummary(path=path, inputs=inputs, outputs=(), init_outputs=())


def announce(group: str, **changes: Any) -> BareVisit:
    """Make a visit at the third tract, in the night of a grid repo."""
    begin = (changes.pop("mjd", NIGHT_MJD) - 40587.0) * 86400.0
    numbers = dict.fromkeys(("salIndex", "scriptSalIndex", "nimages", "totalCheckpoints"), 1)
    systems = dict.fromkeys(("coordinateSystem", "rotationSystem", "dome"), 2)
    times = {"startTime": begin, "duration": 30.0, "private_sndStamp": begin - 60.0}
    names = {"instrument": INSTRUMENT, "groupId": group, "filters": "r_1", "survey": "test"}
    place = {"position": TRACTS[2], "cameraAngle": 20.0}
    return parse_visit({**numbers, **systems, **times, **names, **place, **changes})


def ask(visit: BareVisit, detectors: tuple[int, ...] = DETECTORS, main: tuple[str, ...] = (MAIN,)) -> Resolve:
    """Ask for the inputs of a visit."""
    run = f"{chain_name(visit.instrument, date_string(DAY))}/Main/{DEPLOYMENT}"
    every, runs = dict.fromkeys(detectors, main), (run,)
    return Resolve(visit, dict.fromkeys(detectors, ()), every, DAY, DEPLOYMENT, runs)


INPUTS = ("bias", "flat", "camera", "skyMap", "template", "stars", "model")
"""What `fill_night` fills a grid repo with."""


def fill_night(butler: Butler) -> None:
    """Give a grid repo what visits at the third tract need, and a day to work in."""
    for d in DETECTORS:
        certify(butler, put(butler, "bias", "bias/a", detector=d), 60000.0, 60010.0)
        certify(butler, put(butler, "flat", "flats", detector=d, physical_filter="r_1"), 60000.0, None)
    certify(butler, put(butler, "camera", "cameras"), None, None, OLD)
    for p in butler.query_dimension_records("patch", skymap=SKYMAP, tract=2):
        put(butler, "template", "templates", tract=2, patch=p.id, band="r")
    (tract,) = butler.query_dimension_records("tract", skymap=SKYMAP, tract=2)
    for begin, end in HtmPixelization(7).envelope(tract.region):
        for pixel in range(begin, end):
            put(butler, "stars", "refcats", htm7=pixel)
    put(butler, "skyMap", "skymaps")
    put(butler, "model", "models")
    prepare_day(butler, site_settings(Path("/nowhere"), Path("/nowhere")))


def filled_repo(factory: pytest.TempPathFactory) -> Path:
    """Make a filled grid repo once for all tests; nobody changes it."""
    root = factory.getbasetemp() / "filled-grid"
    if not root.exists():
        make_grid_repo(root)
        with Butler.from_config(str(root), writeable=True) as butler:
            fill_night(butler)
    return root


class Site:
    """A copy of a filled grid repo, and what gathers inputs from it.

    Parameters
    ----------
    folder : `pathlib.Path`
        Empty folder of its own.
    filled : `pathlib.Path`
        The repo to copy.
    names, optional : `tuple` [ `str`, ... ], optional
        Inputs of the only pipeline, and those that it can do without.
    max_bytes : `int`, optional
        Size of the cache.
    **changes
        Settings.
    """

    def __init__(
        self,
        folder: Path,
        filled: Path,
        names: tuple[str, ...] = INPUTS,
        optional: tuple[str, ...] = (),
        max_bytes: int = 1 << 30,
        **changes: Any,
    ):
        folder.mkdir(exist_ok=True)
        self.root = shutil.copytree(filled, folder / "central")
        self.settings = site_settings(folder, self.root, **changes)
        self.butler = Butler.from_config(str(self.root), writeable=True)
        self.central = CentralButlers(str(self.root), self.settings.read_central_repo, delay=0.01)
        self.place = folder / "place"
        self.place.mkdir(mode=0o700)
        self.cache = CacheRepo(self.place, self.butler, max_bytes)
        for element in ("instrument", "detector", "physical_filter", "skymap"):
            self.cache.insert_records({element: self.butler.query_dimension_records(element)})
        filters = {"g_1": "g", "r_1": "r"}
        self.gatherer = Gatherer(self.settings, GRIDCAM, self.central, self.cache, filters)
        self.gatherer.learn([declare(self.butler, *names, optional=optional)])

    def close(self) -> None:
        """Close the three repos."""
        self.cache.close()
        self.central.close()
        self.butler.close()

    def gather(self, group: str, detectors: tuple[int, ...] = DETECTORS, **changes: Any) -> Resolved:
        """Gather the inputs of a visit."""
        return self.gatherer.gather(ask(announce(group, **changes), detectors))

    @contextlib.contextmanager
    def child(self, resolved: Resolved, detector: int) -> Iterator[Butler]:
        """Open the clone that a detector's child would have."""
        folder = self.place.parent / f"{resolved.group}-{detector}"
        with clone_repo(folder, resolved.views[detector]) as butler:
            yield butler
        shutil.rmtree(folder)

    def path(self, ref: DatasetRef) -> Path:
        """The file of a dataset in the central repo."""
        return Path(self.butler.getURI(ref).ospath)


def given_to(resolved: Resolved, detector: int, name: str) -> list[DatasetRef]:
    """What a detector was given of a dataset type."""
    assert resolved.inputs is not None
    resolution = resolved.inputs.resolution
    refs = [resolution.refs[i] for i in resolution.detectors[detector].ids]
    return sorted(ref for ref in refs if ref.datasetType.name == name)
