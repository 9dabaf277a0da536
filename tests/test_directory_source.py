"""The directory source on real files: complete ones are reported, half ones wait, and nothing ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repo_support import needs_root, small_tmpfs, wait_for

from ppd.errors import ConfigurationError
from ppd.sources.directory import DirectorySource
from ppd.sources.keys import RawKey
from ppd.sources.raws import Candidate

SETTLE = 0.4
_BLOCK = b"0123456789abcdef" * 64


class Watched:
    """A source and what it has reported."""

    def __init__(self, root: Path, **options: Any):
        self.root = root
        self.seen: list[Candidate] = []
        self.source = DirectorySource(root, SETTLE, self.seen.append, **options)

    def path(self, group: str = "g", name: str = "a.fits") -> Path:
        path = self.root / self.path_below(group, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def path_below(self, group: str = "g", name: str = "a.fits") -> Path:
        return Path("GridCam") / "4" / group / "0" / "17" / "r_1" / name

    def sizes(self, path: Path) -> list[int]:
        return [c.size for c in self.seen if c.uri == str(path)]

    def wait_for(self, path: Path, size: int | None = None, seconds: float = 10.0) -> Candidate:
        return wait_for(
            lambda: next((c for c in self.seen if c.uri == str(path) and size in (None, c.size)), None),
            seconds,
        )


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "raws")
    watched.source.start()
    yield watched
    watched.source.stop()


def test_write_then_rename(watched: Watched) -> None:
    part, path = watched.path(name="a.fits.part"), watched.path()
    part.write_bytes(_BLOCK)
    time.sleep(0.05)
    begin = time.time()
    part.rename(path)
    found = watched.wait_for(path)
    assert found.key == RawKey("GridCam", "g", 4, 0, 17, "r_1")
    status = path.stat()
    assert (found.size, found.stamp) == (len(_BLOCK), str(status.st_mtime_ns))
    assert begin - 0.01 <= found.closed < begin + SETTLE  # at once, not when it has rested
    assert not watched.sizes(part)


def test_hard_link(watched: Watched, tmp_path: Path) -> None:
    """A link raises no closing event; an old file need not rest again."""
    old = tmp_path / "elsewhere.fits"
    old.write_bytes(_BLOCK)
    os.utime(old, (1e9, 1e9))
    watched.path().hardlink_to(old)
    assert watched.wait_for(watched.path()).size == len(_BLOCK)


def test_moved_in_from_outside(watched: Watched, tmp_path: Path) -> None:
    path = watched.path()
    time.sleep(0.1)
    (tmp_path / "outside.fits").write_bytes(_BLOCK)
    begin = time.time()
    (tmp_path / "outside.fits").rename(path)
    assert watched.wait_for(path).closed < begin + SETTLE
    path.rename(tmp_path / "outside.fits")
    path.with_name("b.fits").write_bytes(_BLOCK)
    watched.wait_for(path.with_name("b.fits"))
    assert {Path(c.uri).name for c in watched.seen} == {"a.fits", "b.fits"}


def test_slow_writing_in_place(watched: Watched) -> None:
    path = watched.path()
    with path.open("wb", buffering=0) as stream:
        for _ in range(12):  # three times as long as a file at rest must rest
            stream.write(_BLOCK)
            time.sleep(SETTLE / 4)
        assert not watched.sizes(path)
        begin = time.time()
    assert watched.wait_for(path).size == 12 * len(_BLOCK)
    assert watched.seen[0].closed < begin + SETTLE


def test_pause_in_the_writing(watched: Watched) -> None:
    """What rested too long is reported early, and again when it is whole."""
    path = watched.path()
    with path.open("wb", buffering=0) as stream:
        stream.write(_BLOCK)
        watched.wait_for(path, len(_BLOCK))
        stream.write(_BLOCK)
    watched.wait_for(path, 2 * len(_BLOCK))
    assert watched.sizes(path)[-1] == 2 * len(_BLOCK)


def test_new_folders_filled_at_once(watched: Watched) -> None:
    """A new date with all its folders, faster than any watch can be set."""
    paths = []
    for day in range(3):
        for number in range(20):
            paths.append(watched.path(group=f"{day}-{number}"))
            paths[-1].write_bytes(_BLOCK)
    wait_for(lambda: {c.uri for c in watched.seen} >= set(map(str, paths)))


def test_folder_moved_in(watched: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "9" / "h" / "1" / "3" / "g_1"
    outside.mkdir(parents=True)
    (outside / "b.fits").write_bytes(_BLOCK)
    (tmp_path / "outside").rename(watched.root / "GridCam")
    found = watched.wait_for(watched.root / "GridCam" / "9" / "h" / "1" / "3" / "g_1" / "b.fits")
    assert found.key == RawKey("GridCam", "h", 9, 1, 3, "g_1")
    # And folders renamed within the tree are followed.
    (watched.root / "GridCam").rename(watched.root / "OtherCam")
    watched.wait_for(watched.root / "OtherCam" / "9" / "h" / "1" / "3" / "g_1" / "b.fits")


def test_there_before_the_start(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    paths = [watched.path(group=str(i)) for i in range(5)]
    for path in paths:
        path.write_bytes(_BLOCK)
    watched.source.start()
    try:
        wait_for(lambda: {c.uri for c in watched.seen} == set(map(str, paths)))
    finally:
        watched.source.stop()


@needs_root
def test_large_tree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders of many nights: walking through them must not drown the news."""
    # A file system of its own is gone at once, with all folders in it.
    with small_tmpfs(tmp_path / "raws", "size=64M") as root:
        watched = Watched(root)
        for number in range(3000):
            (root / "GridCam" / "4" / f"old-{number}" / "0" / "17" / "r_1").mkdir(parents=True)
        watched.source.start()
        try:
            wait_for(lambda: watched.source.observer, 60.0)
            path = watched.path()
            time.sleep(0.2)
            begin = time.time()
            path.write_bytes(_BLOCK)
            assert watched.wait_for(path).closed < begin + SETTLE
            assert "overflow" not in caplog.text
        finally:
            watched.source.stop()


