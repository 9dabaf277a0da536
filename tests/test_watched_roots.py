"""Trees that come late, go, are replaced, linked, mounted, on other hosts, or silent: what lands is found."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuse_support import far_folder, needs_fuse
from repo_support import needs_root, small_tmpfs, wait_for
from test_directory_source import SETTLE, Watched

import ppd.sources.directory
from ppd.sources.directory import DirectorySource
from ppd.sources.inotify_tree import InotifyTree
from ppd.sources.mounts import Mount, is_remote, mounts_around, read_mounts
from ppd.sources.polled_tree import PollingTree
from ppd.sources.raws import Candidate, Wanted

KINDS = ("inotify", "polling")
WANTED = Wanted("GridCam", "g", 4, "D4", 1, 0.0, 0.0)


@pytest.fixture
def watch() -> Iterator[Any]:
    """Start sources, and stop them at the end."""
    started: list[Watched] = []

    def start(root: Path, wait: bool = True, **options: Any) -> Watched:
        watched = Watched(root, **options)
        started.append(watched)
        watched.source.start()
        if wait:
            wait_for(lambda: watched.source.observer, 20.0)
        return watched

    yield start
    for watched in started:
        watched.source.stop()


def _land(watched: Watched, group: str = "g", name: str = "a.fits") -> None:
    """Let a raw land, and wait until it is reported."""
    path = watched.path(group, name)
    path.write_bytes(b"x")
    watched.wait_for(path)


def _land_behind(watched: Watched, folder: Path, group: str) -> None:
    """Let a raw land in a folder that the tree shows, and wait until it is reported."""
    path = folder / watched.path_below(group)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    watched.wait_for(watched.root / watched.path_below(group), seconds=20.0)


# Roots that come and go


@pytest.mark.parametrize("kind", KINDS)
def test_made_where_possible(tmp_path: Path, watch: Any, kind: str) -> None:
    watched = watch(tmp_path / "a" / "b", observer=kind)
    _land(watched)
    assert watched.source.status().trouble is None


@pytest.mark.parametrize("kind", KINDS)
def test_removed_and_made_again(tmp_path: Path, watch: Any, kind: str) -> None:
    """Also at once, when the new one may have the inode of the old."""
    watched = watch(tmp_path / "raws", observer=kind)
    _land(watched, "first")
    for group in ("second", "third"):
        shutil.rmtree(watched.root)
        _land(watched, group)
    shutil.rmtree(watched.root)
    trouble = wait_for(lambda: watched.source.status().trouble)
    assert "No such file" in trouble
    assert not watched.root.exists(), "whoever removed it may want to put another there"
    _land(watched, "fourth")
    wait_for(lambda: watched.source.status().trouble is None)


@pytest.mark.parametrize("kind", KINDS)
def test_another_in_its_place(tmp_path: Path, watch: Any, kind: str) -> None:
    watched = watch(tmp_path / "raws", observer=kind)
    _land(watched, "first")
    new = Watched(tmp_path / "new")
    new.path("second").write_bytes(b"x")
    watched.root.rename(tmp_path / "old")
    new.root.rename(watched.root)
    watched.wait_for(watched.path("second"))
    _land(watched, "third")
    # And what was moved away is watched no more.
    (tmp_path / "old" / "b.fits").write_bytes(b"x")
    _land(watched, "fourth")
    assert not [c for c in watched.seen if c.uri.endswith("b.fits")]


@needs_root
def test_mount_that_comes_late_and_goes(tmp_path: Path, watch: Any) -> None:
    watched = watch(tmp_path / "raws")
    with small_tmpfs(watched.root, "size=1M"):
        _land(watched, "mounted")
    _land(watched, "bare")


@needs_root
def test_root_that_can_not_be_made_yet(tmp_path: Path, watch: Any) -> None:
    """It does not stop ppd: it is waited for."""
    with small_tmpfs(tmp_path / "mnt", "size=1M,ro") as mount:
        watched = watch(mount / "raws", wait=False)
        assert "Read-only" in wait_for(lambda: watched.source.status().trouble)
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
        wait_for(lambda: watched.source.status().trouble is None)
        _land(watched)
        watched.source.stop()


def test_file_in_its_place_later(tmp_path: Path, watch: Any) -> None:
    """At the start that is a mistake; later it is a trouble."""
    watched = watch(tmp_path / "raws")
    watched.root.rename(tmp_path / "old")
    watched.root.touch()
    assert "is a file" in wait_for(
        lambda: (trouble := watched.source.status().trouble) and "file" in trouble and trouble
    )
    watched.root.unlink()
    _land(watched)


# Links


@pytest.mark.parametrize("kind", KINDS)
def test_symlinked_folders(tmp_path: Path, watch: Any, kind: str) -> None:
    """Followed out of the tree, at the start and later; not in circles; nothing is seen twice."""
    outside = Watched(tmp_path / "outside")
    outside.path("first").write_bytes(b"x")
    (outside.root / "up").symlink_to(tmp_path)
    root = tmp_path / "raws"
    root.mkdir()
    (root / "linked").symlink_to(outside.root)
    (root / "again").symlink_to(root)
    watched = watch(root, observer=kind)
    watched.wait_for(root / "linked" / outside.path("first").relative_to(outside.root))
    second = outside.path("second")
    second.write_bytes(b"x")
    watched.wait_for(root / "linked" / second.relative_to(outside.root))
    more = Watched(tmp_path / "more")
    third = more.path("third")
    third.write_bytes(b"x")
    (root / "later").symlink_to(more.root)
    watched.wait_for(root / "later" / third.relative_to(more.root))
    fourth = more.path("fourth")
    fourth.write_bytes(b"x")
    watched.wait_for(root / "later" / fourth.relative_to(more.root))
    time.sleep(SETTLE + 0.5)
    assert len({c.uri for c in watched.seen}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_root_that_is_a_link(tmp_path: Path, watch: Any, kind: str) -> None:
    """What it points to may change: a new night's folder."""
    for night in ("one", "two"):
        (tmp_path / night).mkdir()
    (tmp_path / "raws").symlink_to("one")
    watched = watch(tmp_path / "raws", observer=kind)
    _land(watched, "first")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "raws")
    _land(watched, "second")
    assert (tmp_path / "two" / watched.path_below("second")).exists()


