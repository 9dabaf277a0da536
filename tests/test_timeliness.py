"""Each detector-visit is judged once, whatever is tried again, and whoever runs meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from ppd.config import Settings
from ppd.deployment import day_obs
from ppd.supervisor.counters import Counters
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.history import show_detector
from ppd.supervisor.journal import Journal
from ppd.supervisor.ledger import Ledger
from ppd.supervisor.measures import Measures
from ppd.supervisor.table import DetectorVisit, State, VisitEntry
from ppd.supervisor.timeliness import Timeliness, count_timeliness
from ppd.visit import BareVisit
from ppd.web.journal import past

_MESSAGE = {"instrument": "Cam", "groupId": "g", "coordinateSystem": 1, "rotationSystem": 1}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    nodes = [{"pipelines": ["Isr.yaml"]}]
    return Settings.model_validate(
        {"instrument": "Cam", "central_repo": "x", "main_pipelines": nodes, "state_dir": tmp_path}
    )


class _Site:
    """What a supervisor writes down, and the next one after it."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.settings.state_dir / "journal.sqlite3")
        self.ledger = Ledger(self.journal, Counters(), Measures(self.settings))

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def announced(self) -> DetectorVisit:
        """Detector 4 of a visit, as it is accepted or taken up."""
        now = time.time()
        visit = BareVisit.model_construct(**_MESSAGE)
        d = DetectorVisit("Cam", "g", 4, (), ("Isr.yaml",), accepted=now, expires=now + 600, announced=now)
        deployment = Deployment("deployment", self.settings)
        self.ledger.recall(VisitEntry(visit, now, day_obs(now), deployment, {}, {4: d}))
        return d

    def process(self, d: DetectorVisit, *, success: bool, shutter: float | None) -> None:
        """Let it run; ``shutter``: how many seconds ago the shutter closed, `None`: no raw comes."""
        self.ledger.change(d, State.WAITING)
        if shutter is not None:
            d.closed = time.time()
            self.ledger.event(d, "raw_seen", closed=d.closed)
            self.ledger.event(d, "ingested", shutter_closed=time.time() - shutter)
        if success:
            self.ledger.event(d, "pipeline_end", success=True)
        self.ledger.change(d, State.EXPORTED if success else State.FAILED)
        self.journal.commit()

    def counted(self) -> dict[str, int]:
        """What the metrics have, but for what there is none of."""
        lines = generate_latest(self.ledger.measures.registry).decode().splitlines()
        samples = dict(line.split() for line in lines if line.startswith("ppd_alerts_total{"))
        return {k.split('"')[1]: int(float(v)) for k, v in samples.items() if float(v)}


@pytest.fixture
def site(settings: Settings) -> Iterator[_Site]:
    site = _Site(settings)
    site.journal.visit_accepted("Cam", "g", [4], _MESSAGE, "test")
    yield site
    site.journal.close()


def test_what_is_tried_again_is_not_judged_again(site: _Site) -> None:
    d = site.announced()
    site.process(d, success=False, shutter=5.0)
    assert site.counted() == {"never": 1}
    again = site.announced()
    assert again.alerts is Timeliness.NEVER
    site.process(again, success=True, shutter=5.0)
    assert site.counted() == {"never": 1}
    assert show_detector(site.settings.state_dir, "g", 4).line.alerts == "never"


@pytest.mark.parametrize(("shutter", "judged"), [(5.0, "never"), (None, "not_judged")])
def test_nor_under_another_supervisor(site: _Site, shutter: float | None, judged: str) -> None:
    """Prometheus adds up what both have counted. Without a raw the first end counts as well."""
    site.process(site.announced(), success=False, shutter=shutter)
    assert site.counted() == ({"never": 1} if shutter else {})
    site.restart()
    again = site.announced()
    site.process(again, success=True, shutter=5.0)
    assert site.counted() == {}
    assert again.alerts == judged


def test_an_attempt_that_ppd_repeats_itself_is_no_end(site: _Site) -> None:
    d = site.announced()
    site.ledger.change(d, State.RUNNING)
    d.next_attempt(0.0)
    site.ledger.change(d, State.WAITING, reason="its child was killed")
    assert d.alerts is None
    site.process(d, success=True, shutter=70.0 - 15.0)
    assert site.counted() == {"on_time": 1}


@pytest.mark.parametrize(
    ("success", "shutter", "judged"),
    [(True, 5.0, "on_time"), (False, 5.0, "never"), (True, 600.0, "not_judged"), (False, None, "not_judged")],
)
def test_what_the_journal_tells_is_the_same(
    site: _Site, success: bool, shutter: float | None, judged: str
) -> None:
    """For `show`, and for the status page after a restart."""
    d = site.announced()
    site.process(d, success=success, shutter=shutter)
    assert d.alerts == judged
    assert show_detector(site.settings.state_dir, "g", 4).line.alerts == judged
    shown = past(site.settings.state_dir)
    assert shown.detectors["4"]["alerts"] == judged
    assert shown.visits[0]["alerts"] == {judged: 1}


def test_counts_are_of_all_detectors(site: _Site) -> None:
    d, expected, done = site.announced(), site.announced(), site.announced()
    expected.expected_late = done.expected_late = True
    site.process(done, success=True, shutter=5.0)
    counts = count_timeliness([d, expected, done])
    assert {name: n for name, n in counts.items() if n} == {"on_time": 1, "expected_late": 1, "open": 1}
