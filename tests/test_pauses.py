"""What an operator pauses: kept, shown, and visits are taken without it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest

from ppd.cli.options import parse_detectors
from ppd.cli.steering_commands import describe_paused
from ppd.errors import PpdError
from ppd.supervisor.pauses import Pauses


def test_a_start_knows_it(tmp_path: Path) -> None:
    pauses = Pauses(tmp_path / "paused.json")
    assert (pauses.all, dict(pauses.detectors)) == (None, {})
    pauses.pause([7, 3], "its bias jumps")
    pauses.pause([], "clouds")
    again = Pauses(tmp_path / "paused.json")
    assert str(again.all).endswith(" UTC: clouds")
    assert {n: p.reason for n, p in again.detectors.items()} == {3: "its bias jumps", 7: "its bias jumps"}


def test_what_is_paused_keeps_its_reason(tmp_path: Path) -> None:
    pauses = Pauses(tmp_path / "paused.json")
    pauses.pause([3], "first")
    pauses.pause([3, 4], "second")
    assert {n: p.reason for n, p in pauses.detectors.items()} == {3: "first", 4: "second"}
    pauses.pause([], "first")
    pauses.pause([], "second")
    assert pauses.all is not None
    assert pauses.all.reason == "first"


def test_going_on(tmp_path: Path) -> None:
    """With some detectors; or with all there is, the detectors included."""
    pauses = Pauses(tmp_path / "paused.json")
    pauses.pause([3, 4], "")
    pauses.pause([], "")
    pauses.resume([3, 99])
    assert list(pauses.detectors) == [4]
    assert pauses.all is not None
    pauses.resume([])
    assert (pauses.all, dict(pauses.detectors)) == (None, {})
    assert Pauses(tmp_path / "paused.json").all is None


def test_what_cant_be_written_has_not_happened(tmp_path: Path) -> None:
    pauses = Pauses(tmp_path / "gone" / "paused.json")
    with pytest.raises(PpdError, match="nothing has changed"):
        pauses.pause([3], "")
    assert not pauses.detectors


@pytest.mark.parametrize("text", ["", "{", '{"all": 3}', '{"detectors": {"x": {"since": 1}}}'])
def test_a_spoiled_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """It is said, and keeps nobody from starting."""
    (tmp_path / "paused.json").write_text(text)
    with caplog.at_level(logging.ERROR):
        pauses = Pauses(tmp_path / "paused.json")
    assert not pauses.detectors
    assert "can't be read" in caplog.text
    pauses.pause([3], "")
    assert list(Pauses(tmp_path / "paused.json").detectors) == [3]
    assert [p.name for p in tmp_path.iterdir()] == ["paused.json"]


@pytest.mark.parametrize(
    ("text", "detectors"),
    [("94", (94,)), ("3, 1", (1, 3)), ("8-10,9,2", (2, 8, 9, 10)), ("5-5", (5,))],
)
def test_lists_of_detectors(text: str, detectors: tuple[int, ...]) -> None:
    assert parse_detectors(text) == detectors


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1-2000", "0-999,1000", "1,,2", "1.5"])
def test_no_lists_of_detectors(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_detectors(text)


def test_those_of_one_reason_are_told_together() -> None:
    paused = {
        "all": None,
        "detectors": {str(n): {"since": 0.0, "reason": "cold"} for n in (4, 5, 6, 9)},
    }
    assert describe_paused(paused) == ["detectors 4-6,9: paused since 1970-01-01 00:00:00 UTC: cold"]
    assert describe_paused({"all": {"since": 0.0, "reason": ""}, "detectors": {}}) == [
        "no visits are taken: paused since 1970-01-01 00:00:00 UTC"
    ]
