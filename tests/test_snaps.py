"""Visits of two snaps, of an unknown number, and of fewer than were announced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lsst.daf.butler import Butler
from observatory import Observatory, Ppd, identity, running, wait_for

pytestmark = pytest.mark.night

_TIMEOUT = 6.0


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    """A ppd whose instrument goes by sequences, as LSSTCam does."""
    folder = tmp_path_factory.mktemp("ppd")
    with running(observatory, folder, prepare=_go_by_sequence, image_timeout=_TIMEOUT, slots=6) as ppd:
        yield ppd
        assert ppd.counts().get("internal_errors", 0) == 0


def _go_by_sequence(ppd: Ppd) -> None:
    with Butler.from_config(str(ppd.central), writeable=True) as butler:
        (instrument,) = butler.query_dimension_records("instrument", instrument="DemoCam")
        for number, name in ((0, "one-to-one"), (2, "by-seq-start-end")):
            record = {"instrument": "DemoCam", "id": number, "name": name}
            butler.registry.insertDimensionData("visit_system", record, skip_existing=True)
        changed = {**instrument.toDict(), "visit_system": 2}
        butler.registry.insertDimensionData("instrument", changed, replace=True)


def _snap(ppd: Ppd, group: str, detector: int, number: int) -> int:
    """Let one of two snaps land; return its exposure ID."""
    exposure = 2_026_112_500_000 + (sum(map(ord, group)) % 500) * 10 + number
    cards: dict[str, Any] = {"SEQNUM": number, "SEQSTART": 1, "SEQEND": 2}
    ppd.drop(ppd.observatory.raw(detector, **identity(group, exposure), **cards), detector, group)
    return exposure


def _processed(ppd: Ppd, group: str) -> set[tuple[int, int]]:
    """Exposure and detector of what was processed of a group."""
    return {
        (int(r.dataId["exposure"]), int(r.dataId["detector"]))
        for r in ppd.outputs("post_isr_image")
        if r.dataId.records["exposure"].group == group
    }


def _await_seen(ppd: Ppd, number: int) -> None:
    wait_for(lambda: ppd.counts().get("raws_seen", 0) >= number, 20.0, "the raw to be seen")


@pytest.mark.slow
def test_second_comes_late(ppd: Ppd) -> None:
    """The child waits for the second and processes both."""
    group = "both-snaps"
    assert ppd.submit(groupId=group, detector=1, nimages=2).ok
    seen = ppd.counts().get("raws_seen", 0)
    first = _snap(ppd, group, 1, 1)
    _await_seen(ppd, seen + 1)
    wait_for(lambda: ppd.states(group) == {"ready": 1}, 20.0, "its child to wait")
    second = _snap(ppd, group, 1, 2)
    ppd.await_state(group, exported=1)
    assert _processed(ppd, group) == {(first, 1), (second, 1)}


def test_second_for_one_detector_only(ppd: Ppd) -> None:
    """Each detector goes on with what it has; no other waits for it."""
    group = "one-lacks"
    for detector in (2, 3):
        assert ppd.submit(groupId=group, detector=detector, nimages=2).ok
    first = _snap(ppd, group, 2, 1)
    second = _snap(ppd, group, 2, 2)
    assert _snap(ppd, group, 3, 1) == first
    ppd.await_state(group, exported=2)
    assert _processed(ppd, group) == {(first, 2), (second, 2), (first, 3)}


@pytest.mark.slow
def test_first_missing(ppd: Ppd) -> None:
    group = "no-first"
    assert ppd.submit(groupId=group, detector=4, nimages=2).ok
    second = _snap(ppd, group, 4, 2)
    ppd.await_state(group, exported=1)
    assert _processed(ppd, group) == {(second, 4)}


@pytest.mark.slow
def test_unknown_number(ppd: Ppd) -> None:
    """With nimages 0 it takes what comes until the time-out."""
    group = "who-knows"
    assert ppd.submit(groupId=group, detector=5, nimages=0).ok
    first = _snap(ppd, group, 5, 1)
    second = _snap(ppd, group, 5, 2)
    ppd.await_state(group, exported=1)
    assert _processed(ppd, group) == {(first, 5), (second, 5)}
