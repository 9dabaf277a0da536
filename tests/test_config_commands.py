"""``ppdctl config``: what is in the configuration, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from observatory import ISR

from ppd.cli import ctl
from ppd.cli.config_reference import write_reference
from ppd.config import Settings

_TEXT = """
instrument: DemoCam
central_repo: postgresql://ppd:pass-word@server/central
main_pipelines:
  - pipelines: [{isr}]
state_dir: state
slots: 7
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ppd.yaml"
    path.write_text(_TEXT.format(isr=ISR))
    return path


def _show(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert ctl.main(["config", "show", "--json", "--config", str(config), *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["settings"]
    return found


def test_each_with_its_place(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_TIMEOUT", "300")
    found = _show(config, capsys)
    assert set(found) == set(Settings.model_fields) - {"config_path"}
    assert (found["slots"]["value"], found["slots"]["from"]) == (7, f"{config}:7:1")
    assert (found["worker_timeout"]["value"], found["worker_timeout"]["from"]) == (
        300.0,
        "environment WORKER_TIMEOUT",
    )
    assert (found["retries"]["value"], found["retries"]["from"]) == (1, "default")
    assert found["slots"]["reload"] == "at once"
    assert found["state_dir"]["value"] == str(config.parent / "state")
    assert all(row["meaning"].endswith(".") for row in found.values())


def test_only_some(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(_show(config, capsys, "slots", "retries")) == {"retries", "slots"}
    given = {"instrument", "central_repo", "main_pipelines", "state_dir", "slots"}
    assert set(_show(config, capsys, "--set")) == given
    assert ctl.main(["config", "show", "--config", str(config), "slotz"]) == 2
    assert "no such settings: slotz" in capsys.readouterr().err


def test_no_secret_is_shown(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    for arguments in ([], ["--json"]):
        assert ctl.main(["config", "show", "--config", str(config), *arguments]) == 0
        out = capsys.readouterr().out.replace("\n", "")
        assert "pass-word" not in out
        assert "server/central" in out


def test_check(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["config", "check", "--config", str(config)]) == 0
    assert "1 pipelines can be built" in capsys.readouterr().out
    config.write_text(_TEXT.format(isr="Nothing.yaml"))
    assert ctl.main(["config", "check", "--config", str(config)]) == 2
    assert "Nothing.yaml" in capsys.readouterr().err
    config.write_text("slotz: 3\n")
    assert ctl.main(["config", "check", "--config", str(config)]) == 2
    assert f"{config}:1:1: slotz is not a setting; did you mean slots?" in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """Editors check a file by it: what is needed is said to be, and each field has its sentence."""
    assert ctl.main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["required"]) == {"instrument", "central_repo", "main_pipelines"}
    assert schema["additionalProperties"] is False
    assert all(field["description"] for field in schema["properties"].values())
    assert set(schema["properties"]) == set(Settings.model_fields) - {"config_path"}


def test_the_reference_is_current() -> None:
    """Made anew by ``make reference``."""
    page = Path(__file__).parent.parent / "docs" / "configuration.md"
    assert page.read_text() == write_reference()
