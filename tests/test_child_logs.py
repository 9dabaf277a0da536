"""Children's logs: a folder a day, and not for ever."""

from __future__ import annotations

from pathlib import Path

from ppd.messages import DetectorKey
from ppd.supervisor.child_logs import log_file, prune_logs


def test_only_the_last_days_are_kept(tmp_path: Path) -> None:
    key = DetectorKey(instrument="DemoCam", group="2026-11-24T20:06:24.905#1", detector=3, attempt=2)
    paths = {day: log_file(tmp_path, day, key) for day in (20261130, 20261201, 20261202)}
    for path in paths.values():
        path.parent.mkdir(parents=True)
        path.write_text("once upon a time")
    other = tmp_path / "logs" / "notes"
    other.mkdir()
    assert prune_logs(tmp_path, 2) == [20261130]
    assert [path.exists() for path in paths.values()] == [False, True, True]
    assert other.exists(), "what is not ours is left alone"
    assert prune_logs(tmp_path, 2) == []


def test_name_is_safe() -> None:
    key = DetectorKey(instrument="DemoCam", group="2026-11-24T20:06:24.905#1", detector=3, attempt=2)
    name = log_file(Path("/state"), 20261201, key).name
    assert name == "DemoCam-2026-11-24T20_06_24.905_1-3-2.log"
