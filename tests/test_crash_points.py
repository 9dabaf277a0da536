"""Wherever a process is made to die: what was accepted is accounted for, and nothing is there twice."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import pytest
from crash_site import DETECTORS, RETRIES, CrashSite, End
from observatory import wait_for

from ppd.crash_points import CRASH_POINTS

pytestmark = pytest.mark.night

# Nothing can have come of an announcement that nobody wrote down.
_NOT_ACCEPTED = (
    "supervisor.visit-received",
    "supervisor.visit-validated",
    "supervisor.acceptance-not-journaled",
    "supervisor.acceptance-in-transaction",
)


@dataclasses.dataclass(frozen=True)
class Walk:
    """How a place is come to."""

    point: str
    words: tuple[str, ...] = ()
    before: str = ""
    """Where its child has to die before."""
    quick: bool = False
    """Whether it is walked by each ``make test``."""

    def __str__(self) -> str:
        return "-".join((self.point, *self.words))


_AT_ONCE = [
    *(Walk(p, quick="transaction" in p) for p in _NOT_ACCEPTED),
    Walk("supervisor.acceptance-journaled"),
    Walk("supervisor.answer-not-sent", quick=True),
    Walk("supervisor.answer-sent"),
    Walk("supervisor.notes-not-committed"),
    Walk("supervisor.notes-committed"),
    Walk("supervisor.inputs-asked"),
    Walk("supervisor.inputs-found"),
    Walk("supervisor.transfer-not-checked"),
    Walk("supervisor.inputs-fetched"),
    Walk("supervisor.inputs-leased"),
    Walk("supervisor.inputs-heard"),
    Walk("supervisor.inputs-noted"),
    Walk("supervisor.fork-not-asked"),
    Walk("supervisor.fork-asked", quick=True),
    Walk("supervisor.fork-noted"),
    Walk("supervisor.child-ready-noted"),
    Walk("supervisor.raw-seen"),
    Walk("supervisor.raw-not-sent"),
    Walk("supervisor.raw-sent"),
    Walk("supervisor.permit-asked", ("main",)),
    Walk("supervisor.permit-granted"),
    Walk("supervisor.phase-noted", ("preprocess_end",)),
    Walk("supervisor.phase-noted", ("ingested",)),
    Walk("supervisor.phase-noted", ("main_start",)),
    Walk("supervisor.phase-noted", ("first_task",)),
    Walk("supervisor.phase-noted", ("pipeline_end",), quick=True),
    Walk("supervisor.phase-noted", ("handed_over",)),
    Walk("supervisor.last-word-heard"),
    Walk("supervisor.child-end-heard"),
    Walk("supervisor.ending-not-decided"),
    Walk("supervisor.remains-removed", quick=True),
    Walk("supervisor.ending-decided"),
    Walk("supervisor.retry-noted", before="child.raw-ingested"),
    Walk("supervisor.look-back-noted", before="child.graph-built"),
    Walk("supervisor.export-heard"),
    Walk("supervisor.export-noted", quick=True),
]
_WHILE_STARTING = [
    "supervisor.recovery-not-begun",
    "supervisor.recovery-visit-taken",
    "supervisor.recovery-done",
    "supervisor.ready",
]
_NURSERY = [
    "nursery.fork-request-read",
    "nursery.forked",
    "nursery.fork-said",
    "nursery.child-reaped",
    "nursery.exit-said",
]
# What becomes of a child's detector-visit that dies there.
_AGAIN, _FINAL, _DONE = "again", "final", "done"
_CHILD = {
    "child.settled": _AGAIN,
    "child.repo-cloned": _AGAIN,
    "child.preload-put": _AGAIN,
    "child.ready-said": _AGAIN,
    "child.preprocess-begun": _AGAIN,
    "child.preprocess-ended": _AGAIN,
    "child.raw-received": _AGAIN,
    "child.raw-fetched": _AGAIN,
    "child.raw-ingested": _AGAIN,
    "child.visits-defined": _AGAIN,
    "child.apdb-asked": _AGAIN,
    "child.main-begun": _AGAIN,
    "child.first-task": _AGAIN,
    "child.pipeline-ended": _FINAL,
    "child.outputs-found": _FINAL,
    "child.building-made": _FINAL,
    "child.file-linked": _FINAL,
    "child.records-collected": _FINAL,
    "child.manifest-written": _FINAL,
    "child.hand-over-built": _FINAL,
    "child.handed-over": _DONE,
    "child.source-removed": _DONE,
    "child.hand-over-said": _DONE,
    "child.last-word-not-said": _DONE,
    "child.last-word-said": _DONE,
    "child.repo-removed": _DONE,
}
_ALONE = {"child.graph-built", "child.looked-back", "nursery.inputs-held", "supervisor.dead-letter-noted"}


def _params(walks: Sequence[Walk]) -> list[object]:
    return [pytest.param(w, id=str(w), marks=() if w.quick else pytest.mark.slow) for w in walks]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashSite]:
    site = CrashSite(tmp_path_factory.mktemp("crash"))
    try:
        site.initialize()
        site.start()
        yield site
        assert site.process is not None
        assert site.stop() == 0
        # What was accepted long ago is as it was when it ended.
        faults = [f for visit in site.visits for f in site.faults(visit)]
        assert faults == []
        assert site.strangers() == set()
        assert site.orphans() == set()
        assert site.left_in_spool() == []
        assert not any(site.leftovers().values()), site.leftovers()
    finally:
        site.close()


# A detector whose inputs are not in the cache yet, in a life that has had two visits at most.
_DETECTORS = itertools.cycle(range(DETECTORS))


@pytest.fixture(autouse=True)
def lives(site: CrashSite) -> Iterator[None]:
    """Each test begins with a ppd that lives and will not die."""
    yield
    left = site.disarm()
    if site.process is not None and site.process.poll() is not None:
        site.start()
    assert left == [], "nobody came there"


def test_all_are_walked() -> None:
    walked = {w.point for w in _AT_ONCE} | {*_WHILE_STARTING, *_NURSERY, *_CHILD} | _ALONE
    assert walked == CRASH_POINTS.keys()
    assert len(walked) >= 40


# Children: the others go on


@pytest.mark.parametrize("points", list(itertools.batched(_CHILD, DETECTORS)), ids=lambda p: p[0])
def test_child_dies(site: CrashSite, points: tuple[str, ...]) -> None:
    """Each detector's child dies in another place."""
    visit = site.plan(range(DETECTORS))
    for detector, point in enumerate(points):
        site.arm(point, visit.subject(detector))
    reply = site.play(visit)
    assert reply is not None and reply.ok
    site.await_hits(points)
    ends = site.await_end(visit)
    for detector in range(DETECTORS):
        fate = _CHILD[points[detector]] if detector < len(points) else _DONE
        _check_fate(points[detector] if detector < len(points) else "", fate, ends[detector])


