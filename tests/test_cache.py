"""The cache repo: one copy of each input, held while it is leased, cloned without copying."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, DatasetRef, Timespan
from lsst.resources import ResourcePath
from lsst.resources.file import FileResourcePath
from repo_support import (
    CALIB,
    DEFAULTS,
    INSTRUMENT,
    NEW,
    OLD,
    certify,
    clone,
    dataset_files,
    fill,
    ids_of,
    make_grid_repo,
    needs_root,
    open_cache,
    put,
    small_tmpfs,
    span,
)

from ppd.cache.repo import CacheRepo
from ppd.errors import PpdError, SharedMemoryError

NONE: frozenset[uuid.UUID] = frozenset()
SIZE = 4000


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    make_grid_repo(root)
    return root


@pytest.fixture
def central(tmp_path: Path, blank: Path) -> Iterator[Butler]:
    shutil.copytree(blank, tmp_path / "central")
    with Butler.from_config(str(tmp_path / "central"), writeable=True) as butler:
        yield butler


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def cache(place: Path, central: Butler) -> Iterator[CacheRepo]:
    cache = open_cache(place, central)
    yield cache
    cache.close()


def _models(central: Butler, count: int, size: int = SIZE) -> list[DatasetRef]:
    return [put(central, "model", f"models/{i}", size) for i in range(count)]


def test_fetched_once(cache: CacheRepo, central: Butler) -> None:
    a, b = _models(central, 2)
    assert cache.fetch(central, [a, a], NONE).count == 1
    inode = next(iter(dataset_files(cache.root))).stat().st_ino
    assert cache.fetch(central, [a], NONE).count == 0
    assert cache.fetch(central, [a, b, a], NONE).count == 1
    assert cache.fetch(central, [b, a], ids_of(a)).count == 0
    assert len(dataset_files(cache.root)) == 2
    assert inode in {path.stat().st_ino for path in dataset_files(cache.root)}
    statistics = cache.statistics()
    assert (statistics.datasets, statistics.evicted, statistics.leases) == (2, 0, 0)
    assert (
        statistics.bytes_held
        == statistics.bytes_fetched
        == sum(p.stat().st_size for p in dataset_files(cache.root))
    )


def test_least_recently_used_goes_first(place: Path, central: Butler) -> None:
    a, b, c, d = _models(central, 4)
    cache = open_cache(place, central, max_bytes=int(3.5 * SIZE))
    cache.fetch(central, [a], NONE)
    cache.fetch(central, [b], NONE)
    cache.fetch(central, [c], NONE)
    cache.fetch(central, [a], NONE)
    cache.fetch(central, [d], NONE)
    assert _held(cache, a, b, c, d) == [True, False, True, True]
    assert cache.fetch(central, [b], NONE).count == 1
    assert _held(cache, a, b, c, d) == [True, True, False, True]
    assert cache.statistics().evicted == 2
    cache.close()


def _held(cache: CacheRepo, *refs: DatasetRef) -> list[bool]:
    """Whether datasets are in the cache: registry, datastore and file alike."""
    held = []
    for ref in refs:
        found = cache.butler.get_dataset(ref.id) is not None
        assert found == cache.butler.stored(ref)
        held.append(found)
    assert sum(held) <= len(dataset_files(cache.root)) == cache.statistics().datasets
    return held


def test_lasting_goes_last(place: Path, central: Butler) -> None:
    a, b, c, d = _models(central, 4)
    cache = open_cache(place, central, max_bytes=int(2.5 * SIZE))
    cache.fetch(central, [a], ids_of(a))
    cache.fetch(central, [b], NONE)
    cache.fetch(central, [c], NONE)
    assert _held(cache, a, b, c) == [True, False, True]
    cache.fetch(central, [c], ids_of(c))  # from now on it lasts too
    cache.fetch(central, [d], ids_of(d))
    assert _held(cache, a, c, d) == [False, True, True]
    cache.close()


def test_leased_is_not_evicted(place: Path, central: Butler) -> None:
    a, b, c = _models(central, 3)
    cache = open_cache(place, central, max_bytes=int(1.5 * SIZE))
    cache.fetch(central, [a], NONE)
    cache.lease("child", ids_of(a))
    cache.fetch(central, [b], NONE)
    assert _held(cache, a, b) == [True, True]  # b is asked for, a is leased
    cache.fetch(central, [c], NONE)
    assert _held(cache, a, b, c) == [True, False, True]
    cache.release("child")
    cache.release("nobody")
    cache.fetch(central, [b], NONE)
    assert _held(cache, a, b, c) == [False, True, False]
    cache.close()


def test_what_is_asked_for_is_not_evicted(place: Path, central: Butler) -> None:
    """All that one call asks for is there after it, held before or not."""
    a, b, c = _models(central, 3)
    cache = open_cache(place, central, max_bytes=int(1.5 * SIZE))
    cache.fetch(central, [a], NONE)
    cache.fetch(central, [b, a, c], NONE)
    assert _held(cache, a, b, c) == [True, True, True]
    cache.close()


def test_snapshot_is_immutable_while_leased(cache: CacheRepo, central: Butler) -> None:
    a, b = _models(central, 2)
    cache.fetch(central, [a], NONE)
    first = cache.lease("first", ids_of(a))
    assert cache.lease("again", ids_of(a)) == first  # nothing has changed
    content = first.read_bytes()
    cache.fetch(central, [b], NONE)
    second = cache.lease("second", ids_of(a, b))
    assert second != first
    assert first.read_bytes() == content
    assert (_rows(first), _rows(second)) == (1, 2)
    cache.release("first")
    assert first.exists()
    cache.release("again")
    assert not first.exists()
    cache.release("second")
    assert cache.lease("third", ids_of(b)) == second
    assert list((cache.place / "snapshots").iterdir()) == [second]


def _rows(snapshot: Path) -> int:
    with sqlite3.connect(f"file:{snapshot}?mode=ro", uri=True) as db:
        return int(db.execute("SELECT COUNT(*) FROM dataset").fetchone()[0])


def test_certified(cache: CacheRepo, central: Butler, tmp_path: Path) -> None:
    early, late = (put(central, "bias", f"bias/{i}", detector=4) for i in range(2))
    cache.fetch(central, [early, late], NONE)
    cache.certify([(NEW, early, span(60000, 60010))])
    cache.certify([(NEW, late, span(60010, None))])
    first = cache.lease("a", ids_of(early))
    cache.certify([(NEW, early, span(60000, 60010))])
    assert cache.lease("a", ids_of(early)) == first  # nothing new
    with clone(cache, tmp_path / "child", "child", early, late) as child:
        for time, expected in ((60000, early), (60009.999, early), (60010, late), (70000, late)):
            assert _bias_at(child, time) == expected
        assert _bias_at(child, 59999.999) is None


def _bias_at(butler: Butler, mjd: float, detector: int = 4) -> DatasetRef | None:
    return butler.find_dataset(
        "bias",
        instrument=INSTRUMENT,
        detector=detector,
        collections=DEFAULTS,
        timespan=Timespan.fromInstant(span(mjd, None).begin),
    )


def test_certified_differently_since(cache: CacheRepo, central: Butler) -> None:
    """Central cuts a validity range, gives the rest to another, and takes it back."""
    a, b, elsewhere = (put(central, "bias", f"bias/{i}", detector=4) for i in range(3))
    neighbour = put(central, "bias", "bias/0", detector=5)
    cache.fetch(central, [a, b, elsewhere, neighbour], NONE)
    cache.certify([(NEW, a, span(60000, None))])
    cache.certify([(NEW, neighbour, span(60000, None))])
    cache.certify([(NEW, a, span(60000, 60005))])
    assert _bias_at(cache.butler, 60004) == a
    assert _bias_at(cache.butler, 60006) is None
    cache.certify([(NEW, b, span(60003, None))])
    assert _bias_at(cache.butler, 60004) == b
    assert _bias_at(cache.butler, 60001) is None  # only what holds now, when it is asked for
    cache.certify([(NEW, a, span(60000, 60003))])
    assert (_bias_at(cache.butler, 60001), _bias_at(cache.butler, 60004)) == (a, b)
    cache.certify([(NEW, a, span(59000, 59001))])
    assert _bias_at(cache.butler, 60001) is None
    # No longer certified in the collection that is searched first.
    cache.certify([(OLD, elsewhere, span(60000, None))])
    assert _bias_at(cache.butler, 60004) == elsewhere
    assert _bias_at(cache.butler, 60001, detector=5) == neighbour


def test_evicted_calib_is_certified_no_more(place: Path, central: Butler) -> None:
    cache = open_cache(place, central, max_bytes=int(1.5 * SIZE))
    a, b = (put(central, "bias", f"bias/{i}", SIZE, detector=4) for i in range(2))
    certify(central, a, 60000, None)
    for ref in (a, b, a):
        cache.fetch(central, [ref], NONE)
        cache.certify([(NEW, ref, span(60000, None))])
        assert _bias_at(cache.butler, 60001) == ref
    assert cache.statistics().evicted == 2
    cache.close()


@pytest.mark.parametrize("gone", ["file", "record"])
def test_file_that_is_gone(cache: CacheRepo, central: Butler, tmp_path: Path, gone: str) -> None:
    """The file, or what central's datastore knows of it: it alone fails, and nothing is left of it."""
    good, bad, more, *_ = refs = _models(central, 8)
    if gone == "file":
        Path(central.getURI(bad).ospath).unlink()
    else:
        central.pruneDatasets([bad], unstore=True, disassociate=False)
    fetched = cache.fetch(central, refs, NONE)
    assert list(fetched.failed) == [bad.id]
    assert "its file is gone" in fetched.failed[bad.id].reason and not fetched.failed[bad.id].retry
    assert fetched.count == len(refs) - 1
    assert _held(cache, good, bad) == [True, False]
    assert cache.statistics().datasets == len(refs) - 1
    with clone(cache, tmp_path / "child", "child", good, more) as child:
        assert child.get(good)["fill"] == "x" * SIZE
        assert child.get_dataset(bad.id) is None


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1000])
def test_file_of_another_size(cache: CacheRepo, central: Butler, tmp_path: Path, size: int) -> None:
    """Cut short or written to since: never given to a child."""
    good, bad = _models(central, 2)
    path = Path(central.getURI(bad).ospath)
    recorded = path.stat().st_size
    os.truncate(path, size)
    fetched = cache.fetch(central, [good, bad], NONE)
    assert fetched.failed[bad.id].reason.endswith(f"has {size} bytes, its record says {recorded}")
    assert (fetched.count, _held(cache, good, bad)) == (1, [True, False])
    with clone(cache, tmp_path / "child", "child", good) as child:
        assert child.get_dataset(bad.id) is None


