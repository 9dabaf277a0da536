"""Small real repos, small real file systems, and what else several tests share."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from astropy.time import Time
from lsst.daf.butler import (
    Butler,
    CollectionType,
    Config,
    DatasetRef,
    DatasetType,
    DimensionConfig,
    DimensionRecord,
    FileDataset,
    SerializedDatasetType,
    SerializedDimensionRecord,
    Timespan,
)
from lsst.daf.butler._file_dataset import SerializedFileDataset
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from ppd.cache.repo import CacheRepo
from ppd.demo.camera import INSTRUMENT as DEMOCAM
from ppd.demo.democam import DemoCam
from ppd.demo.raws import Conditions, simulate_raw, write_raw
from ppd.demo.sky import FIELDS, make_sky
from ppd.focalplane import DetectorOutline, FocalPlane
from ppd.messages import CacheView
from ppd.workers.local_repo import clone_repo

INSTRUMENT = "GridCam"
SKYMAP = "grid"
DEFAULTS = f"{INSTRUMENT}/defaults"
CALIB = f"{INSTRUMENT}/calib"
NEW, OLD = f"{CALIB}/new", f"{CALIB}/old"
DETECTORS = tuple(range(9))
LSSTCAM = Path(__file__).parents[2] / "shared" / "lsstcam"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
needs_lsstcam = pytest.mark.skipif(
    not LSSTCAM.exists(), reason="the LSSTCam test data is not beside this checkout"
)

_TYPES = (
    ("raw", ("instrument", "exposure", "detector"), False),
    ("camera", ("instrument",), True),
    ("bias", ("instrument", "detector"), True),
    ("flat", ("instrument", "detector", "physical_filter"), True),
    ("skyMap", ("skymap",), False),
    ("template", ("skymap", "tract", "patch", "band"), False),
    ("stars", ("htm7",), False),
    ("model", (), False),
    ("limits", ("instrument", "detector"), False),
    ("curve", ("instrument", "physical_filter"), False),
)
# Centres of the tracts: at both poles, across right ascension 0, and elsewhere.
TRACTS = ((40.0, 90.0), (211.0, -90.0), (0.0, -12.4), (150.1, 31.0))
_PATCHES_PER_SIDE = 6
_PATCH_DEGREES = 0.7


def day(mjd: float) -> Time:
    """A time, as validity ranges have it."""
    return Time(mjd, format="mjd", scale="tai")


def span(begin: float | None, end: float | None) -> Timespan:
    """A validity range in MJD, open where `None`."""
    return Timespan(*(None if t is None else day(t) for t in (begin, end)))


def grid_plane(degrees: float = 0.6) -> FocalPlane:
    """Nine detectors, row by row, of a width on the sky."""
    outlines = []
    for number in DETECTORS:
        x, y = (number % 3 - 1) * 11.0, (number // 3 - 1) * 11.0
        outlines.append(
            DetectorOutline(
                id=number, name=f"D{number}", x_min=x - 5, x_max=x + 5, y_min=y - 5, y_max=y + 5, nx=10, ny=10
            )
        )
    return FocalPlane(detectors=tuple(outlines), scale=degrees * 360.0)


def make_grid_repo(
    root: Path, config: Config | None = None, dimensions: DimensionConfig | None = None
) -> None:
    """Make a central repo of an instrument with nine detectors; it has no datasets."""
    made = Butler.makeRepo(str(root), config=config, dimensionConfig=dimensions)
    with Butler.from_config(made, writeable=True) as butler:
        insert = butler.registry.insertDimensionData
        insert(
            "instrument",
            {
                "name": INSTRUMENT,
                "class_name": "none",
                "visit_max": 10**15,
                "visit_system": 0,
                "exposure_max": 10**15,
                "detector_max": 9,
            },
        )
        for band in "gr":
            insert("physical_filter", {"instrument": INSTRUMENT, "name": f"{band}_1", "band": band})
        insert(
            "detector",
            *(
                {"instrument": INSTRUMENT, "id": d, "full_name": f"D{d}", "purpose": "SCIENCE"}
                for d in DETECTORS
            ),
        )
        n = _PATCHES_PER_SIDE
        insert(
            "skymap",
            {
                "name": SKYMAP,
                "hash": b"grid",
                "tract_max": len(TRACTS),
                "patch_nx_max": n,
                "patch_ny_max": n,
            },
        )
        for tract, (ra, dec) in enumerate(TRACTS):
            plane = FocalPlane(
                detectors=tuple(_patch_outline(i) for i in range(n * n)),
                scale=_PATCH_DEGREES * 3600.0,
                flip_x=False,
            )
            patches = plane.regions(ra, dec, 0.0)
            corners = [v for region in patches.values() for v in region.getVertices()]
            insert("tract", {"skymap": SKYMAP, "id": tract, "region": ConvexPolygon.convexHull(corners)})
            insert(
                "patch",
                *(
                    {
                        "skymap": SKYMAP,
                        "tract": tract,
                        "id": i,
                        "cell_x": i % n,
                        "cell_y": i // n,
                        "region": region,
                    }
                    for i, region in patches.items()
                ),
            )
        for name, dimensions, calibration in _TYPES:
            butler.registry.registerDatasetType(
                DatasetType(
                    name,
                    dimensions,
                    "StructuredDataDict",
                    universe=butler.dimensions,
                    isCalibration=calibration,
                )
            )
        for calib in (NEW, OLD):
            butler.collections.register(calib, CollectionType.CALIBRATION)
        for run in ("templates", "refcats", "skymaps", "models"):
            butler.collections.register(run)
        for chain, children in (
            (CALIB, [NEW, OLD]),
            (DEFAULTS, [CALIB, "templates", "refcats", "skymaps", "models"]),
        ):
            butler.collections.register(chain, CollectionType.CHAINED)
            butler.collections.redefine_chain(chain, children)


def _patch_outline(number: int) -> DetectorOutline:
    x = number % _PATCHES_PER_SIDE - _PATCHES_PER_SIDE / 2
    y = number // _PATCHES_PER_SIDE - _PATCHES_PER_SIDE / 2
    # Neighbours overlap a little, as patches do.
    return DetectorOutline(
        id=number, name="", x_min=x - 0.05, x_max=x + 1.05, y_min=y - 0.05, y_max=y + 1.05, nx=1, ny=1
    )


def put(butler: Butler, name: str, run: str, size: int = 0, **data_id: Any) -> DatasetRef:
    """Put a dataset with a real file; ``size`` is roughly its bytes."""
    for key, value in (("instrument", INSTRUMENT), ("skymap", SKYMAP)):
        if key in butler.get_dataset_type(name).dimensions.required:
            data_id.setdefault(key, value)
    butler.collections.register(run)
    return butler.put({"of": name, "run": run, "fill": "x" * size}, name, data_id, run=run)


def certify(
    butler: Butler, ref: DatasetRef, begin: float | None, end: float | None, where: str = NEW
) -> None:
    """Certify a calib in one of the two calibration collections."""
    butler.registry.certify(where, [ref], span(begin, end))


def position(ra: float, dec: float) -> UnitVector3d:
    """A direction from degrees."""
    return UnitVector3d(LonLat.fromDegrees(ra, dec))


def open_cache(place: Path, central: Butler, max_bytes: int = 1 << 30) -> CacheRepo:
    """Open a cache that has the chains of a grid repo."""
    cache = CacheRepo(place, central, max_bytes)
    cache.mirror_collections(
        {
            CALIB: (NEW, OLD),
            DEFAULTS: (CALIB, "templates", "refcats", "skymaps", "models"),
        },
        (NEW, OLD),
    )
    return cache


def ids_of(*refs: DatasetRef) -> frozenset[uuid.UUID]:
    """IDs of datasets."""
    return frozenset(ref.id for ref in refs)


def dataset_files(folder: Path) -> set[Path]:
    """All dataset files below a folder."""
    return {p for p in folder.rglob("*") if p.is_file() and p.suffix == ".yaml" and "butler" not in p.name}


def clone(cache: CacheRepo, folder: Path, holder: str, *refs: DatasetRef) -> Butler:
    """Lease datasets to a child and open its clone."""
    snapshot = cache.lease(holder, ids_of(*refs))
    view = CacheView(snapshot=str(snapshot), config=str(cache.child_config), collections=(DEFAULTS,))
    return clone_repo(folder, view)


@contextlib.contextmanager
def small_tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a real file system that is small, or else limited."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "ppd-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        # Lazily: a test that failed may have left a file open.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill a file system to the brim but for some bytes; return the file that does it."""
    path = folder / "ballast"
    with path.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
    with path.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(512))
    if leave:
        os.truncate(path, max(0, path.stat().st_size - leave))
    return path


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until something holds; return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{condition} did not come true in {seconds} s")


