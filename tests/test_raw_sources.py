"""What the settings make of sources, and what becomes of the others when one fails."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from ppd.config import Settings
from ppd.sources.directory import DirectorySource
from ppd.sources.raws import Candidate, SourceStatus, Wanted
from ppd.sources.s3 import S3Source
from ppd.supervisor.raw_sources import RawSources, make_sources
from ppd.visit import TAI_MINUS_UTC, BareVisit

NAMES = {"R22_S11": 94, "R22_S12": 95}


def _settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(
        instrument="LSSTCam",
        central_repo="/repo",
        state_dir=Path("/tmp/state"),
        main_pipelines=[{"pipelines": ["/p/A.yaml"]}],
        raw_dirs=[tmp_path / "a", tmp_path / "b"],
        **changes,
    )


class _Recorder:
    """A source that notes what it is told, or fails at all of it."""

    def __init__(self, broken: bool = False):
        self.broken = broken
        self.told: list[Any] = []

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if self.broken:
            raise RuntimeError("broken source")

    def start(self) -> None:
        self._tell("start")

    def stop(self) -> None:
        self._tell("stop")

    def expect(self, wanted: Wanted) -> None:
        self._tell(wanted)

    def dismiss(self, group: str, detector: int) -> None:
        self._tell("dismiss", group, detector)

    def status(self) -> SourceStatus:
        self._tell("status")
        return SourceStatus("recorder")


def test_from_settings(tmp_path: Path) -> None:
    seen: list[Candidate] = []
    sources = make_sources(_settings(tmp_path), NAMES, seen.append)
    assert [type(s) for s in sources] == [DirectorySource, DirectorySource]
    settings = _settings(
        tmp_path, raw_bucket="raws", raw_prefix="/nights", raw_microservice="http://presence.example.org"
    )
    *directories, bucket = make_sources(settings, NAMES, seen.append)
    assert len(directories) == 2
    assert isinstance(bucket, S3Source)
    assert bucket.status() == SourceStatus("s3://raws/nights/")


def test_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = _Recorder(broken=True), _Recorder()
    sources = RawSources([broken, whole], NAMES)
    now = time.time()
    visit = BareVisit.model_validate(
        {
            "salIndex": 1,
            "scriptSalIndex": 1,
            "instrument": "LSSTCam",
            "groupId": "g",
            "coordinateSystem": 1,
            "startTime": now + TAI_MINUS_UTC,
            "rotationSystem": 1,
            "filters": "r_57",
            "dome": 2,
            "duration": 30.0,
            "nimages": 2,
            "survey": "S",
            "totalCheckpoints": 1,
            "private_sndStamp": now + TAI_MINUS_UTC,
        }
    )
    with caplog.at_level(logging.ERROR):
        sources.expect(visit, [95, 7], now + 100)
        sources.dismiss("g", 95)
        status = sources.status()
        sources.stop()
    (wanted,), (unnamed,), *rest = whole.told
    assert wanted == Wanted("LSSTCam", "g", 95, "R22_S12", 2, visit.startTime - TAI_MINUS_UTC, now + 100)
    assert wanted.begin == pytest.approx(now, abs=1e-3)
    assert unnamed.detector_name == "7"
    assert rest == [("dismiss", "g", 95), ("status",), ("stop",)]
    assert broken.told == whole.told
    assert status == [SourceStatus("_Recorder", "RuntimeError: broken source"), SourceStatus("recorder")]
    assert caplog.text.count("RuntimeError: broken source") == 5
