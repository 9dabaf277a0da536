"""Hand-overs: all or nothing, complete, without moving bytes, and never at the cost of the outputs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import (
    Butler,
    DatasetRef,
    DatasetType,
    FileDataset,
)
from repo_support import (
    DEMOCAM,
    fill,
    make_demo_repo,
    needs_root,
    small_tmpfs,
    take_hand_over,
    write_demo_raw,
)

from ppd.demo.democam import describe
from ppd.messages import DetectorKey
from ppd.supervisor.spool import CorruptHandOverError, read_manifest, verify
from ppd.workers import handover as handover_module
from ppd.workers.handover import HandOver, find_outputs, hand_over
from ppd.workers.ingest import ingest_raw, load_translators, read_raw
from ppd.workers.visits import define_visits

GROUP = "2026-11-25T04:47:59.000"
KEY = DetectorKey(instrument=DEMOCAM, group=GROUP, detector=4, attempt=2)
ENTRY = KEY.file_name
RUNS = ("out/NoPipeline", "out/ApPipe")
# Name, dimensions, run, and whether it is to be exported.
TYPES = (
    ("regionTimeInfo", ("instrument", "group", "detector"), RUNS[0], True),
    ("isr_image", ("instrument", "exposure", "detector"), RUNS[1], True),
    ("difference", ("instrument", "visit", "detector"), RUNS[1], True),
    ("isr_log", ("instrument", "exposure", "detector"), RUNS[1], True),
    ("visit_table", ("instrument", "visit"), RUNS[1], False),
    ("task_config", (), RUNS[1], False),
)
EXPORTED = sorted(name for name, _, _, export in TYPES if export)
SIZE = 40_000
MANIFEST = {"manifest.json", "manifest.sum"}


def _register(butler: Butler) -> None:
    for name, dimensions, run, _ in TYPES:
        butler.registry.registerDatasetType(
            DatasetType(name, dimensions, "StructuredDataDict", universe=butler.dimensions)
        )
        butler.collections.register(run)


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A child's repo at the end of a pipeline, its visit defined from a real raw."""
    root = tmp_path_factory.mktemp("processed")
    load_translators()
    make_demo_repo(root / "empty")
    shutil.copytree(root / "empty", root / "child")
    raw = read_raw(write_demo_raw(root), DEMOCAM, GROUP, 4)
    with Butler.from_config(str(root / "child"), writeable=True) as butler:
        _register(butler)
        ingest_raw(butler, raw, f"{DEMOCAM}/raw/all", describe())
        (visit,) = define_visits(butler, [raw], describe())
        values = {"instrument": DEMOCAM, "group": GROUP, "detector": 4, "exposure": visit, "visit": visit}
        for name, dimensions, run, _ in TYPES:
            data_id = {k: values[k] for k in dimensions}
            butler.put({"of": name, "fill": "x" * SIZE}, name, data_id, run=run)
    return root


@pytest.fixture
def child(tmp_path: Path, processed: Path) -> Iterator[Butler]:
    shutil.copytree(processed / "child", tmp_path / "child")
    with Butler.from_config(str(tmp_path / "child"), writeable=True) as butler:
        yield butler


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return _spool(tmp_path / "spool")


def _spool(folder: Path) -> Path:
    for name in ("building", "ready"):
        (folder / name).mkdir(parents=True)
    return folder


def _outputs(butler: Butler) -> list[DatasetRef]:
    return find_outputs(butler, RUNS, [".*"])