def test_linked_file(tmp_path: Path, watch: Any) -> None:
    watched = watch(tmp_path / "raws")
    (tmp_path / "a.fits").write_bytes(b"xy")
    watched.path().symlink_to(tmp_path / "a.fits")
    assert watched.wait_for(watched.path()).size == 2


# What the kernel can't tell


def test_overflow_of_the_kernels_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was dropped is found by another look at everything."""
    watched = Watched(tmp_path / "raws")
    held, go = threading.Event(), threading.Event()

    def report(candidate: Candidate) -> None:
        held.set()
        go.wait(60.0)
        watched.seen.append(candidate)

    watched.source = DirectorySource(watched.root, SETTLE, report, sweep=600.0)
    watched.source.start()
    try:
        wait_for(lambda: watched.source.observer)
        folder = watched.path().parent
        # Long enough for its watch.
        time.sleep(0.5)
        watched.path(name="held.fits").write_bytes(b"x")
        assert held.wait(10.0)
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        if limit > 50_000:
            pytest.skip("the kernel's queue is too long to be filled here")
        for number in range(limit // 2 + 100):
            (folder / f"{number}.fits").touch()
        new = watched.path("new")
        new.write_bytes(b"x")
        go.set()
        watched.wait_for(new, seconds=30.0)
        wait_for(lambda: len({c.uri for c in watched.seen}) == limit // 2 + 102, 60.0)
        assert "the kernel dropped events" in caplog.text
        _land(watched, "after")
    finally:
        go.set()
        watched.source.stop()


def test_old_files_are_reported_when_they_are_wanted(
    tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many nights' raws are not news; one of them may be asked for."""
    monkeypatch.setattr(ppd.sources.directory, "_KEEP_MARGIN", 0.0)
    old = Watched(tmp_path / "raws")
    for group in ("g", "h"):
        old.path(group).write_bytes(b"x")
    time.sleep(1.1)
    old.path("i").write_bytes(b"x")
    watched = watch(old.root, keep=1.0)
    watched.wait_for(old.path("i"))
    watched.source.expect(WANTED)
    watched.wait_for(old.path("g"))
    assert not watched.sizes(old.path("h"))


# File systems of others


