"""Wherever a process is made to die: what was accepted is accounted for, and nothing is there twice."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from crash_evidence import End
from crash_site import DETECTORS, RETRIES, STREAM, CrashSite
from observatory import wait_for

from ppd.crash_points import CRASH_POINTS

pytestmark = [pytest.mark.night, pytest.mark.slow]

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
    """Where another process has to die before."""
    quick: bool = False
    """Whether it is walked by each ``make test``."""

    def __str__(self) -> str:
        return "-".join((self.point, *self.words))


_SUPERVISOR = [
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
    Walk("supervisor.phase-noted", ("pipeline_end",)),
    Walk("supervisor.phase-noted", ("handed_over",)),
    Walk("supervisor.last-word-heard"),
    Walk("supervisor.child-end-heard"),
    Walk("supervisor.ending-not-decided"),
    Walk("supervisor.remains-removed"),
    Walk("supervisor.ending-decided"),
    Walk("supervisor.retry-noted", before="child.raw-ingested"),
    Walk("supervisor.look-back-noted", before="child.graph-built"),
    Walk("supervisor.export-heard"),
    Walk("supervisor.export-noted"),
    Walk("supervisor.discard-not-sent", quick=True),
    Walk("supervisor.discard-sent"),
]
_WHILE_STARTING = [
    "supervisor.recovery-not-begun",
    "supervisor.recovery-visit-taken",
    "supervisor.recovery-committed",
    "supervisor.recovery-done",
    "supervisor.ready",
    "supervisor.nursery-ready",
]
_NURSERY = [
    Walk("nursery.fork-request-read"),
    Walk("nursery.forked", quick=True),
    Walk("nursery.fork-said"),
    Walk("nursery.child-reaped"),
    Walk("nursery.exit-said"),
    Walk("nursery.inputs-held", before="nursery.fork-said"),
]
_EXPORTER = [
    Walk("exporter.batch-chosen"),
    Walk("exporter.manifest-read"),
    Walk("exporter.files-verified"),
    Walk("exporter.collections-registered"),
    Walk("exporter.records-in-transaction"),
    Walk("exporter.records-inserted"),
    Walk("exporter.not-ingested"),
    Walk("exporter.ingested", quick=True),
    Walk("exporter.report-not-sent", ("Exported",), quick=True),
    Walk("exporter.report-sent", ("Exported",)),
    Walk("exporter.discard-read"),
    Walk("exporter.hand-over-not-removed"),
    Walk("exporter.hand-over-removed"),
    Walk("exporter.spool-locked", before="exporter.batch-chosen"),
]
# With a hand-over that can't be exported.
_DEAD_LETTER = [
    Walk("exporter.dead-letter-not-moved"),
    Walk("exporter.dead-letter-moved", quick=True),
    Walk("exporter.report-not-sent", ("SetAside",)),
    Walk("exporter.report-sent", ("SetAside",)),
    Walk("supervisor.dead-letter-noted"),
]
# With nine entries of a stream.
_STREAM = [
    Walk("supervisor.entries-read"),
    Walk("supervisor.entries-not-confirmed", quick=True),
    Walk("supervisor.entries-confirmed"),
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
    "child.manifest-sum-written": _FINAL,
    "child.manifest-written": _FINAL,
    "child.hand-over-built": _FINAL,
    "child.handed-over": _DONE,
    "child.source-removed": _DONE,
    "child.hand-over-said": _DONE,
    "child.last-word-not-said": _DONE,
    "child.last-word-said": _DONE,
    "child.repo-removed": _DONE,
}
_ALONE = {"child.graph-built", "child.looked-back", "exporter.batch-refused"}


def _params(*kinds: Sequence[Walk]) -> list[object]:
    """One of each kind in turn.

    A process that has died soon is started again later each time, unless its
    supervisor has died meanwhile.
    """
    params = []
    for quick in (True, False):
        chosen = [[w for w in walks if w.quick == quick] for walks in kinds]
        for walks in itertools.zip_longest(*chosen):
            marks = () if quick else pytest.mark.slow
            params += [pytest.param(w, id=str(w), marks=marks) for w in walks if w is not None]
    return params


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
        faults = [f for visit in site.visits for f in site.evidence.faults(visit)]
        assert faults == []
        assert site.evidence.strangers(site.visits) == set()
        assert site.evidence.orphans() == set()
        assert site.left_in_spool() == sorted(f"dead-letters/{name}" for name in site.evidence.dead_letters)
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
    walks = [*_SUPERVISOR, *_NURSERY, *_EXPORTER, *_DEAD_LETTER, *_STREAM]
    walked = {w.point for w in walks} | {*_WHILE_STARTING, *_CHILD} | _ALONE
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


# The others: the supervisor starts another one, and another supervisor takes up what is there


@pytest.mark.parametrize("walk", _params(_SUPERVISOR, _EXPORTER, _NURSERY))
def test_dies(site: CrashSite, walk: Walk) -> None:
    if CRASH_POINTS[walk.point].process == "supervisor":
        _supervisor_dies(site, walk)
    else:
        _helper_dies(site, walk)


def _helper_dies(site: CrashSite, walk: Walk) -> None:
    """Nursery or exporter."""
    site.begin_anew()
    visit = site.plan([next(_DETECTORS)])
    points = [p for p in (walk.before, walk.point) if p]
    for point in points:
        site.arm(point, *(walk.words if point == walk.point else ()))
    reply = site.play(visit)
    assert reply is not None and reply.ok
    site.await_hits(points)
    (end,) = site.await_end(visit).values()
    assert end.state == "exported", end


def _supervisor_dies(site: CrashSite, walk: Walk) -> None:
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
    accepted = bool(site.evidence.ends(visit))
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
    assert end.state == "exported" or "the APDB has sources of visit" in end.reason, end


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


# What a stream announces


@pytest.mark.parametrize("walk", _params(_STREAM))
def test_dies_with_a_stream(site: CrashSite, walk: Walk) -> None:
    """Each detector is accepted once and confirmed, whatever ppd knew of it and the stream did not."""
    visit = site.plan(range(DETECTORS))
    site.arm(walk.point)
    site.announce_by_stream(visit)
    site.deliver(visit)
    site.supervisor_dies(walk.point)
    confirmed, accepted = (
        walk.point.endswith("-confirmed") and "not" not in walk.point,
        "read" not in walk.point,
    )
    assert site.redis.pending(STREAM) == (0 if confirmed else DETECTORS)
    assert len(site.evidence.ends(visit)) == (DETECTORS if accepted else 0)
    site.start()
    wait_for(lambda: site.redis.pending(STREAM) == 0, 30.0, "all to be confirmed")
    ends = site.await_end(visit)
    assert {end.state for end in ends.values()} <= {"exported", "failed"}
    status = site.status()
    (source,) = status["visit_sources"]
    again = 0 if confirmed else DETECTORS
    assert (source["read"], source["confirmed"], source["trouble"]) == (again, again, None)
    # Known, or new; never both.
    assert status["counts"].get("visits_duplicate", 0) == (again if accepted else 0)
    assert status["counts"].get("visits_accepted", 0) == (0 if accepted else DETECTORS)


# What can't be exported


@pytest.mark.parametrize("walk", _params(_DEAD_LETTER))
def test_dies_with_a_dead_letter(site: CrashSite, walk: Walk) -> None:
    """A file of a hand-over is damaged before it is exported; what is told of it is told all the same."""
    site.begin_anew()
    visit = site.plan([next(_DETECTORS)])
    site.arm("exporter.manifest-read")
    site.play(visit)
    site.await_hits(["exporter.manifest-read"])
    (entry,) = site.ready()
    file = next(p for p in sorted(entry.iterdir()) if p.suffix == ".fits")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    site.evidence.dead_letters.add(entry.name)
    site.arm(walk.point, *walk.words)
    if walk.point.startswith("supervisor."):
        site.supervisor_dies(walk.point)
        site.start()
    else:
        site.await_hits([walk.point])
    (end,) = site.await_end(visit).values()
    assert end.state == "failed"
    assert "its outputs can't be exported" in end.reason, end
    letter = site.settings.spool_dir / "dead-letters" / entry.name
    wait_for(lambda: (letter / "reason.json").exists(), 20.0, "the reason")
    assert file.name in (letter / "reason.json").read_text()


@pytest.mark.slow
def test_dies_when_a_batch_is_refused(site: CrashSite, tmp_path: Path) -> None:
    """Two hand-overs have other datasets for data IDs that central has: both are set aside."""
    site.begin_anew()
    visit = site.plan(range(2))
    site.evidence.watch.keep = tmp_path
    site.play(visit)
    site.await_end(visit)
    site.arm("exporter.batch-refused")
    site.forge(visit)
    site.await_hits(["exporter.batch-refused"])
    wait_for(lambda: not site.ready(), 30.0, "both to be set aside")
    assert site.evidence.faults(visit) == []