def _path(butler: Butler, ref: DatasetRef) -> Path:
    return Path(butler.getURI(ref, predict=True).ospath)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _manifest(spool: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((spool / "ready" / ENTRY / "manifest.json").read_text())
    return manifest


def _untouched(butler: Butler, spool: Path) -> None:
    """Nothing of the entry is in the spool and every output is still the child's."""
    assert _names(spool / "ready") == []
    assert _names(spool / "building") == []
    for ref in _outputs(butler):
        assert butler.get(ref) == {"of": ref.datasetType.name, "fill": "x" * SIZE}


def _complete(spool: Path, done: HandOver) -> None:
    assert _names(spool / "ready") == [done.entry] == [ENTRY]
    assert _names(spool / "building") == []
    manifest = _manifest(spool)
    files = {d["path"] for d in manifest["datasets"]}
    assert files == set(_names(spool / "ready" / ENTRY)) - MANIFEST
    sizes = sum((spool / "ready" / ENTRY / name).stat().st_size for name in files)
    assert (done.datasets, done.size) == (len(EXPORTED), sizes)
    assert manifest["bytes"] == sizes > len(EXPORTED) * SIZE


# What is handed over


def test_outputs(child: Butler) -> None:
    """With a detector in their dimensions, of the child's runs, and of a name that is asked for."""

    def names(*patterns: str, runs: tuple[str, ...] = RUNS) -> list[str]:
        return sorted(ref.datasetType.name for ref in find_outputs(child, runs, patterns))

    assert names(".*") == EXPORTED
    assert names(".*", runs=RUNS[:1]) == ["regionTimeInfo"]
    assert names("isr_.*") == ["isr_image", "isr_log"]
    assert names("isr", "image", "diff") == []  # a name must match wholly
    assert names("difference", "diff.*") == ["difference"]
    assert names() == []
    assert names(".*", runs=(*RUNS, *RUNS)) == EXPORTED


def test_entry(child: Butler, spool: Path) -> None:
    refs = _outputs(child)
    done = hand_over(child, refs, spool, KEY)
    _complete(spool, done)
    manifest = _manifest(spool)
    assert manifest["type"] == "pp-output"
    assert DetectorKey.model_validate(manifest["key"]) == KEY
    assert manifest["success"] is True
    assert manifest["runs"] == sorted(RUNS)
    assert sorted(t["name"] for t in manifest["dataset_types"]) == EXPORTED
    elements = [r["definition"] for r in manifest["dimension_records"]]
    assert elements == [
        "day_obs",
        "group",
        "exposure",
        "visit_system",
        "visit",
        "visit_definition",
        "visit_system_membership",
        "visit_detector_region",
    ]


@pytest.mark.parametrize("threads", [True, False])
def test_all_is_synced_before_it_counts(
    child: Butler, spool: Path, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    """Each file and the folder's names; also where no thread can be started."""
    synced: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def refuse(number: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "fsync", note)
    if not threads:
        monkeypatch.setattr(handover_module, "ThreadPoolExecutor", refuse)
    hand_over(child, _outputs(child), spool, KEY)
    building = spool / "building" / ENTRY
    *files, last, ready = synced
    assert sorted(files) == sorted(building / name for name in _names(spool / "ready" / ENTRY))
    # Their names after their content, and the rename after both.
    assert (last, ready) == (building, spool / "ready")


def test_a_disk_that_does_not_sync(child: Butler, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = _outputs(child)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            hand_over(child, refs, spool, KEY)
    assert _names(spool / "ready") == _names(spool / "building") == []
    _complete(spool, hand_over(child, refs, spool, KEY))


def test_failure_is_marked(child: Butler, spool: Path) -> None:
    hand_over(child, _outputs(child), spool, KEY, success=False, reason="the sky fell")
    assert _manifest(spool)["success"] is False
    assert _manifest(spool)["reason"] == "the sky fell"


def test_what_was_written_is_told_from_what_was_not(child: Butler, spool: Path) -> None:
    """By checksums, of each file and of the manifest."""
    hand_over(child, _outputs(child), spool, KEY)
    entry = spool / "ready" / ENTRY
    manifest = read_manifest(entry)
    assert len(manifest.checksums) == len(EXPORTED)
    verify(entry, manifest)
    file = entry / sorted(manifest.checksums)[1]
    whole = file.read_bytes()
    # One bit, and the same size.
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(CorruptHandOverError, match=f"{file.name} is not what was written"):
        verify(entry, manifest)
    file.unlink()
    with pytest.raises(CorruptHandOverError, match=f"{file.name} is missing"):
        verify(entry, manifest)
    text = (entry / "manifest.json").read_text()
    (entry / "manifest.json").write_text(text.replace('"attempt": 2', '"attempt": 3'))
    with pytest.raises(CorruptHandOverError, match=r"manifest\.json is not what was written"):
        read_manifest(entry)


def test_no_byte_moves(child: Butler, spool: Path) -> None:
    refs = _outputs(child)
    inodes = {_path(child, ref).stat().st_ino for ref in refs}
    hand_over(child, refs, spool, KEY)
    files = [p for p in (spool / "ready" / ENTRY).iterdir() if p.name not in MANIFEST]
    assert {path.stat().st_ino for path in files} == inodes
    assert all(path.stat().st_nlink == 1 for path in files)
    assert not any(_path(child, ref).exists() for ref in refs)


@pytest.mark.parametrize(
    ("names", "elements"),
    [
        (["regionTimeInfo"], ["group"]),
        (["isr_image"], ["day_obs", "group", "exposure"]),
        (EXPORTED, None),
    ],
)
def test_another_repo_can_take_it(
    processed: Path, child: Butler, spool: Path, tmp_path: Path, names: list[str], elements: list[str] | None
) -> None:
    """One that knows only the instrument, record by record in the order in which they come."""
    refs = [ref for ref in _outputs(child) if ref.datasetType.name in names]
    hand_over(child, refs, spool, KEY)
    manifest = _manifest(spool)
    if elements is not None:
        assert [r["definition"] for r in manifest["dimension_records"]] == elements
    shutil.copytree(processed / "empty", tmp_path / "central")
    with Butler.from_config(str(tmp_path / "central"), writeable=True) as central:
        take_hand_over(central, spool / "ready" / ENTRY, manifest)
        for ref in refs:
            assert central.get(ref) == {"of": ref.datasetType.name, "fill": "x" * SIZE}
        for element in elements or ("exposure", "visit", "visit_detector_region", "visit_definition"):
            theirs, ours = (b.query_dimension_records(element, instrument=DEMOCAM) for b in (central, child))
            assert [r.toDict() for r in theirs] == [r.toDict() for r in ours]


def test_files_of_the_same_name(child: Butler, spool: Path, tmp_path: Path) -> None:
    """Of two runs, and with a name as long as a file's can be."""
    (known,) = [r for r in _outputs(child) if r.datasetType.name == "isr_image"]
    name = "ü" * 125 + ".yaml"
    refs = []
    for run in ("other/a", "other/b"):
        child.collections.register(run)
        path = tmp_path / "child" / run / name
        path.parent.mkdir(parents=True)
        path.write_text(f"run: {run}")
        refs.append(DatasetRef(known.datasetType, known.dataId, run=run))
        child.ingest(FileDataset(path=str(path), refs=refs[-1]), transfer=None)
        assert _path(child, refs[-1]) == path
    hand_over(child, refs, spool, KEY)
    paths = [d["path"] for d in _manifest(spool)["datasets"]]
    assert all(path.endswith("ü.yaml") for path in paths)
    content = {(spool / "ready" / ENTRY / path).read_text() for path in paths}
    assert content == {"run: other/a", "run: other/b"}


def test_leftover_of_the_same_name(child: Butler, spool: Path) -> None:
    """What a killed attempt of the same name was building is no part of this one."""
    (spool / "building" / ENTRY).mkdir()
    (spool / "building" / ENTRY / "0000-old.yaml").write_text("old")
    _complete(spool, hand_over(child, _outputs(child), spool, KEY))


def test_entry_that_is_there_already(child: Butler, spool: Path) -> None:
    """Whoever calls twice is told, and what was handed over first stays as it is."""
    other = spool / "ready" / ENTRY
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    with pytest.raises(OSError, match="not empty"):
        hand_over(child, _outputs(child), spool, KEY)
    assert (other / "manifest.json").read_text() == "{}"
    shutil.rmtree(other)
    _untouched(child, spool)


# All or nothing


def _at_sync(number: int, do: Callable[[], None]) -> Callable[[int], None]:
    """Make an fsync that does something else at its n-th call: it is called after each step."""
    calls = 0
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            do()
        sync(descriptor)

    return fsync


# One for each file, the manifest and its checksum, their folder, and the folder that it is renamed into.
_STEPS = len(EXPORTED) + 4


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("step", range(1, _STEPS + 1))
def test_killed(child: Butler, spool: Path, step: int) -> None:
    """SIGKILL after any step: all of the entry is visible or none, and the outputs are somewhere."""
    child.close()
    pid = os.fork()
    if pid == 0:
        try:
            os.fsync = _at_sync(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            repo = Path(spool).with_name("child")
            with Butler.from_config(str(repo), writeable=True) as butler:
                hand_over(butler, _outputs(butler), spool, KEY)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    with Butler.from_config(str(spool.with_name("child")), writeable=True) as butler:
        if step < _STEPS:
            assert _names(spool / "ready") == []
            # Whoever comes next in that repo can hand over all of it.
            _complete(spool, hand_over(butler, _outputs(butler), spool, KEY))
        else:
            manifest = _manifest(spool)
            assert len(manifest["datasets"]) == len(EXPORTED)
            for dataset in manifest["datasets"]:
                assert (spool / "ready" / ENTRY / dataset["path"]).stat().st_size > SIZE


@pytest.mark.parametrize("step", range(1, _STEPS))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_interrupted(
    child: Butler, spool: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException
) -> None:
    """A signal's exception, or a disk's, at any step before the rename: nothing has happened."""

    def fail() -> None:
        raise error

    refs = _outputs(child)
    monkeypatch.setattr(os, "fsync", _at_sync(step, fail))
    with pytest.raises(type(error)):
        hand_over(child, refs, spool, KEY)
    monkeypatch.undo()
    _untouched(child, spool)
    _complete(spool, hand_over(child, refs, spool, KEY))


def test_error_after_the_rename(
    child: Butler, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is handed over then; to say otherwise would export it twice."""

    def fail() -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", _at_sync(_STEPS, fail))
    _complete(spool, hand_over(child, _outputs(child), spool, KEY))
    assert "power failure" in caplog.text


# Other file systems, and full ones


@needs_root
def test_copied_to_another_file_system(child: Butler, tmp_path: Path) -> None:
    refs = _outputs(child)
    content = {_path(child, ref).read_bytes() for ref in refs}
    with small_tmpfs(tmp_path / "other", "size=8M") as folder:
        spool = _spool(folder)
        _complete(spool, hand_over(child, refs, spool, KEY))
        copies = [p for p in (spool / "ready" / ENTRY).iterdir() if p.name not in MANIFEST]
        assert {path.read_bytes() for path in copies} == content
        assert not any(_path(child, ref).exists() for ref in refs)


@needs_root
@pytest.mark.parametrize("room", [4 << 10, 60 << 10, 130 << 10])
def test_full_spool_on_another_file_system(child: Butler, tmp_path: Path, room: int) -> None:
    """Full at the first file, the second or the last."""
    refs = _outputs(child)
    with small_tmpfs(tmp_path / "other", "size=4M") as folder:
        spool = _spool(folder)
        ballast = fill(folder, leave=room)
        with pytest.raises(OSError) as e:
            hand_over(child, refs, spool, KEY)
        assert e.value.errno == errno.ENOSPC
        _untouched(child, spool)
        ballast.unlink()
        _complete(spool, hand_over(child, refs, spool, KEY))


@needs_root
def test_full_spool_on_the_same_file_system(processed: Path, tmp_path: Path) -> None:
    """The files can be linked; it is the manifest that has no room."""
    with small_tmpfs(tmp_path / "both", "size=16M") as folder:
        spool = _spool(folder / "spool")
        shutil.copytree(processed / "child", folder / "child")
        with Butler.from_config(str(folder / "child"), writeable=True) as child:
            refs = _outputs(child)
            ballast = fill(folder)
            with pytest.raises(OSError) as e:
                hand_over(child, refs, spool, KEY)
            assert e.value.errno == errno.ENOSPC
            _untouched(child, spool)
            ballast.unlink()
            _complete(spool, hand_over(child, refs, spool, KEY))


def test_spool_that_can_not_be_written(child: Butler, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        hand_over(child, _outputs(child), tmp_path / "file", KEY)
    assert all(child.stored(ref) for ref in _outputs(child))


def test_output_whose_file_is_gone(child: Butler, spool: Path) -> None:
    """Then nothing is handed over, and the others are still there."""
    refs = _outputs(child)
    _path(child, refs[1]).unlink()
    with pytest.raises(OSError):
        hand_over(child, refs, spool, KEY)
    assert _names(spool / "building") == _names(spool / "ready") == []
    done = hand_over(child, refs[:1], spool, KEY)
    assert done.datasets == 1