def _check_fate(point: str, fate: str, end: End) -> None:
    if fate == _FINAL:
        assert end.state == "failed", (point, end)
        assert "the APDB has sources of visit" in end.reason, (point, end)
        assert "SIGKILL while" in end.reason, (point, end)
    else:
        assert (end.state, end.attempt) == ("exported", 2 if fate == _AGAIN else 1), (point, end)


def test_child_dies_with_a_graph(site: CrashSite) -> None:
    visit = site.plan([next(_DETECTORS)])
    (detector,) = visit.raws
    site.arm("child.graph-built", visit.subject(detector), str(site.settings.main_pipelines[0].pipelines[0]))
    site.play(visit)
    site.await_hits(["child.graph-built"])
    assert site.await_end(visit)[detector] == End("exported", 2, "")


def test_child_dies_when_it_has_looked_back(site: CrashSite) -> None:
    visit = site.plan([next(_DETECTORS)])
    (detector,) = visit.raws
    points = ("child.first-task", "child.looked-back")
    for point in points:
        site.arm(point, visit.subject(detector))
    site.play(visit)
    site.await_hits(points)
    assert site.await_end(visit)[detector] == End("exported", 1 + RETRIES, "")


# The nursery: its children end with it


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p == "nursery.forked" else pytest.mark.slow) for p in _NURSERY]
)
def test_nursery_dies(site: CrashSite, point: str) -> None:
    if site.counts().get("nursery_restarts"):
        _restart(site)  # it waits longer each time a nursery has died soon
    visit = site.plan([next(_DETECTORS)])
    site.arm(point)
    reply = site.play(visit)
    assert reply is not None and reply.ok
    site.await_hits([point])
    (end,) = site.await_end(visit).values()
    assert end.state == "exported", end


