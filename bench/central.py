"""Building a central repo of the real size: ``python -m bench.central FOLDER``.

A file per dataset, as in a real repo, but datasets of one type are hard links
of one file: what is read from central comes from memory, whoever reads it.
"""

from __future__ import annotations

__all__ = ["CentralRepo", "bench_settings", "build_central"]

import argparse
import dataclasses
import os
import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from astropy.table import Table
from astropy.time import Time
from lsst.daf.butler import (
    Butler,
    CollectionType,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    FileDataset,
    Timespan,
)
from lsst.sphgeom import Circle, ConvexPolygon

from ppd.config import Settings
from ppd.initializer import initialize
from ppd.instruments.lsstcam import focal_plane

from .datasets import INSTRUMENT, KINDS, MODEL, REFCAT, SKYMAP, TEMPLATE, Kind
from .sky import BANDS, FIELDS, Patch

PIPELINES = Path(__file__).parent / "pipelines"

_EXTENSIONS = {"NumpyArray": ".pickle", "ArrowAstropy": ".parq", "StructuredDataDict": ".yaml"}
_TEMPLATE_BANDS = "gri"
_CALIB = f"{INSTRUMENT}/calib"
_CERTIFIED = f"{_CALIB}/DM-50520"
# Ends of the validity ranges: no visit of today is in the first.
_EPOCHS = ("2020-01-01", "2025-05-01", "2100-01-01")


@dataclasses.dataclass(frozen=True)
class CentralRepo:
    """A central repo that was built."""

    uri: str
    """What a Butler opens."""
    backend: Literal["sqlite", "postgresql"]
    database_url: str
    """Its database, as SQLAlchemy connects to it."""
    day_obs: int
    """The day that it is prepared for."""
    deployment: str
    """The deployment that it is prepared for."""
    datasets: int
    seconds: float
    """How long it took to build."""


def bench_settings(uri: str, state_dir: Path, **changes: Any) -> Settings:
    """Make ppd's settings for a repo of the benchmark.

    Parameters
    ----------
    uri : `str`
        The central repo.
    state_dir : `pathlib.Path`
        Where ppd may keep its state.
    **changes
        Settings to change.

    Returns
    -------
    settings : `ppd.config.Settings`
        The settings.
    """
    values: dict[str, Any] = {
        "instrument": INSTRUMENT,
        "skymap": SKYMAP,
        "central_repo": uri,
        "state_dir": state_dir,
        "preprocessing_pipelines": [{"pipelines": [str(PIPELINES / "Preprocess.yaml")]}],
        "main_pipelines": [{"pipelines": [str(PIPELINES / "ApPipe.yaml")]}],
        "http_listen": None,
    }
    return Settings.model_validate({**values, **changes})


def build_central(root: Path, payloads: Path, database_url: str | None = None) -> CentralRepo:
    """Build a central repo.

    Parameters
    ----------
    root : `pathlib.Path`
        The repo; must not exist.
    payloads : `pathlib.Path`
        Folder on the same file system for the files that datasets are links
        of; repos may share it.
    database_url : `str`, optional
        An empty PostgreSQL database; SQLite in the repo by default.

    Returns
    -------
    repo : `CentralRepo`
        The repo, made ready for today as ``ppd-init`` does it.
    """
    begin = time.monotonic()
    config = Config()
    if database_url is not None:
        config["registry", "db"] = database_url
    with Butler.from_config(Butler.makeRepo(str(root), config=config), writeable=True) as butler:
        _insert_camera(butler)
        patches = _insert_skymap(butler)
        _register_types(butler)
        datasets = 0
        for kind in KINDS:
            payload = _write_payload(payloads, kind)
            for epoch in range(kind.epochs):
                refs = _ingest(butler, root, kind, payload, epoch, patches)
                datasets += len(refs)
                if kind.calibration:
                    butler.registry.certify(_CERTIFIED, refs, _validity(kind, epoch))
        _register_chains(butler)
    report = initialize(bench_settings(str(root), root / "unused"))
    return CentralRepo(
        uri=str(root),
        backend="sqlite" if database_url is None else "postgresql",
        database_url=database_url or f"sqlite:///{root / 'gen3.sqlite3'}",
        day_obs=report.day_obs,
        deployment=report.deployment,
        datasets=datasets,
        seconds=time.monotonic() - begin,
    )


