"""Raws before and after their visit: matched, replaced, forgotten, and never without bound."""

from __future__ import annotations

import dataclasses
import time

from ppd.sources.keys import RawKey
from ppd.sources.raws import Candidate
from ppd.supervisor.raws import RawTable


def _raw(group: str, detector: int = 1, snap: int = 0, size: int = 100, modified: int = 1) -> Candidate:
    key = RawKey("GridCam", group, detector, snap, 7, "r_1")
    path = f"/raws/GridCam/{detector}/{group}/{snap}/7/r_1/a.fits"
    return Candidate(path, key, size, str(modified), 0.0)


def test_early_raw_is_found_when_its_visit_comes() -> None:
    table = RawTable(60.0, 10)
    early, other = _raw("a"), _raw("b")
    assert table.add(early, known=False)
    assert table.add(other, known=False)
    assert table.unmatched == 2
    assert table.of("a", 1) == [early]
    assert table.unmatched == 1
    assert table.of("a", 2) == []
    assert table.of("a", 1) == [early]  # a second attempt gets it again


def test_all_snaps() -> None:
    table = RawTable(60.0, 10)
    snaps = [_raw("a", snap=snap) for snap in range(3)]
    for raw in snaps:
        assert table.add(raw, known=raw.key is not None and raw.key.snap > 0)
    assert table.of("a", 1) == snaps
    assert table.unmatched == 0


def test_same_file_twice_is_a_repeat() -> None:
    table = RawTable(60.0, 10)
    assert table.add(_raw("a"), known=True)
    assert not table.add(_raw("a"), known=True)
    assert len(table.of("a", 1)) == 1


def test_changed_file_replaces() -> None:
    table = RawTable(60.0, 10)
    short, whole, touched = _raw("a", size=50), _raw("a", size=100), _raw("a", modified=2)
    assert table.add(short, known=False)
    assert table.add(whole, known=False)
    assert table.of("a", 1) == [whole]
    assert table.add(touched, known=True)
    assert table.of("a", 1) == [touched]
    assert table.unmatched == 0


def test_rewritten_after_its_visit_came() -> None:
    """What waited under the same path waits no longer."""
    table = RawTable(0.02, 10)
    table.add(_raw("a", size=50), known=False)
    table.add(_raw("a", size=100), known=True)
    assert table.unmatched == 0
    time.sleep(0.03)
    assert table.expire() == []
    assert [raw.size for raw in table.of("a", 1)] == [100]


def test_too_old() -> None:
    table = RawTable(0.3, 10)
    old = _raw("a")
    table.add(old, known=False)
    assert table.expire() == []
    time.sleep(0.35)
    young = _raw("b")
    table.add(young, known=False)
    assert table.expire() == [old]
    assert table.of("a", 1) == []
    assert table.of("b", 1) == [young]


def test_one_old_snap_does_not_take_the_young_with_it() -> None:
    table = RawTable(0.3, 10)
    first, second = _raw("a", snap=0), _raw("a", snap=1)
    table.add(first, known=False)
    time.sleep(0.35)
    table.add(second, known=False)
    assert table.expire() == [first]
    assert table.of("a", 1) == [second]


def test_rewriting_starts_the_clock_again() -> None:
    """And does not keep those behind it alive."""
    table = RawTable(0.3, 10)
    table.add(_raw("a"), known=False)
    table.add(_raw("b"), known=False)
    time.sleep(0.35)
    table.add(_raw("a", size=200), known=False)
    assert [raw.key.group for raw in table.expire() if raw.key] == ["b"]
    assert [raw.size for raw in table.of("a", 1)] == [200]


def test_too_many() -> None:
    table = RawTable(60.0, 5)
    raws = [_raw(f"g{i}") for i in range(12)]
    for raw in raws:
        table.add(raw, known=False)
    assert table.expire() == raws[:7]
    assert table.unmatched == 5
    assert table.of("g6", 1) == []
    assert table.of("g7", 1) == [raws[7]]


def test_matched_raws_do_not_expire() -> None:
    table = RawTable(0.01, 1)
    raws = [_raw(f"g{i}") for i in range(3)]
    for raw in raws:
        table.add(raw, known=False)
        table.of(f"g{raw.uri.split('/')[4][1:]}", 1)
    time.sleep(0.02)
    assert table.expire() == []
    assert table.of("g0", 1) == raws[:1]


def test_forget() -> None:
    table = RawTable(60.0, 10)
    table.add(_raw("a", snap=0), known=True)
    table.add(_raw("a", snap=1), known=False)
    table.add(_raw("a", detector=2), known=True)
    table.forget("a", 1)
    table.forget("never", 1)
    assert table.unmatched == 0
    assert table.of("a", 1) == []
    assert len(table.of("a", 2)) == 1
    # What was seen stays seen: a sweep of the folder is no new raw.
    assert not table.add(_raw("a", snap=0), known=True)
    assert table.add(_raw("a", snap=0, size=101), known=True)


def test_last_seen_are_remembered_longest() -> None:
    table = RawTable(60.0, 1)
    for group, size in (("a", 100), ("b", 100), ("a", 200), ("c", 100)):
        assert table.add(_raw(group, size=size), known=True)
    assert not table.add(_raw("a", size=200), known=True)
    assert table.add(_raw("b"), known=True)


def test_memory_is_bounded() -> None:
    table = RawTable(60.0, 10)
    for i in range(200):
        raw = _raw(f"g{i}")
        table.add(raw, known=i % 2 == 0)
        table.forget(f"g{i}", 1) if i % 2 == 0 else table.expire()
    kept = [value for value in vars(table).values() if hasattr(value, "__len__")]
    assert len(kept) == 4
    assert max(len(value) for value in kept) <= 20


def test_copies_in_other_places() -> None:
    """An exposure that is in a directory and in a bucket too is no second one."""
    table = RawTable(60.0, 10)
    raw = _raw("g")
    bucket = dataclasses.replace(raw, uri="s3://raws/a.fits", stamp="etag")
    assert table.add(raw, known=True)
    assert table.add(bucket, known=True)  # the first may turn out to be bad
    table.forget("g", 1)
    assert not table.is_copy(raw)
    assert table.is_copy(bucket)
    assert table.is_copy(dataclasses.replace(bucket, uri="s3://others/b.fits"))
    assert not table.is_copy(dataclasses.replace(raw, uri="/elsewhere/a.fits"))
    assert raw.key is not None
    assert not table.is_copy(dataclasses.replace(bucket, key=dataclasses.replace(raw.key, exposure=8)))
    assert not table.is_copy(dataclasses.replace(bucket, key=dataclasses.replace(raw.key, exposure=None)))


def test_recalled() -> None:
    """What was over is tried again: its raws are there again, as they are now, and nobody else's."""
    table = RawTable(60.0, 10)
    first, second, changed, late = _raw("a"), _raw("a", snap=1), _raw("a", size=200), _raw("a", detector=2)
    for raw in (first, second, changed, _raw("b"), _raw("a", detector=3)):
        assert table.add(raw, known=True)
    for detector in (1, 2, 3):
        table.forget("a", detector)
    assert table.remember(late)
    table.recall("a", {1, 2})
    assert table.of("a", 1) == [second, changed]
    assert table.of("a", 2) == [late]
    assert table.of("a", 3) == []
    table.recall("a", {1, 2})
    assert table.of("a", 1) == [second, changed]
    assert table.unmatched == 0