@pytest.mark.slow
def test_nursery_dies_with_inputs(site: CrashSite) -> None:
    visit = site.plan([next(_DETECTORS)])
    site.arm("nursery.inputs-held")
    _restart(site)
    site.await_hits(["nursery.inputs-held"])
    site.play(visit)
    (end,) = site.await_end(visit).values()
    assert end.state == "exported", end


def _restart(site: CrashSite) -> None:
    assert site.stop() == 0
    site.start()


# The supervisor: the next one takes up what it has left


@pytest.mark.parametrize("walk", _params(_AT_ONCE))
def test_supervisor_dies(site: CrashSite, walk: Walk) -> None:
    visit = site.plan([next(_DETECTORS)])
    (detector,) = visit.raws
    if walk.before:
        words = [str(site.settings.main_pipelines[0].pipelines[0])] if "graph" in walk.before else []
        site.arm(walk.before, visit.subject(detector), *words)
    site.arm(walk.point, *walk.words)
    reply = site.play(visit)
    assert reply is None or reply.ok
    site.supervisor_dies(walk.point)
    if walk.before:
        site.await_hits([walk.before])
    accepted = bool(site.ends(visit))
    assert accepted == (walk.point not in _NOT_ACCEPTED)
    assert accepted or reply is None
    site.start()
    if reply is None:
        # Who has no answer asks again, and that makes no second visit.
        again = site.announce(visit)
        assert again is not None
        assert (again.ok, again.code) == ((False, "duplicate") if accepted else (True, "ok"))
    (end,) = site.await_end(visit).values()
    # What the APDB has can't be made again, and its outputs are exported: see `CrashSite.faults`.
    assert end.state == "exported" or "APDB" in end.reason or "ppd ended before" in end.reason, end


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(_WHILE_STARTING[1:2], id="quick"),
        pytest.param(_WHILE_STARTING, id="all", marks=pytest.mark.slow),
    ],
)
def test_supervisor_dies_while_it_starts(site: CrashSite, points: list[str]) -> None:
    """Again and again, with the same visit unfinished."""
    visit = site.plan([next(_DETECTORS)])
    site.arm("supervisor.fork-asked")
    site.play(visit)
    site.supervisor_dies("supervisor.fork-asked")
    for point in points:
        site.die_while_starting(point)
    site.start()
    (end,) = site.await_end(visit).values()
    assert end.state == "exported", end


@pytest.mark.slow
def test_supervisor_dies_with_a_dead_letter(site: CrashSite) -> None:
    name = "no-hand-over"
    site.arm("supervisor.dead-letter-noted")
    entry = site.settings.spool_dir / "building" / name
    entry.mkdir()
    (entry / "manifest.json").write_text("{}")
    entry.rename(site.settings.spool_dir / "ready" / name)
    site.supervisor_dies("supervisor.dead-letter-noted")
    site.start()
    letter = site.settings.spool_dir / "dead-letters" / name
    wait_for(lambda: (letter / "reason.txt").exists(), 10.0, "the dead letter")
    for path in letter.iterdir():
        path.unlink()
    letter.rmdir()