def test_file_that_may_not_be_read(
    cache: CacheRepo, central: Butler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system: another try may help, and does."""
    good, bad = _models(central, 2)
    original = FileResourcePath.transfer_from

    def transfer_from(self: FileResourcePath, src: ResourcePath, *args: Any, **kwargs: Any) -> None:
        original(self, src, *args, **kwargs)
        if src == central.getURI(bad):
            # Half-way: there is something at the target.
            os.truncate(self.ospath, 10)
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(FileResourcePath, "transfer_from", transfer_from)
        fetched = cache.fetch(central, [good, bad], NONE)
    assert fetched.failed[bad.id].retry and "can't be read" in fetched.failed[bad.id].reason
    assert len(dataset_files(cache.root)) == 1
    assert cache.fetch(central, [good, bad], NONE).count == 1


def _small(place: Path, central: Butler, megabytes: int) -> CacheRepo:
    return open_cache(place, central, max_bytes=megabytes << 24)  # far more than there is


@needs_root
def test_full_file_system(tmp_path: Path, central: Butler) -> None:
    """No half file, nothing counted, and it works again when there is room."""
    big, small = put(central, "model", "models/big", 3 << 20), put(central, "model", "models/small", SIZE)
    with small_tmpfs(tmp_path / "place", "size=8M") as place:
        cache = _small(place, central, 8)
        ballast = fill(place, leave=1 << 20)
        with pytest.raises(SharedMemoryError, match=f"file system is full: {place}"):
            cache.fetch(central, [small, big], NONE)
        assert _held(cache, small, big) == [False, False]
        assert not dataset_files(cache.root)
        assert (cache.statistics().bytes_held, cache.statistics().bytes_fetched) == (0, 0)
        ballast.unlink()
        assert cache.fetch(central, [small, big], NONE).count == 2
        with clone(cache, tmp_path / "child", "child", big) as child:
            assert len(child.get(big)["fill"]) == 3 << 20
        cache.close()


@needs_root
def test_full_file_system_with_something_to_evict(tmp_path: Path, central: Butler) -> None:
    """Less room than the limit says: what is not leased goes, what is asked for stays."""
    refs = _models(central, 4, 1 << 20)
    with small_tmpfs(tmp_path / "place", "size=6M") as place:
        cache = _small(place, central, 6)
        cache.fetch(central, refs[:1], NONE)
        cache.fetch(central, refs[1:2], NONE)
        cache.lease("child", ids_of(refs[1]))
        cache.fetch(central, refs[2:3], NONE)
        ballast = fill(place, leave=1 << 19)
        assert cache.fetch(central, refs[2:], NONE).count == 1
        assert _held(cache, *refs) == [False, True, True, True]
        with pytest.raises(SharedMemoryError):
            cache.fetch(central, [*refs[2:], refs[0]], NONE)
        assert _held(cache, *refs) == [False, True, True, True]
        ballast.unlink()
        cache.close()


@needs_root
def test_no_room_for_a_snapshot(tmp_path: Path, central: Butler) -> None:
    (model,) = _models(central, 1)
    with small_tmpfs(tmp_path / "place", "size=8M") as place:
        cache = _small(place, central, 8)
        cache.fetch(central, [model], NONE)
        ballast = fill(place, leave=1 << 16)
        with pytest.raises(SharedMemoryError):
            cache.lease("child", ids_of(model))
        assert cache.statistics().leases == 0
        assert not list((place / "snapshots").iterdir())
        ballast.unlink()
        assert _rows(cache.lease("child", ids_of(model))) == 1
        cache.close()


def test_chains_follow_central(cache: CacheRepo, central: Butler) -> None:
    def children(name: str) -> tuple[str, ...]:
        return cache.butler.collections.get_info(name).children

    assert children(DEFAULTS) == (CALIB, "templates", "refcats", "skymaps", "models")
    before = cache.lease("a", ())
    cache.mirror_collections({CALIB: (NEW, OLD)}, (NEW, OLD))
    assert cache.lease("b", ()) == before
    cache.mirror_collections(
        {CALIB: (f"{CALIB}/newest", NEW), DEFAULTS: (CALIB, "extra")}, (f"{CALIB}/newest",)
    )
    assert children(DEFAULTS) == (CALIB, "extra")
    assert children(CALIB) == (f"{CALIB}/newest", NEW)
    assert cache.lease("c", ()) != before


def test_folder_of_the_cache_is_private(cache: CacheRepo) -> None:
    assert cache.child_config.stat().st_mode & 0o777 == 0o600
    assert os.stat(cache.place).st_mode & 0o777 == 0o700  # noqa: PTH116


def test_pinned(place: Path, central: Butler) -> None:
    """It stays when all else has gone, up to half of the cache; what nobody holds can be dropped."""
    cache = open_cache(place, central, max_bytes=6 * SIZE)
    limits = [put(central, "limits", "limits", detector=d, size=SIZE // 2) for d in range(3)]
    models = _models(central, 4, SIZE // 2)
    cache.fetch(central, [*limits, *models], NONE)
    with pytest.raises(PpdError, match="No pipeline has a dataset type 'nothing'"):
        cache.pin(["limits", "nothing"])
    assert not any(t.pinned for t in cache.by_type())
    cache.pin(["limits"])
    cache.lease("child", ids_of(models[0]))
    cache._evict(0, keep=())
    assert _held(cache, *limits, *models) == [True] * 3 + [True] + [False] * 3
    (first, second) = cache.by_type()
    assert (first.name, first.datasets, first.leased, first.pinned) == ("limits", 3, 0, True)
    assert (second.name, second.datasets, second.leased, second.pinned) == ("model", 1, 1, False)
    assert cache.evict({"model"}) == (0, 0)
    cache.release("child")
    assert cache.evict({"model"}) == (1, second.bytes)
    # More than its share of it: the oldest goes, as if it were not pinned.
    more = [put(central, "limits", "limits", detector=d, size=SIZE) for d in range(3, 6)]
    cache.fetch(central, more, NONE)
    cache._evict(0, keep=ids_of(*more))
    assert _held(cache, *limits, *more)[-3:] == [True] * 3
    assert not all(_held(cache, *limits))
    assert cache.unpin("limits") and not cache.unpin("limits")
    cache.close()


def test_too_much_to_be_pinned(place: Path, central: Butler) -> None:
    cache = open_cache(place, central, max_bytes=5 * SIZE)
    cache.fetch(central, _models(central, 3), NONE)
    with pytest.raises(PpdError, match="half of cache_bytes"):
        cache.pin(["model"])
    cache.close()
