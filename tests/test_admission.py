"""For which night a message is taken."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_visit import message

from ppd.config import Settings
from ppd.demo.camera import focal_plane
from ppd.deployment import date_string, day_obs
from ppd.supervisor.admission import admit
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.table import VisitEntry
from ppd.visit import TAI_MINUS_UTC


def _admit(tmp_path: Path, accepted: float | None) -> VisitEntry:
    fields = {
        "instrument": "DemoCam",
        "central_repo": "x",
        "main_pipelines": [{"pipelines": ["Isr.yaml"]}],
        "state_dir": tmp_path,
    }
    plane = focal_plane()
    settings = Settings.model_validate(fields)
    return admit(
        message(private_sndStamp=time.time() + TAI_MINUS_UTC),
        settings=settings,
        deployment=Deployment("abc1234", settings),
        focal_plane=plane,
        detectors=frozenset(d.id for d in plane.detectors),
        filters={"demo-r": "r"},
        known=lambda instrument, group: set(),
        accepted=accepted,
        only=None if accepted is None else [1, 2],
    )


@pytest.mark.parametrize("days", [0, 1, 5])
def test_what_is_taken_up_again_is_of_its_night(tmp_path: Path, days: int) -> None:
    """Outputs of yesterday's visits go to yesterday's runs, whenever they are made."""
    accepted = time.time() - days * 86400.0
    entry = _admit(tmp_path, accepted)
    assert (entry.day_obs, entry.accepted) == (day_obs(accepted), accepted)
    assert sorted(entry.detectors) == [1, 2]
    date = date_string(day_obs(accepted))
    assert all(f"output-{date}/" in run for run in entry.runs.values()), entry.runs


def test_what_is_new_is_of_today(tmp_path: Path) -> None:
    before = day_obs(time.time())
    entry = _admit(tmp_path, None)
    assert entry.day_obs in (before, day_obs(time.time()))
    assert len(entry.detectors) == 9
