"""Deployment ID, day_obs and collection names."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import tiny_tasks

import ppd.deployment
from ppd.deployment import chain_name, date_string, day_obs, deployment_id, run_name


@pytest.mark.parametrize(
    ("utc", "day"),
    [
        ("2026-11-24T11:59:22", 20261123),
        ("2026-11-24T11:59:23", 20261124),
        ("2026-11-25T03:00:00", 20261124),
        ("2027-01-01T02:00:00", 20261231),
    ],
)
def test_day_obs_begins_at_noon_tai(utc: str, day: int) -> None:
    assert day_obs(datetime.datetime.fromisoformat(utc + "+00:00").timestamp()) == day


def test_names() -> None:
    assert date_string(20261124) == "2026-11-24"
    with pytest.raises(ValueError, match="unconverted data"):
        date_string(20261332)
    assert chain_name("DemoCam", "2026-11-24") == "DemoCam/prompt/output-2026-11-24"
    run = run_name("DemoCam", "2026-11-24", "/p/ApPipe.yaml", "d")
    assert run == "DemoCam/prompt/output-2026-11-24/ApPipe/d"
    assert run_name("DemoCam", "2026-11-24", "NoPipeline", "d").endswith("/NoPipeline/d")


def test_same_for_the_same(tmp_path: Path) -> None:
    tiny_tasks.write_pipelines(tmp_path / "pipelines")
    first = deployment_id(tiny_tasks.tiny_settings(tmp_path))
    assert re.fullmatch(r"pipelines-[0-9a-f]{7}-config-[0-9a-f]{7}", first)
    # What makes no difference to outputs makes none to the ID.
    assert deployment_id(tiny_tasks.tiny_settings(tmp_path, slots=3, log_level="DEBUG")) == first
    ppd.deployment._software.cache_clear()
    assert deployment_id(tiny_tasks.tiny_settings(tmp_path)) == first


@pytest.mark.parametrize(
    "changes", [{"apdb_config": "other"}, {"pipeline_parameters": {"a": "b"}}, {"skymap": "s"}]
)
def test_config_part(tmp_path: Path, changes: dict) -> None:
    tiny_tasks.write_pipelines(tmp_path / "pipelines")
    first = deployment_id(tiny_tasks.tiny_settings(tmp_path))
    other = deployment_id(tiny_tasks.tiny_settings(tmp_path, **changes))
    assert other[:17] == first[:17]
    assert other[17:] != first[17:]


def test_pipelines_part(tmp_path: Path) -> None:
    """A change in an imported pipeline or in a config file it names counts."""
    _, measure = tiny_tasks.write_pipelines(tmp_path / "pipelines")
    overrides = tmp_path / "overrides.py"
    overrides.write_text("config.offset = 1.0\n")
    base = tmp_path / "Base.yaml"
    base.write_text(tiny_tasks.MEASURE_YAML + f"    config: {{file: {overrides}}}\n")
    measure.write_text(f"description: m\nimports: [{{location: {base}}}]\n")
    settings = tiny_tasks.tiny_settings(tmp_path)
    seen = [deployment_id(settings)]
    overrides.write_text("config.offset = 2.0\n")
    seen.append(deployment_id(settings))
    base.write_text(base.read_text() + "  again:\n    class: tiny_tasks.MeasureTask\n")
    seen.append(deployment_id(settings))
    assert len({i[:17] for i in seen}) == 3
    assert len({i[17:] for i in seen}) == 1


def test_software_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tasks.write_pipelines(tmp_path / "pipelines")
    settings = tiny_tasks.tiny_settings(tmp_path)
    first = deployment_id(settings)
    ppd.deployment._software.cache_clear()
    monkeypatch.setattr(ppd.deployment, "distributions", lambda: [])
    other = deployment_id(settings)
    ppd.deployment._software.cache_clear()
    assert other[:17] != first[:17]
