"""Raws that can't be used: each refused with its visit's identity, counted, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from observatory import Observatory, Ppd, error_of, identity, running, wait_for

pytestmark = pytest.mark.night


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    changes = {"image_timeout": 3.0, "raw_keep_seconds": 4.0, "slots": 6}
    with running(observatory, tmp_path_factory.mktemp("ppd"), **changes) as ppd:
        yield ppd
        assert ppd.counts().get("internal_errors", 0) == 0
        ppd.good_visit("after-all-that", 4)
        ppd.await_state("after-all-that", exported=1)


_BAD = {
    "empty": (lambda o: b"", "is empty"),
    "truncated": (lambda o: o.raw(1, **identity("truncated"))[:200_000], "cut short"),
    "header-cut": (lambda o: o.raw(1, **identity("header-cut"))[:1000], "not a FITS file"),
    "not-fits": (lambda o: b"\x89PNG\r\n" + bytes(range(256)) * 100, "not a FITS file"),
    "other-detector": (lambda o: o.raw(2, **identity("other-detector")), "is of detector 2"),
    "other-group": (lambda o: o.raw(1, **identity("somebody-else")), "is of group 'somebody-else'"),
    "other-exposure": (
        lambda o: o.raw(1, **identity("other-exposure", exposure=2_026_000_000_007)),
        "is of exposure 2026000000007, its path says 2026000000008",
    ),
    "strange-filter": (lambda o: o.raw(1, **identity("strange-filter"), FILTER="u_99"), "filter 'u_99'"),
    "beyond-the-pole": (lambda o: o.raw(1, **identity("beyond-the-pole"), DEC=99.0), "can't be translated"),
}


# The others are read and judged alike.
_QUICK = ("truncated", "other-group", "other-exposure")


@pytest.mark.parametrize(
    "group", [g if g in _QUICK else pytest.param(g, marks=pytest.mark.slow) for g in _BAD]
)
def test_bad_then_good(ppd: Ppd, group: str) -> None:
    """A bad raw is refused and named; a good one that follows in time is processed."""
    make, said = _BAD[group]
    assert ppd.submit(groupId=group, detector=1).ok
    before = ppd.counts().get("raws_refused", 0)
    exposure = 2_026_000_000_008 if group == "other-exposure" else None
    ppd.drop(make(ppd.observatory), 1, group, exposure=exposure)
    wait_for(lambda: ppd.counts().get("raws_refused", 0) > before, 10.0, "the raw to be refused")
    error = error_of(ppd.status(), "raws_refused")
    assert f"{group}/1#1" in error
    assert said in error
    ppd.drop(ppd.observatory.raw(1, **identity(group)), 1, group, name="second.fits")
    ppd.await_state(group, exported=1)
    assert (group, 1) in ppd.groups()


def test_only_bad_raws(ppd: Ppd) -> None:
    """Without a good one it fails, once, with the reason; the other detector of the visit succeeds."""
    group = "one-bad"
    for detector in (5, 6):
        assert ppd.submit(groupId=group, detector=detector).ok
    ppd.drop(b"nonsense", 5, group)
    ppd.drop(ppd.observatory.raw(6, **identity(group)), 6, group)
    ppd.await_state(group, failed=1, exported=1)
    error = error_of(ppd.status(), "failed")
    assert f"{group}/5#1" in error
    assert "no usable raw came" in error
    assert "not a FITS file" in error
    assert [d for g, d in ppd.groups() if g == group] == [6]


def test_no_raw_at_all(ppd: Ppd) -> None:
    assert ppd.submit(groupId="silence", detector=0).ok
    ppd.await_state("silence", failed=1)
    assert "none was seen" in error_of(ppd.status(), "failed")


@pytest.mark.slow
def test_delivered_twice(ppd: Ppd) -> None:
    """The same file again, and the same exposure under another name, are processed once."""
    group = "again"
    data = ppd.observatory.raw(7, **identity(group))
    assert ppd.submit(groupId=group, detector=7, nimages=2).ok
    path = ppd.drop(data, 7, group)
    wait_for(lambda: ppd.counts()["raws_seen"], 10.0, "the raw to be seen")
    ppd.drop(data, 7, group, name="copy.fits")
    wait_for(lambda: ppd.counts().get("raws_repeated"), 10.0, "the copy to be recognised")
    assert f"{group}/7#1" in error_of(ppd.status(), "raws_repeated")
    ppd.await_state(group, exported=1)
    assert [d for g, d in ppd.groups() if g == group] == [7]
    # Once it is over, what comes is too late, and said so.
    path.with_name("late.fits").write_bytes(data)
    wait_for(lambda: ppd.counts().get("raws_too_late"), 10.0, "the late one to be noticed")
    assert f"{group}/7" in error_of(ppd.status(), "raws_too_late")


def test_unknown_group(ppd: Ppd) -> None:
    path = ppd.drop(ppd.observatory.raw(3, **identity("never-announced")), 3, "never-announced")
    wait_for(lambda: ppd.status()["raws_waiting"], 10.0, "the raw to wait")
    wait_for(lambda: ppd.counts().get("raws_unmatched"), 15.0, "the raw to be given up")
    assert str(path) in error_of(ppd.status(), "raws_unmatched")


def test_unknown_place(ppd: Ppd) -> None:
    (ppd.raws / "holiday").mkdir()
    (ppd.raws / "holiday" / "beach.fits").write_bytes(b"sand")
    wait_for(lambda: ppd.counts().get("raws_unrecognised"), 10.0, "the file to be noticed")
    assert "beach.fits" in error_of(ppd.status(), "raws_unrecognised")


def test_raw_before_its_visit(ppd: Ppd) -> None:
    ppd.drop(ppd.observatory.raw(8, **identity("early-bird")), 8, "early-bird")
    wait_for(lambda: ppd.status()["raws_waiting"], 10.0, "the raw to wait")
    assert ppd.submit(groupId="early-bird", detector=8).ok
    ppd.await_state("early-bird", exported=1)


def test_slow_writing_in_place(ppd: Ppd) -> None:
    """What is written bit by bit is processed once it is complete, and not refused before."""
    group = "slow"
    data = ppd.observatory.raw(2, **identity(group))
    assert ppd.submit(groupId=group, detector=2, duration=5.0).ok
    exposure = identity(group)["EXPID"]
    path = ppd.raws / "DemoCam" / "2" / group / "0" / str(exposure) / "demo-r" / "raw.fits"
    path.parent.mkdir(parents=True)
    before = ppd.counts().get("raws_refused", 0)
    with path.open("wb") as stream:
        for start in range(0, len(data), len(data) // 8 + 1):
            stream.write(data[start : start + len(data) // 8 + 1])
            stream.flush()
            time.sleep(0.1)  # a slow writer, well below raw_settle
    ppd.await_state(group, exported=1)
    assert ppd.counts().get("raws_refused", 0) == before


@pytest.mark.slow
def test_wrong_rotation(ppd: Ppd) -> None:
    """An exposure more than a degree off the announcement is dropped; the visit goes on without."""
    group = "askew"
    assert ppd.submit(groupId=group, detector=3, nimages=0).ok
    rotation = ppd.observatory.plan.visits[0].rotation
    off = identity("askew", 7001)
    ppd.drop(ppd.observatory.raw(3, **off, ROTSKY=rotation + 5.0), 3, group, exposure=7001)
    ppd.drop(ppd.observatory.raw(3, **identity(group, 7002)), 3, group, exposure=7002)
    ppd.await_state(group, exported=1)
    assert "5.00 degrees off" in error_of(ppd.status(), "exposures_dropped")
    found = [
        int(r.dataId["exposure"]) for r in ppd.outputs("post_isr_image") if int(r.dataId["detector"]) == 3
    ]
    assert found == [7002]


def test_another_field(ppd: Ppd) -> None:
    """Off by more than the padding: dropped with the reason; by less: nothing is wrong."""
    group = "astray"
    before = ppd.counts().get("exposures_dropped", 0)
    assert ppd.submit(groupId=group, detector=3).ok
    visit = ppd.observatory.plan.visits[0]
    off = identity(group, exposure=2_026_000_000_000 + 8001)
    ppd.drop(ppd.observatory.raw(3, **off, DEC=visit.dec + 90.0 / 3600.0), 3, group)
    wait_for(lambda: ppd.counts().get("exposures_dropped", 0) > before, 10.0, "it to be dropped")
    assert "astray/3" in error_of(ppd.status(), "exposures_dropped")
    assert "points 90 arcsec from where was announced" in error_of(ppd.status(), "exposures_dropped")
    near = ppd.observatory.raw(3, **identity(group), DEC=visit.dec + 20.0 / 3600.0)
    ppd.drop(near, 3, group)
    ppd.await_state(group, exported=1)
    assert (group, 3) in ppd.groups()


def test_an_odd_card_does_not_harm_the_neighbours(ppd: Ppd) -> None:
    """Whatever was exported first of an exposure, the outputs of its other detectors are not lost."""
    group = "odd-day"
    cards = identity(group)
    other_day = ppd.observatory.plan.visits[0].exposure // 100_000 + 1
    assert ppd.submit(groupId=group, detector=5).ok
    ppd.drop(ppd.observatory.raw(5, **cards, DAYOBS=other_day), 5, group)
    ppd.await_state(group, exported=1)
    assert ppd.submit(groupId=group, detector=6).ok
    ppd.drop(ppd.observatory.raw(6, **cards), 6, group)
    ppd.await_state(group, exported=2)
    assert ppd.counts().get("dead_letters", 0) == 0
    assert [d for g, d in ppd.groups() if g == group] == [5, 6]


@pytest.mark.slow
def test_another_filter(ppd: Ppd) -> None:
    """Without its inputs it fails with both names, and is not tried again; with them it is processed."""
    assert ppd.submit(groupId="red-or-green", detector=2).ok
    ppd.drop(ppd.observatory.raw(2, **identity("red-or-green"), FILTER="demo-g"), 2, "red-or-green")
    ppd.await_state("red-or-green", failed=1)
    error = error_of(ppd.status(), "failed")
    assert "red-or-green/2#1" in error
    assert "the header's filter is 'demo-g', 'demo-r' was announced" in error
    # A visit that was announced in that filter brings its flats.
    ppd.good_visit("green", 2, filters="demo-g")
    wait_for(lambda: ppd.states("green").get("accepted", 0) == 0, 20.0, "its inputs")
    assert ppd.submit(groupId="green-after-all", detector=2).ok
    ppd.drop(ppd.observatory.raw(2, **identity("green-after-all"), FILTER="demo-g"), 2, "green-after-all")
    ppd.await_state("green-after-all", exported=1)