def _insert_camera(butler: Butler) -> None:
    insert = butler.registry.insertDimensionData
    insert(
        "instrument",
        {
            "name": INSTRUMENT,
            "class_name": "lsst.obs.lsst.LsstCam",
            "visit_max": 7050123199999,
            "visit_system": 2,
            "exposure_max": 7050123199999,
            "detector_max": 1000,
        },
    )
    insert(
        "physical_filter",
        *({"instrument": INSTRUMENT, "name": name, "band": band} for band, name in BANDS.items()),
    )
    insert(
        "detector",
        *(
            {
                "instrument": INSTRUMENT,
                "id": d.id,
                "full_name": d.name,
                "name_in_raft": d.name[4:],
                "raft": d.name[:3],
                "purpose": "SCIENCE",
            }
            for d in focal_plane().detectors
        ),
    )


def _insert_skymap(butler: Butler) -> list[Patch]:
    tracts = [t for i, field in enumerate(FIELDS) for t in field.tracts(1000 * (i + 1))]
    skymap = {"name": SKYMAP, "hash": SKYMAP.encode(), "tract_max": 4000}
    insert = butler.registry.insertDimensionData
    insert("skymap", {**skymap, "patch_nx_max": 10, "patch_ny_max": 10})
    every: list[Patch] = []
    for tract in tracts:
        patches = tract.patches()
        corners = [v for p in patches for v in p.region.getVertices()]
        insert("tract", {"skymap": SKYMAP, "id": tract.id, "region": ConvexPolygon.convexHull(corners)})
        every += patches
    insert(
        "patch",
        *(
            {
                "skymap": SKYMAP,
                "tract": p.tract,
                "id": p.id,
                "cell_x": p.id % 10,
                "cell_y": p.id // 10,
                "region": p.region,
            }
            for p in every
        ),
    )
    return every


def _register_types(butler: Butler) -> None:
    own = [(k.name, k.dimensions, k.storage_class, k.calibration) for k in KINDS]
    raw = ("raw", ("instrument", "exposure", "detector"), "Exposure", False)
    for name, dimensions, storage_class, calibration in (*own, raw):
        butler.registry.registerDatasetType(
            DatasetType(
                name, dimensions, storage_class, universe=butler.dimensions, isCalibration=calibration
            )
        )
    for kind in KINDS:
        butler.collections.register(_run(kind))
    butler.collections.register(f"{INSTRUMENT}/raw/all")
    butler.collections.register(_CERTIFIED, CollectionType.CALIBRATION)


def _register_chains(butler: Butler) -> None:
    runs = {kind.name: _run(kind) for kind in KINDS}
    chains = {
        _CALIB: [_CERTIFIED, runs["camera"]],
        f"{INSTRUMENT}/templates": [runs[TEMPLATE]],
        "refcats": [runs[REFCAT]],
        "pretrained_models": [runs[MODEL]],
        f"{INSTRUMENT}/defaults": [
            _CALIB,
            f"{INSTRUMENT}/templates",
            "skymaps",
            "refcats",
            "pretrained_models",
        ],
    }
    for chain, children in chains.items():
        butler.collections.register(chain, CollectionType.CHAINED)
        butler.collections.redefine_chain(chain, children)


def _run(kind: Kind, epoch: int | None = None) -> str:
    run = f"{_CALIB}/{kind.run}" if kind.calibration else kind.run
    # The campaign before has its runs too, which no chain holds any more.
    return run if epoch is None or epoch == kind.epochs - 1 else f"{run}/before"


def _validity(kind: Kind, epoch: int) -> Timespan:
    if kind.epochs == 1:
        return Timespan(None, None)
    times = [Time(f"{day}T00:00:00", scale="tai") for day in _EPOCHS]
    return Timespan(times[epoch], times[epoch + 1])