def test_what_is_no_raw(watched: Watched) -> None:
    for name in (".a.fits", "a.fits.tmp", "a.fits.part", "a.json", ".fits"):
        watched.path(name=name).write_bytes(_BLOCK)
    watched.path(name="folder.fits").mkdir()
    os.mkfifo(watched.path(name="pipe.fits"))
    watched.path(name="dangling.fits").symlink_to("nowhere")
    unreadable = os.fsencode(watched.path(name="latin-")) + b"\xe9.fits"
    with open(unreadable, "wb") as stream:  # noqa: PTH123 (a name that is not UTF-8)
        stream.write(_BLOCK)
    last = watched.path(name="last.fits")
    last.write_bytes(_BLOCK)
    watched.wait_for(last)
    time.sleep(SETTLE + 0.5)
    assert {c.uri for c in watched.seen} == {str(last)}


def test_unknown_layout_is_reported_as_such(watched: Watched) -> None:
    path = watched.root / "readme.fits"
    path.write_bytes(_BLOCK)
    assert watched.wait_for(path).key is None


def test_empty_file(watched: Watched) -> None:
    """Nothing is in it, but its writer was done with it: the child will say what is wrong."""
    watched.path().touch()
    assert watched.wait_for(watched.path()).size == 0


@pytest.mark.parametrize("way", ["in place", "by rename"])
def test_rewritten(watched: Watched, way: str) -> None:
    path = watched.path()
    path.write_bytes(_BLOCK)
    watched.wait_for(path, len(_BLOCK))
    if way == "in place":
        path.write_bytes(2 * _BLOCK)
    else:
        watched.path(name="b.tmp").write_bytes(2 * _BLOCK)
        watched.path(name="b.tmp").rename(path)
    watched.wait_for(path, 2 * len(_BLOCK))


def test_removed_before_it_is_looked_at(watched: Watched) -> None:
    """Files and folders that come and go as fast as they can, and one that stays."""
    for number in range(100):
        path = watched.path(group=f"gone-{number}")
        path.write_bytes(_BLOCK)
        path.unlink() if number % 2 else shutil.rmtree(path.parents[2])
    watched.source.complete(str(watched.root / "vanished.fits"))
    path = watched.path()
    path.write_bytes(_BLOCK)
    watched.wait_for(path)


