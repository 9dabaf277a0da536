"""Playing a night: announcements and raws at their times, and raws in every way they land."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from astropy.time import Time
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from ppd.demo.night import NightPlan, PlannedVisit
from ppd.demo.player import NightPlayer, next_visit
from ppd.demo.site import _only
from ppd.visit import TAI_MINUS_UTC, check_fresh, parse_visit

SIZE = 60_480


def _raw(detector: int, **times: str) -> bytes:
    """FITS, with what the player looks for in its header."""
    begin, end = times.get("begin", "2026-11-24T01:00:00.000"), times.get("end", "2026-11-24T01:00:30.000")
    cards = [f"{'SIMPLE':<8}= {'T':>20}", f"{'DETNUM':<8}= {detector:>20}"]
    cards += [f"{'DATE-BEG':<8}= '{begin}'", f"{'DATE-END':<8}= '{end}'", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    return header + bytes([detector]) * (SIZE - len(header))


def _plan(folder: Path, closes: list[float], announces: list[float], detectors: int = 9) -> NightPlan:
    visits = []
    for number, (close, announce) in enumerate(zip(closes, announces, strict=True)):
        raws = {d: f"DemoCam/{d}/g{number}/raw{number}.fits" for d in range(detectors)}
        visits.append(
            PlannedVisit(
                group=f"g{number}",
                exposure=2026112400001 + number,
                field="D1",
                physical_filter="demo-r",
                ra=149.9,
                dec=-24.8,
                rotation=3.5,
                shutter_close=close,
                announce=announce,
                raws=raws,
            )
        )
        for detector, raw in raws.items():
            path = folder / "staged" / raw
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_raw(detector))
    return NightPlan(
        seed=1,
        cadence=5.0,
        visits=tuple(visits),
        staged=str(folder / "staged"),
        central="",
        apdb_config="",
        truth="",
    )


@pytest.fixture
def night(tmp_path: Path) -> NightPlan:
    """Six visits; the third is announced half a second after its shutter closed."""
    closes = [10.0 + 14.0 * n for n in range(6)]
    return _plan(tmp_path, closes, [c - 9.0 if n != 2 else c + 0.5 for n, c in enumerate(closes)])


def _player(plan: NightPlan, root: Path, messages: list[dict[str, Any]]) -> NightPlayer:
    return NightPlayer(plan, root, messages.append)


def test_schedule_is_in_order_and_complete(night: NightPlan, tmp_path: Path) -> None:
    events = _player(night, tmp_path, []).schedule()
    assert [e[0] for e in events] == sorted(e[0] for e in events)
    assert len(events) == 6 + 6 * 9
    assert {(e[3].group, e[4]) for e in events if e[4] >= 0} == {
        (v.group, d) for v in night.visits for d in range(9)
    }


def test_some_raws_come_before_their_announcement(night: NightPlan, tmp_path: Path) -> None:
    events = _player(night, tmp_path, []).schedule()
    announced = {e[3].group: e[0] for e in events if e[2] == "announce"}
    early = {(e[3].group, e[4]) for e in events if e[4] >= 0 and e[0] < announced[e[3].group]}
    assert {d for g, d in early if g == "g2"} >= {0, 3, 6}
    # None is there before its shutter has closed.
    assert all(e[0] >= e[3].shutter_close for e in events if e[4] >= 0)
    assert {g for g, _ in early} == {"g2"}


def test_some_raws_come_late(night: NightPlan, tmp_path: Path) -> None:
    events = _player(night, tmp_path, []).schedule()
    late = [e for e in events if e[4] >= 0 and e[0] > e[3].shutter_close + 2.0]
    assert {e[3].group for e in late} == {"g0", "g1", "g3", "g4", "g5"}
    assert 5 <= len(late) <= 15
    assert all(e[0] < e[3].shutter_close + 5.0 for e in late)


def test_both_ways_of_writing_occur_in_every_visit(night: NightPlan, tmp_path: Path) -> None:
    events = _player(night, tmp_path, []).schedule()
    for visit in night.visits:
        kinds = [e[2] for e in events if e[3] is visit and e[4] >= 0]
        assert kinds.count("slow") == 3
        assert kinds.count("rename") == 6


def test_message_is_what_ppd_reads(night: NightPlan) -> None:
    visit = parse_visit(next_visit(night.visits[1], lead=8.0, duration=14.0))
    assert (visit.groupId, visit.instrument, visit.filters) == ("g1", "DemoCam", "demo-r")
    assert (visit.ra, visit.dec, visit.rotation) == pytest.approx((149.9, -24.8, 3.5))
    assert (visit.nimages, visit.survey) == (1, "DEMO")
    now = time.time() + TAI_MINUS_UTC
    assert visit.startTime == pytest.approx(now + 8.0, abs=2.0)
    assert visit.private_sndStamp == pytest.approx(now, abs=2.0)
    check_fresh(visit, time.time(), 60.0)


def _play(plan: NightPlan, root: Path, messages: list[dict[str, Any]]) -> dict[Path, list[int]]:
    """Play to the end, looking at every file's size all the time."""
    player = _player(plan, root, messages)
    sizes: dict[Path, list[int]] = {}
    player.start()
    deadline = time.monotonic() + 20.0
    while player.playing and time.monotonic() < deadline:
        for path in root.rglob("*.fits"):
            size = path.stat().st_size
            if size not in sizes.setdefault(path.relative_to(root), []):
                sizes[path.relative_to(root)].append(size)
        time.sleep(0.005)
    assert not player.playing
    assert player.announced == len(plan.visits)
    assert player.dropped == sum(len(v.raws) for v in plan.visits)
    return sizes