def _data_ids(kind: Kind, patches: list[Patch], butler: Butler) -> Iterator[dict[str, Any]]:
    detectors = [d.id for d in focal_plane().detectors]
    if kind.name == TEMPLATE:
        for p in patches:
            for band in _TEMPLATE_BANDS:
                yield {"skymap": SKYMAP, "tract": p.tract, "patch": p.id, "band": band}
    elif kind.name == REFCAT:
        for pixel in _shards(patches, butler):
            yield {"htm7": pixel}
    elif "physical_filter" in kind.dimensions:
        for detector in detectors:
            for name in BANDS.values():
                yield {"instrument": INSTRUMENT, "detector": detector, "physical_filter": name}
    elif "detector" in kind.dimensions:
        for detector in detectors:
            yield {"instrument": INSTRUMENT, "detector": detector}
    else:
        values = {"instrument": INSTRUMENT, "skymap": SKYMAP}
        yield {name: values[name] for name in kind.dimensions}


def _shards(patches: list[Patch], butler: Butler) -> list[int]:
    pixelization = butler.dimensions.skypix_dimensions["htm7"].pixelization
    pixels: set[int] = set()
    for patch in patches:
        circle = Circle(patch.region.getBoundingCircle())
        for begin, end in pixelization.envelope(circle):
            pixels.update(range(begin, end))
    return sorted(pixels)


def _ingest(
    butler: Butler, root: Path, kind: Kind, payload: Path, epoch: int, patches: list[Patch]
) -> list[DatasetRef]:
    dataset_type = butler.get_dataset_type(kind.name)
    run = _run(kind, epoch)
    butler.collections.register(run)
    datasets = []
    bands = {name: band for band, name in BANDS.items()}  # by physical filter
    for values in _data_ids(kind, patches, butler):
        if "physical_filter" in values:
            values = {**values, "band": bands[values["physical_filter"]]}
        data_id = DataCoordinate.standardize(values, dimensions=dataset_type.dimensions)
        path = _link(payload, root / run / kind.name, values)
        ref = DatasetRef(dataset_type, data_id, run=run)
        datasets.append(FileDataset(path=str(path), refs=[ref]))
    butler.ingest(*datasets, transfer=None)
    return [ref for dataset in datasets for ref in dataset.refs]


def _link(payload: Path, folder: Path, data_id: Mapping[str, Any]) -> Path:
    parts = [str(value) for value in data_id.values()]
    path = folder.joinpath(*parts[1:-1], "_".join([folder.name, *parts]) + payload.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(payload, path)
    return path


def _write_payload(folder: Path, kind: Kind) -> Path:
    """Write the file that all datasets of a type are links of, once."""
    path = folder / f"{kind.name}{_EXTENSIONS[kind.storage_class]}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(kind.name))
    size = kind.kilobytes * 1024
    if kind.storage_class == "NumpyArray":
        path.write_bytes(pickle.dumps(rng.integers(0, 65536, size // 2, dtype=np.uint16), protocol=-1))
    elif kind.storage_class == "ArrowAstropy":
        from lsst.daf.butler.formatters.parquet import astropy_to_arrow
        from pyarrow import parquet

        rows = max(1, (size - 2500) // 24)
        table = Table({name: rng.normal(size=rows) for name in ("a", "b", "c")})
        parquet.write_table(astropy_to_arrow(table), path)
    else:
        entries = {f"key{i:04d}": float(v) for i, v in enumerate(rng.normal(size=size // 32))}
        path.write_text(yaml.safe_dump({"name": kind.name, "values": entries}))
    return path


def main() -> None:
    """Build the SQLite repo, to look at or to profile with."""
    parser = argparse.ArgumentParser(description="Build the benchmark's central repo on SQLite.")
    parser.add_argument("folder", type=Path, help="folder to make; the repo is FOLDER/sqlite")
    folder = parser.parse_args().folder.resolve()
    repo = build_central(folder / "sqlite", folder / "payloads")
    print(f"{repo.uri}: {repo.datasets} datasets in {repo.seconds:.1f} s")


if __name__ == "__main__":
    main()