def test_whoever_is_told_may_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error in the report, from either thread, costs that report and no other."""
    watched = Watched(tmp_path)

    def report(candidate: Candidate) -> None:
        if "bad" in candidate.uri:
            raise RuntimeError("can't take it")
        watched.seen.append(candidate)

    watched.source = DirectorySource(tmp_path, SETTLE, report)
    old = watched.path(name="bad-old.fits")
    old.write_bytes(_BLOCK)
    watched.source.start()
    try:
        watched.path(name="bad.fits").write_bytes(_BLOCK)
        wait_for(lambda: caplog.text.count("can't take it") >= 2)
        closed, linked = watched.path(name="a.fits"), watched.path(name="b.fits")
        closed.write_bytes(_BLOCK)
        linked.hardlink_to(closed)
        watched.wait_for(closed)
        watched.wait_for(linked)
    finally:
        watched.source.stop()


def test_stop_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    Watched(tmp_path / "first").source.stop()  # never started
    watched = Watched(tmp_path)
    watched.source.start()
    watched.source.stop()
    watched.source.stop()
    assert set(threading.enumerate()) <= before
    path = watched.path()
    path.write_bytes(_BLOCK)
    time.sleep(SETTLE + 0.5)
    assert not watched.seen


def test_root_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "raws"):
        source = DirectorySource(root, SETTLE, print)
        before = threading.active_count()
        with pytest.raises(ConfigurationError, match="can't be watched for raws"):
            source.start()
        source.stop()
        assert threading.active_count() == before


_PROGRAM = """
import os, sys, time
from pathlib import Path
from ppd.sources.directory import DirectorySource
root, seen = Path(sys.argv[1]), []
if sys.argv[2] == "nobody":
    os.setuid(65534)
source = DirectorySource(root, 0.2, lambda c: seen.append(c.uri.split("/")[-3]), sweep=600.0)
source.start()
print("ready", flush=True)
sys.stdin.readline()
for group in sys.argv[3:]:
    folder = root / group / "x"
    folder.mkdir(parents=True)
    time.sleep(0.3)
    (folder / "a.fits").write_bytes(b"x")
deadline = time.monotonic() + 20
while set(seen) < set(sys.argv[3:]) and time.monotonic() < deadline:
    time.sleep(0.02)
source.stop()
print(sorted(set(seen)))
"""


def _run(argv: list[str], root: Path, user: str, *groups: str) -> tuple[str, str]:
    done = subprocess.run(
        [*argv, sys.executable, "-c", _PROGRAM, str(root), user, *groups],
        input="\n",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_folder_that_may_not_be_read() -> None:
    """What is in it can't be seen; all else can."""
    # Not in pytest's folder: others may not enter that.
    with tempfile.TemporaryDirectory(prefix="ppd-test-") as folder:
        root = Path(folder) / "raws"
        (root / "secret").mkdir(parents=True)
        root.parent.chmod(0o755)
        root.chmod(0o777)
        (root / "secret").chmod(0o700)
        (root / "secret" / "a.fits").touch()
        seen, log = _run([], root, "nobody", "open")
        assert seen == "['open']"
        assert log.count("secret") == 1
        # Nor a root that may not be read, until it may.
        root.chmod(0o700)
        assert "Permission denied" in _run([], root / "none", "nobody")[1]


def test_sweep_says_nothing_twice(tmp_path: Path) -> None:
    watched = Watched(tmp_path, sweep=0.3)
    watched.source.start()
    try:
        path = watched.path()
        path.write_bytes(_BLOCK)
        watched.wait_for(path)
        time.sleep(1.5)
        assert watched.sizes(path).count(len(_BLOCK)) == 1
    finally:
        watched.source.stop()


@pytest.mark.parametrize("there", [0, 6], ids=["reached later", "reached at the start"])
def test_more_folders_than_the_kernel_watches(tmp_path: Path, there: int) -> None:
    """The tree is polled then, and one line says so."""
    limit = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    limit += ['echo 4 > /proc/sys/user/max_inotify_watches && exec "$0" "$@"']
    if subprocess.run([*limit, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace can be made here, so that the limit can't be set")
    for number in range(there):
        (tmp_path / f"old{number}").mkdir()
    groups = [f"g{i}" for i in range(5)]
    seen, log = _run(limit, tmp_path, "root", *groups)
    assert seen == str(groups)
    assert log.count("is polled for raws: the limit of inotify watches is reached") == 1, log


def test_no_inotify_at_all(tmp_path: Path) -> None:
    limit = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    limit += ['echo 0 > /proc/sys/user/max_inotify_instances && exec "$0" "$@"']
    if subprocess.run([*limit, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace can be made here, so that the limit can't be set")
    seen, log = _run(limit, tmp_path, "root", "a", "b")
    assert seen == "['a', 'b']"
    assert log.count("is polled for raws: the limit of inotify instances is reached") == 1, log