def test_types_of_file_systems(tmp_path: Path) -> None:
    text = (
        "21 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
        "30 21 0:40 / /data rw - nfs4 server:/data rw\n"
        "31 21 0:41 / /with\\040space rw - cifs //server/x rw\n"
        "32 30 0:42 / /data/local rw - xfs /dev/sdb rw\n"
        "33 21 0:43 / /data rw - ext4 /dev/sdc rw\n"
        "broken line\n"
    )
    mounts = read_mounts(text)
    assert mounts_around("/with space/raws", mounts) == (Mount(31, "/with space", "cifs"),)
    # The last of two at one place is on top.
    assert [m.id for m in mounts_around("/data", mounts)] == [33, 32]
    assert [m.id for m in mounts_around("/database", mounts)] == [21]
    assert [m.id for m in mounts_around("/data/local/raws", mounts)] == [32]
    remote = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.sshfs", "lustre", "ceph", "virtiofs")
    assert all(is_remote(kind) for kind in remote)
    assert not any(is_remote(kind) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk"))
    assert mounts_around(os.path.realpath(tmp_path), read_mounts())


@needs_fuse
def test_changes_by_other_hosts(tmp_path: Path, watch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Inotify is blind there: the tree is polled, unless somebody insists."""
    far, root = tmp_path / "far", tmp_path / "raws"
    far.mkdir()
    root.mkdir()
    with far_folder(far, root), caplog.at_level(logging.INFO):
        blind = watch(root, observer="inotify", sweep=600.0)
        watched = watch(root)
        assert isinstance(watched.source.observer, PollingTree)
        assert "fuse.ppdfar" in caplog.text
        for group in ("first", "second"):
            _land_behind(watched, far, group)
        # Written in place, slowly: it is reported once, whole.
        path = far / watched.path_below("slow")
        path.parent.mkdir(parents=True)
        with path.open("wb", buffering=0) as stream:
            for _ in range(8):
                stream.write(b"x" * 100)
                time.sleep(SETTLE / 4)
        assert watched.wait_for(root / watched.path_below("slow"), 800)
        # And again when it has grown after a pause.
        with path.open("ab") as stream:
            stream.write(b"x")
        watched.wait_for(root / watched.path_below("slow"), 801, seconds=20.0)
        assert not blind.seen
        for source in (blind.source, watched.source):
            source.stop()


@needs_fuse
def test_far_mount_comes_late(tmp_path: Path, watch: Any) -> None:
    """The empty folder where it will be is watched first; and links may lead to it."""
    far = tmp_path / "far"
    far.mkdir()
    watched = watch(tmp_path / "raws")
    assert isinstance(watched.source.observer, InotifyTree)
    with far_folder(far, watched.root):
        _land_behind(watched, far, "first")
        assert isinstance(watched.source.observer, PollingTree)
    _land(watched, "second")
    wait_for(lambda: isinstance(watched.source.observer, InotifyTree))
    (tmp_path / "elsewhere").mkdir()
    with far_folder(far, tmp_path / "elsewhere"):
        (watched.root / "linked").symlink_to(tmp_path / "elsewhere")
        wait_for(lambda: isinstance(watched.source.observer, PollingTree))
        path = far / watched.path_below("third")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        watched.wait_for(watched.root / "linked" / watched.path_below("third"))
        watched.source.stop()


@pytest.mark.slow
@needs_fuse
def test_mount_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the source's threads waits; it is told, and it goes on when the mount does."""
    monkeypatch.setattr(ppd.sources.directory, "_SILENT_SECONDS", 1.0)
    far, root = tmp_path / "far", tmp_path / "raws"
    far.mkdir()
    root.mkdir()
    with far_folder(far, root) as mount:
        watched, second = Watched(root), Watched(root)
        watched.source.start()
        try:
            _land_behind(watched, far, "first")
            mount.hang()
            trouble = wait_for(lambda: watched.source.status().trouble)
            assert "has not answered" in trouble
            begin = time.monotonic()
            watched.source.expect(WANTED)
            second.source.start()  # a start meanwhile
            second.source.stop()
            assert time.monotonic() - begin < 12.0
            mount.answer()
            _land_behind(watched, far, "second")
            wait_for(lambda: watched.source.status().trouble is None)
            mount.hang()
            wait_for(lambda: watched.source.status().trouble)
            begin = time.monotonic()
            watched.source.stop()
            assert time.monotonic() - begin < 8.0
        finally:
            mount.answer()
            watched.source.stop()


# Polling


@pytest.mark.slow
def test_polling_of_a_large_tree(tmp_path: Path, watch: Any) -> None:
    """Few folders are looked at each time, and what is new is seen all the same."""
    root = tmp_path / "raws"
    for night in range(10):
        for number in range(400):
            (root / "LSSTCam" / f"2025010{night}" / f"MC_O_2025010{night}_{number:06d}").mkdir(parents=True)
    watched = watch(root, observer="polling")
    tree = watched.source.observer
    assert isinstance(tree, PollingTree)
    looked_at, known = tree.watched
    assert known == 4000 + 12
    assert looked_at <= 2100
    begin = time.monotonic()
    for group in ("a", "b"):
        _land(watched, group)
    assert time.monotonic() - begin < 10.0
    shutil.rmtree(root / "LSSTCam" / "20250103")
    wait_for(lambda: tree.watched[1] < 4000)


_SAME = """
import sys, time
from pathlib import Path
from ppd.sources.directory import DirectorySource
root, seen = Path(sys.argv[1]), []
source = DirectorySource(root, 0.2, lambda c: seen.append(c.uri), observer=sys.argv[2])
source.start()
paths = []
for number in range(300):
    folder = root / str(number % 7) / str(number // 7)
    folder.mkdir(parents=True, exist_ok=True)
    part, path = folder / "a.part", folder / f"{number}.fits"
    part.write_bytes(b"x")
    part.rename(path) if number % 2 else path.hardlink_to(part)
    paths.append(str(path))
deadline = time.monotonic() + 30
while set(seen) < set(paths) and time.monotonic() < deadline:
    time.sleep(0.05)
source.stop()
print(len(set(paths) - set(seen)), len(seen) - len(set(seen)))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_missed_nothing_twice(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SAME, str(tmp_path / "raws"), kind],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.split() == ["0", "0"], done.stderr
