"""A child's repo: a clone that shares the inputs and keeps to itself what it writes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import lsst.daf.butler
import pytest
from lsst.daf.butler import Butler, Config, DataCoordinate, DatasetRef, DimensionConfig, FileDataset
from repo_support import (
    DEFAULTS,
    INSTRUMENT,
    clone,
    dataset_files,
    ids_of,
    make_grid_repo,
    open_cache,
    put,
)

from ppd.cache.repo import CacheRepo
from ppd.cache.stores import site_formatters
from ppd.messages import CacheView
from ppd.workers.local_repo import clone_repo, remove_repo

NONE: frozenset[uuid.UUID] = frozenset()
SIZE = 4000


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Butler]:
    root = tmp_path_factory.mktemp("grid")
    make_grid_repo(root)
    with Butler.from_config(str(root), writeable=True) as butler:
        yield butler


@pytest.fixture(scope="module")
def template(central: Butler) -> DatasetRef:
    return put(central, "template", "templates", SIZE, tract=0, patch=3, band="r")


@pytest.fixture
def cache(tmp_path: Path, central: Butler, template: DatasetRef) -> Iterator[CacheRepo]:
    (tmp_path / "place").mkdir()
    cache = open_cache(tmp_path / "place", central)
    for element in ("instrument", "detector"):
        cache.insert_records({element: central.query_dimension_records(element, instrument=INSTRUMENT)})
    cache.register_dataset_types([central.get_dataset_type("model"), central.get_dataset_type("limits")])
    cache.register_runs(["out"])
    cache.fetch(central, [template], NONE)
    yield cache
    cache.close()


def test_inputs_are_read_in_place(cache: CacheRepo, template: DatasetRef, tmp_path: Path) -> None:
    shared = dataset_files(cache.root)
    assert len(shared) == 1
    for name in ("one", "two"):
        with clone(cache, tmp_path / name, name, template) as child:
            assert child.get(template)["fill"] == "x" * SIZE
            assert child.getURI(template).ospath == str(next(iter(shared)))
            assert child.find_dataset("template", template.dataId, collections=DEFAULTS) == template
        assert not dataset_files(tmp_path / name)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["butler.yaml", "gen3.sqlite3", "local"]


def test_outputs_are_apart(cache: CacheRepo, template: DatasetRef, tmp_path: Path) -> None:
    """Of two children, and of the cache, none sees what another has put."""
    shared = dataset_files(cache.root)
    data_id = {"instrument": INSTRUMENT, "detector": 4}
    with (
        clone(cache, tmp_path / "one", "one", template) as one,
        clone(cache, tmp_path / "two", "two", template) as two,
    ):
        written = [child.put({"by": child is one}, "limits", data_id, run="out") for child in (one, two)]
        for child, ref, folder in zip((one, two), written, ("one", "two"), strict=True):
            assert child.get("limits", data_id, collections="out") == {"by": child is one}
            assert dataset_files(tmp_path / folder) == {Path(child.getURI(ref).ospath)}
        assert two.get_dataset(written[0].id) is None
    assert dataset_files(cache.root) == shared
    assert cache.butler.query_datasets("limits", collections="out", explain=False) == []


@pytest.mark.parametrize("way", ["put", "ingest", "transfer"])
def test_nothing_is_written_into_the_shared_store(
    cache: CacheRepo, central: Butler, tmp_path: Path, way: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset_files(cache.place)}
    source = tmp_path / "model.yaml"
    source.write_text("a: 1")
    with clone(cache, tmp_path / "child", "child") as child:
        if way == "put":
            ref = put(child, "model", "out")
        elif way == "ingest":
            data_id = DataCoordinate.make_empty(child.dimensions)
            ref = DatasetRef(child.get_dataset_type("model"), data_id, run="out")
            child.ingest(FileDataset(path=str(source), refs=[ref]), transfer="copy")
        else:
            ref = put(central, "model", f"models/{way}")
            child.transfer_from(central, [ref], transfer="copy")
        assert Path(child.getURI(ref).ospath).is_relative_to(tmp_path / "child")
    assert {path: path.stat().st_mtime_ns for path in dataset_files(cache.place)} == before


def test_removing_a_child_spares_the_inputs(cache: CacheRepo, template: DatasetRef, tmp_path: Path) -> None:
    with clone(cache, tmp_path / "child", "child", template) as child:
        put(child, "model", "out")
    remove_repo(tmp_path / "child")
    remove_repo(tmp_path / "child")
    assert not (tmp_path / "child").exists()
    assert cache.butler.get(template)["fill"] == "x" * SIZE


def test_folder_may_not_exist(cache: CacheRepo, tmp_path: Path) -> None:
    """What another attempt has left is no clone."""
    (tmp_path / "child").mkdir()
    with pytest.raises(FileExistsError):
        clone(cache, tmp_path / "child", "child")


def test_snapshot_that_is_gone(cache: CacheRepo, tmp_path: Path) -> None:
    view = CacheView(snapshot=str(tmp_path / "none"), config=str(cache.child_config), collections=())
    with pytest.raises(FileNotFoundError):
        clone_repo(tmp_path / "child", view)
    remove_repo(tmp_path / "child")


def test_universe_is_the_central_one(tmp_path: Path) -> None:
    """Also where central's is older than the middleware's default, as at Rubin."""
    config = Path(lsst.daf.butler.__file__).parent / "configs/old_dimensions/daf_butler_universe6.yaml"
    root = Butler.makeRepo(str(tmp_path / "old"), dimensionConfig=DimensionConfig(str(config)))
    (tmp_path / "place").mkdir()
    with Butler.from_config(root, writeable=False) as old:
        assert old.dimensions.version == 6
        cache = CacheRepo(tmp_path / "place", old, 1)
        snapshot = cache.lease("child", ())
        view = CacheView(snapshot=str(snapshot), config=str(cache.child_config), collections=())
        with clone_repo(tmp_path / "child", view) as child:
            assert child.dimensions == cache.butler.dimensions == old.dimensions
        cache.close()


def test_site_formatters_reach_the_child(tmp_path: Path) -> None:
    """A child writes as central would: here a type that the site wants as JSON."""
    config = Config()
    config["datastore", "formatters"] = {"model": "lsst.daf.butler.formatters.json.JsonFormatter"}
    make_grid_repo(tmp_path / "central", config)
    (tmp_path / "place").mkdir()
    formatters = site_formatters(str(tmp_path / "central"))
    assert formatters == {"model": "lsst.daf.butler.formatters.json.JsonFormatter"}
    with Butler.from_config(str(tmp_path / "central"), writeable=True) as central:
        cache = CacheRepo(tmp_path / "place", central, 1 << 20, formatters)
        model = put(central, "model", "models")
        cache.fetch(central, [model], NONE)
        cache.register_runs(["out"])
        with clone(cache, tmp_path / "child", "child", model) as child:
            assert child.get(model) == central.get(model)
            assert child.getURI(put(child, "model", "out")).getExtension() == ".json"
        cache.close()


def test_private(cache: CacheRepo, tmp_path: Path) -> None:
    """The files of a clone are those of its owner, whatever the snapshot's mode."""
    with clone(cache, tmp_path / "child", "child"):
        for path in (tmp_path / "child").iterdir():
            assert path.stat().st_uid == os.geteuid()
            assert os.access(path, os.W_OK)


def test_clones_outlive_the_snapshot(cache: CacheRepo, template: DatasetRef, tmp_path: Path) -> None:
    """The snapshot may go once it is cloned; the lease keeps the files."""
    snapshot = cache.lease("child", ids_of(template))
    view = CacheView(snapshot=str(snapshot), config=str(cache.child_config), collections=())
    with clone_repo(tmp_path / "child", view) as child:
        shutil.rmtree(cache.place / "snapshots")
        assert child.get(template)["fill"] == "x" * SIZE