def test_a_part_of_a_night_begins_at_once(night: NightPlan) -> None:
    part = _only(night, range(2, 4))
    assert [v.group for v in part.visits] == ["g1", "g2"]
    assert [v.announce for v in part.visits] == [0.0, 23.5]
    assert [v.shutter_close for v in part.visits] == [9.0, 23.0]
    with pytest.raises(SystemExit, match="visits 1 to 6"):
        _only(night, range(7, 9))


def test_a_night_is_played(tmp_path: Path) -> None:
    plan = _plan(tmp_path, [0.2], [0.0], detectors=3)
    root = tmp_path / "raws"
    messages: list[dict[str, Any]] = []
    before = time.time()
    sizes = _play(plan, root, messages)
    assert [m["groupId"] for m in messages] == ["g0"]
    # Every third is written slowly in place; the others are never seen in part.
    slow = Path(plan.visits[0].raws[1])
    for path, seen in sizes.items():
        if path == slow:
            assert len(seen) > 2
        else:
            assert seen == [SIZE]
    ends = set()
    for detector, raw in plan.visits[0].raws.items():
        landed = (root / raw).read_bytes()
        begin, end = (_time(landed, name) for name in ("DATE-BEG", "DATE-END"))
        assert landed == _raw(detector, begin=begin, end=end), "all else is as it was"
        ends.add((begin, end))
    # All detectors say the same of their exposure: its shutter has closed just before the first raw.
    ((begin, end),) = ends
    closed = Time(end, format="isot", scale="tai").unix_tai - TAI_MINUS_UTC
    assert before < closed < min((root / raw).stat().st_mtime for raw in plan.visits[0].raws.values()) + 0.01
    assert closed - before == pytest.approx(0.2, abs=1.0)
    length = Time(end, format="isot") - Time(begin, format="isot")
    assert length.sec == pytest.approx(30.0, abs=0.002)
    assert not [p for p in root.rglob("*") if p.name.startswith(".")]


def _time(raw: bytes, name: str) -> str:
    return raw.partition(f"{name:<8}= '".encode())[2][:23].decode()


class _Watcher(FileSystemEventHandler):
    """Notes under which names files come to be."""

    def __init__(self) -> None:
        self.created: set[str] = set()
        self.moved: dict[str, str] = {}

    def on_created(self, event: FileSystemEvent) -> None:
        if not event.is_directory:
            self.created.add(Path(str(event.src_path)).name)

    def on_moved(self, event: FileSystemEvent) -> None:
        self.moved[Path(str(event.dest_path)).name] = Path(str(event.src_path)).name


def test_what_is_renamed_had_a_name_that_nobody_reads(tmp_path: Path) -> None:
    plan = _plan(tmp_path, [0.1], [0.0], detectors=2)
    root, watcher = tmp_path / "raws", _Watcher()
    for raw in plan.visits[0].raws.values():
        (root / raw).parent.mkdir(parents=True)
    observer = Observer()
    observer.schedule(watcher, str(root), recursive=True)
    observer.start()
    try:
        _play(plan, root, [])
        deadline = time.monotonic() + 5.0
        while "raw0.fits" not in watcher.moved and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        observer.stop()
        observer.join(5.0)
    hidden = watcher.moved["raw0.fits"]
    assert hidden.startswith(".")
    # The other detector's is written in place, under its own name.
    assert watcher.created == {hidden, "raw0.fits"}


def test_a_visit_that_can_not_be_announced_does_not_end_the_night(tmp_path: Path) -> None:
    plan = _plan(tmp_path, [0.1, 0.2], [0.0, 0.1], detectors=1)
    heard: list[str] = []

    def publish(message: dict[str, Any]) -> None:
        if message["groupId"] == "g0":
            raise ConnectionError("nobody listens")
        heard.append(message["groupId"])

    player = NightPlayer(plan, tmp_path / "raws", publish)
    player.start()
    deadline = time.monotonic() + 10.0
    while player.playing and time.monotonic() < deadline:
        time.sleep(0.02)
    assert heard == ["g1"]
    assert (player.announced, player.dropped) == (1, 2)
    player.stop()


def test_stopping_is_quick_and_nothing_comes_after_it(tmp_path: Path) -> None:
    plan = _plan(tmp_path, [0.05, 60.0], [0.0, 50.0], detectors=3)
    root = tmp_path / "raws"
    player = _player(plan, root, [])
    player.start()
    deadline = time.monotonic() + 10.0
    while player.dropped < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    begin = time.monotonic()
    player.stop()
    assert time.monotonic() - begin < 2.0
    assert not player.playing
    there = sorted(root.rglob("*.fits"))
    time.sleep(0.3)
    assert sorted(root.rglob("*.fits")) == there
    assert player.announced == 1
