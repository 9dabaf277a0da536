"""The cache's place: shared memory, the fall-back, or an error that says why neither."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from repo_support import fill, needs_root, small_tmpfs

from ppd.cache.place import choose_place, remove_place
from ppd.errors import SharedMemoryError

MIB = 2**20


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def _choose(shm: Path, fallback: Path | None = None, min_free: int = 1, state: str = "state") -> Path:
    return choose_place(shm, fallback, min_free, "GridCam", shm.parent / state)


def test_shared_memory_first(shm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = os.umask(0)
    try:
        place = _choose(shm, tmp_path / "fallback")
    finally:
        os.umask(old)
    assert place.parent == shm
    assert place.name.startswith("ppd-GridCam-")
    assert place.stat().st_mode & 0o7777 == 0o700
    assert not list(place.iterdir())
    assert not caplog.records


def test_real_shared_memory(tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this machine has no /dev/shm")
    place = choose_place(Path("/dev/shm"), None, 1, "GridCam", tmp_path)
    try:
        assert place.is_dir()
    finally:
        remove_place(place)
    assert not place.exists()


def test_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fallback = tmp_path / "deep" / "fallback"
    with caplog.at_level(logging.WARNING):
        assert _choose(tmp_path / "none", fallback).parent == fallback
    assert f"{tmp_path}/none does not exist" in caplog.text
    assert str(fallback) in caplog.text


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "shm").write_text("")
    with pytest.raises(SharedMemoryError, match=r"shm is not a directory"):
        _choose(tmp_path / "shm")


@needs_root
def test_too_small(shm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_tmpfs(shm, "size=1M"), caplog.at_level(logging.WARNING):
        assert _choose(shm, tmp_path / "fallback", 64 * MIB).parent == tmp_path / "fallback"
        assert f"{shm} has 1 MiB free, 64 MiB are needed" in caplog.text
        assert not list(shm.iterdir())


@needs_root
def test_full(shm: Path, tmp_path: Path) -> None:
    with small_tmpfs(shm, "size=4M"):
        assert _choose(shm, None, 2 * MIB).parent == shm
        fill(shm)
        with pytest.raises(SharedMemoryError, match="--shm-size"):
            _choose(shm, None, 2 * MIB)
        assert _choose(shm, tmp_path / "fallback", 2 * MIB).parent == tmp_path / "fallback"


@needs_root
def test_full_of_what_a_crash_left(shm: Path, tmp_path: Path) -> None:
    """The old cache takes the room that the new one needs: it goes first."""
    with small_tmpfs(shm, "size=4M"):
        fill(_choose(shm))
        place = _choose(shm, tmp_path / "fallback", 2 * MIB)
        assert place.parent == shm
        assert not list(place.iterdir())


@needs_root
def test_no_inode_left(shm: Path, tmp_path: Path) -> None:
    """Bytes are free and yet no folder can be made."""
    with small_tmpfs(shm, "size=4M,nr_inodes=2"):
        (shm / "last").touch()
        assert _choose(shm, tmp_path / "fallback").parent == tmp_path / "fallback"


@needs_root
def test_read_only(shm: Path) -> None:
    """Not writable, for root too."""
    with (
        small_tmpfs(shm, "size=4M,ro"),
        pytest.raises(SharedMemoryError, match=r"shm is not writable; no fall-back .*shm_fallback"),
    ):
        _choose(shm)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to any folder")
def test_no_permission(shm: Path) -> None:
    shm.chmod(0o500)
    with pytest.raises(SharedMemoryError, match="shm is not writable"):
        _choose(shm)


def test_neither(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SharedMemoryError) as e:
        _choose(tmp_path / "none", tmp_path / "file" / "fallback")
    assert str(e.value) == (
        f"No place for the cache: {tmp_path}/none does not exist; "
        f"{tmp_path}/file/fallback can't be made: Not a directory."
    )


def test_both_too_small(shm: Path, tmp_path: Path) -> None:
    with pytest.raises(SharedMemoryError) as e:
        _choose(shm, tmp_path / "fallback", 1 << 60)
    for parent in (shm, tmp_path / "fallback"):
        assert f"{parent} has " in str(e.value)
    assert str(e.value).count("1099511627776 MiB are needed") == 2


def test_own_leftovers_go_and_others_stay(shm: Path) -> None:
    mine, other = _choose(shm), _choose(shm, state="other-state")
    assert mine != other
    for place in (mine, other):
        (place / "cache").mkdir()
        (place / "cache" / "gen3.sqlite3").write_text("old")
    assert _choose(shm) == mine
    assert not list(mine.iterdir())
    assert (other / "cache" / "gen3.sqlite3").exists()


def test_own_leftover_in_the_fallback(shm: Path, tmp_path: Path) -> None:
    """An earlier run had to use the fall-back; this one need not."""
    fallback = tmp_path / "fallback"
    left = _choose(tmp_path / "none", fallback)
    (left / "big").write_text("x")
    assert _choose(shm, fallback).parent == shm
    assert not left.exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_something_else_of_that_name(shm: Path, tmp_path: Path, kind: str) -> None:
    """Neither a file nor a link is in the way, and a link is not followed."""
    place = _choose(shm)
    place.rmdir()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    assert _choose(shm) == place
    assert not place.is_symlink()
    assert place.is_dir()
    assert (victim / "precious").exists()


def test_state_dir_by_any_name(shm: Path, tmp_path: Path) -> None:
    """A link to the state directory is the same state directory."""
    (tmp_path / "state").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "state")
    assert _choose(shm) == _choose(shm, state="alias")
