"""Repos opened by template: as good as those opened the public way, and the public way if not."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lsst.daf.butler import Butler, DatasetRef, DatasetType
from repo_support import INSTRUMENT, ids_of, make_grid_repo, open_cache, put

import ppd.workers.quick_open
from ppd.cache.repo import CacheRepo
from ppd.messages import CacheView
from ppd.workers.local_repo import clone_repo
from ppd.workers.quick_open import Template


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Butler]:
    make_grid_repo(tmp_path / "central")
    with Butler.from_config(str(tmp_path / "central"), writeable=True) as butler:
        yield butler


@pytest.fixture
def cache(tmp_path: Path, central: Butler) -> Iterator[CacheRepo]:
    (tmp_path / "place").mkdir()
    cache = open_cache(tmp_path / "place", central)
    records = {
        "instrument": central.query_dimension_records("instrument"),
        "detector": central.query_dimension_records("detector", instrument=INSTRUMENT),
    }
    cache.insert_records(records)
    yield cache
    cache.close()


def _view(cache: CacheRepo, *refs: DatasetRef) -> CacheView:
    snapshot = cache.lease("child", ids_of(*refs))
    return CacheView(snapshot=str(snapshot), config=str(cache.child_config), collections=())


@pytest.fixture
def template(tmp_path: Path, cache: CacheRepo) -> Template:
    """Made before the cache has any dataset, and its files are gone, as in the nursery."""
    folder = tmp_path / "template"
    template = Template(clone_repo(folder, _view(cache)), folder)
    shutil.rmtree(folder)
    return template


def _cached(cache: CacheRepo, central: Butler) -> DatasetRef:
    ref = put(central, "limits", "models", 500, detector=4)
    cache.fetch(central, [ref], frozenset())
    cache.register_runs(["out"])
    return ref


def test_as_the_public_way(cache: CacheRepo, central: Butler, template: Template, tmp_path: Path) -> None:
    """What has come into the cache since the template was made is there too."""
    ref = _cached(cache, central)
    cache.register_dataset_types(
        [DatasetType("late", ("instrument", "detector"), "StructuredDataDict", universe=central.dimensions)]
    )
    with (
        clone_repo(tmp_path / "quick", _view(cache, ref), template) as quick,
        clone_repo(tmp_path / "slow", _view(cache, ref)) as slow,
    ):
        for butler in (quick, slow):
            assert butler.get(ref) == central.get(ref)
            assert butler.get("limits", instrument=INSTRUMENT, detector=4, collections="models")
        names = [sorted(t.name for t in b.registry.queryDatasetTypes()) for b in (quick, slow)]
        assert names[0] == names[1] and "late" in names[0]
        assert set(quick.collections.query("*")) == set(slow.collections.query("*"))
        roots = [
            {n: str(r).replace("quick", "slow") for n, r in b.get_datastore_roots().items()}
            for b in (quick, slow)
        ]
        assert roots[0] == roots[1]


def test_clones_are_apart(cache: CacheRepo, central: Butler, template: Template, tmp_path: Path) -> None:
    """What one writes is in its own folder, and no other has it: the second is opened the slow way."""
    ref = _cached(cache, central)
    folders = [tmp_path / "a", tmp_path / "b"]
    butlers = [clone_repo(folder, _view(cache, ref), template) for folder in folders]
    data_id = {"instrument": INSTRUMENT, "detector": 5}
    for number, butler in enumerate(butlers):
        butler.put({"of": number}, "limits", data_id, run="out")
    for number, (butler, folder) in enumerate(zip(butlers, folders, strict=True)):
        found = butler.find_dataset("limits", data_id, collections="out")
        assert found is not None and butler.get(found) == {"of": number}
        assert Path(butler.getURI(found).ospath).is_relative_to(folder / "local")
        # Another process sees it as well.
        with Butler.from_config(str(folder), writeable=False) as public:
            assert public.get(found) == {"of": number}
        butler.close()


@pytest.mark.parametrize("fault", ["nothing is pointed", "only the files", "an attribute is gone"])
def test_where_the_middleware_is_another(
    cache: CacheRepo,
    central: Butler,
    template: Template,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever part of the quick way does not work, the repo is opened the public way."""
    original = ppd.workers.quick_open._point_at

    def point_at(butler: Butler, old: Path, new: Path) -> None:
        if fault == "an attribute is gone":
            raise AttributeError("'SqlRegistry' object has no attribute '_db'")
        if fault == "only the files":
            stores = [(store, store.root, store.locationFactory) for store in butler._datastore.datastores]
            original(butler, old, new)
            for store, root, factory in stores:
                store.root, store.locationFactory = root, factory

    monkeypatch.setattr(ppd.workers.quick_open, "_point_at", point_at)
    ref = _cached(cache, central)
    with (
        caplog.at_level(logging.ERROR),
        clone_repo(tmp_path / "child", _view(cache, ref), template) as butler,
    ):
        assert "opened the slow way" in caplog.text
        put_ref = butler.put({}, "limits", instrument=INSTRUMENT, detector=5, run="out")
        assert Path(butler.getURI(put_ref).ospath).is_relative_to(tmp_path / "child")
        assert butler.get(ref) == central.get(ref)
    assert not (tmp_path / "template").exists()