def copy_lsstcam(folder: Path) -> Path:
    """Copy the LSSTCam test repo, so that it can be written to."""
    repo = folder / "lsstcam"
    shutil.copytree(LSSTCAM / "central_repo", repo)
    for path in (repo, *repo.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return repo


# 05:00 UTC of an observing night that began the day before.
DEMO_MJD = 61369.2
DEMO_EXPOSURE = 2026112400003


def write_demo_raw(root: Path, detector: int = 4) -> Path:
    """Simulate a raw of DemoCam and write it where its path says what it is."""
    field = FIELDS[2]
    conditions = Conditions(
        exposure=DEMO_EXPOSURE,
        obs_id="DC_20261124_000003",
        group="2026-11-25T04:47:59.000",
        snap=0,
        field=field.name,
        physical_filter="demo-r",
        ra=field.ra,
        dec=field.dec,
        true_ra=field.ra,
        true_dec=field.dec,
        rotation=33.0,
        begin_mjd=DEMO_MJD,
        exposure_time=30.0,
        fwhm=2.0,
        elongation=0.0,
        sky_factor=1.0,
        transparency=1.0,
        day_obs=20261124,
        seq_num=3,
        seed=1,
    )
    pixels, header, _ = simulate_raw(make_sky(field, 1, DEMO_MJD), conditions, detector)
    folder = root / DEMOCAM / str(detector) / conditions.group / "0" / str(DEMO_EXPOSURE) / "demo-r"
    path = folder / f"{conditions.obs_id}_R00_S11.fits"
    write_raw(path, pixels, header)
    return path


def make_demo_repo(root: Path) -> None:
    """Make a repo that knows DemoCam and the type of its raws, and nothing else."""
    with Butler.from_config(Butler.makeRepo(str(root)), writeable=True) as butler:
        DemoCam().register(butler.registry)
        butler.registry.registerDatasetType(
            DatasetType("raw", ("instrument", "exposure", "detector"), "ImageV2", universe=butler.dimensions)
        )


def take_hand_over(butler: Butler, entry: Path, manifest: dict[str, Any]) -> None:
    """Ingest a hand-over with the middleware's own calls."""
    types = {}
    for item in manifest["dataset_types"]:
        simple_type = SerializedDatasetType.model_validate(item)
        dataset_type = DatasetType.from_simple(simple_type, universe=butler.dimensions)
        butler.registry.registerDatasetType(dataset_type)
        types[dataset_type.name] = dataset_type
    for run in manifest["runs"]:
        butler.collections.register(run)
    for item in manifest["dimension_records"]:
        simple = SerializedDimensionRecord.model_validate(item)
        record = DimensionRecord.from_simple(simple, universe=butler.dimensions)
        assert record is not None
        butler.registry.insertDimensionData(record.definition.name, record, skip_existing=True)
    for item in manifest["datasets"]:
        dataset = FileDataset.from_simple(
            SerializedFileDataset.model_validate(item),
            dataset_type_loader=types.__getitem__,
            universe=butler.dimensions,
        )
        dataset.path = str(entry / str(dataset.path))
        dataset.refs = [r.expanded(butler.registry.expandDataId(r.dataId)) for r in dataset.refs]
        butler.ingest(dataset, transfer="copy")
