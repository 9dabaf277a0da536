"""Looking for the inputs of a visit whose detectors are announced one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppd.config import Settings
from ppd.messages import CacheView
from ppd.supervisor.counters import Counters
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.endings import Endings
from ppd.supervisor.input_seeker import InputSeeker
from ppd.supervisor.journal import Journal
from ppd.supervisor.ledger import Ledger
from ppd.supervisor.measures import Measures
from ppd.supervisor.requests import Resolve, Resolved
from ppd.supervisor.table import DetectorVisit, State, VisitEntry, VisitTable
from ppd.visit import BareVisit

VIEW = CacheView.model_construct()


class _Central:
    """Takes requests, and does not answer them by itself."""

    started_at = 0.0

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def request(self, request: Any) -> None:
        self.requests.append(request)


class _Night:
    def __init__(self, settings: Settings, journal: Journal):
        self.central: Any = _Central()
        self.table = VisitTable()
        self.deployment = Deployment("tested", settings)
        ledger = Ledger(journal, Counters(), Measures(settings))
        endings = Endings(settings, ledger, lambda d: None)
        self.seeker = InputSeeker(settings, self.central, self.table, ledger, endings)

    def announce(self, *detectors: int) -> VisitEntry:
        """Have some detectors of the visit looked for at once."""
        now = time.time()
        visit = BareVisit.model_construct(instrument="Cam", groupId="g", private_sndStamp=now + 37.0)
        planned = {
            d: DetectorVisit("Cam", "g", d, (), ("main",), accepted=now, expires=now + 60.0)
            for d in detectors
        }
        entry = self.table.add(
            VisitEntry(visit, now, 20260101, self.deployment, {}, planned, fanned_out=True)
        )
        entry.taken_on = entry.resolve_at = time.monotonic()
        self.seeker.turn(entry, time.monotonic())
        return entry


@pytest.fixture
def night(tmp_path: Path) -> Iterator[_Night]:
    settings = Settings.model_construct(inputs_timeout=60.0, message_expiration=3600.0, repo_retry_delay=1.0)
    journal = Journal(tmp_path / "journal.sqlite3")
    yield _Night(settings, journal)
    journal.close()


def _states(entry: VisitEntry) -> dict[int, State]:
    return {number: d.state for number, d in entry.detectors.items()}


def test_two_searches_at_once(night: _Night) -> None:
    """The answer to the first one says nothing of those that the second one is about."""
    night.announce(1)
    entry = night.announce(2)
    first, second = (r for r in night.central.requests if isinstance(r, Resolve))
    assert (set(first.main), set(second.main)) == ({1}, {2})
    night.seeker.resolved(Resolved("g", asked=frozenset({1}), views={1: VIEW}))
    assert _states(entry) == {1: State.WAITING, 2: State.ACCEPTED}
    night.seeker.resolved(Resolved("g", asked=frozenset({2}), views={2: VIEW}))
    assert _states(entry) == {1: State.WAITING, 2: State.WAITING}


def test_the_first_of_two_searches_fails(night: _Night) -> None:
    night.announce(1)
    entry = night.announce(2)
    night.seeker.resolved(Resolved("g", asked=frozenset({1}), error="central is away", retry=True))
    night.seeker.resolved(Resolved("g", asked=frozenset({2}), refused={2: "no bias"}))
    assert _states(entry) == {1: State.ACCEPTED, 2: State.FAILED}
    assert "no bias" in entry.detectors[2].reason
    assert entry.resolve_at is not None
