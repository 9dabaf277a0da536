"""What a reload means for each setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ppd.config import Settings
from ppd.supervisor.setting_kinds import KINDS, Kind, SettingsInForce, compare, in_force

_WORKERS = Path(__file__).parent.parent / "ppd" / "workers"


def _settings(**changes: object) -> Settings:
    given = {"instrument": "Cam", "central_repo": "/repo", "main_pipelines": [{"pipelines": ["/a/Isr.yaml"]}]}
    return Settings.from_dict({**given, **changes})


def test_every_setting_is_classed() -> None:
    assert KINDS.keys() == Settings.model_fields.keys()


def test_what_children_read_is_not_changed_under_them() -> None:
    used = set()
    for path in _WORKERS.glob("*.py"):
        used.update(re.findall(r"\bsettings\.(\w+)", path.read_text()))
    used = (used - {"parameters", "from_dict", "to_dict"}) & KINDS.keys()
    assert len(used) > 15
    assert [name for name in sorted(used) if KINDS[name] is Kind.AT_ONCE] == []


def test_compare() -> None:
    old = _settings(slots=3, apdb_config="postgresql://ppd:secret@db/apdb")
    new = _settings(slots=4, apdb_config="postgresql://ppd:other@db/apdb", state_dir="/s")
    changes = {c.name: c for c in compare(old, new)}
    assert {n: c.kind for n, c in changes.items()} == {
        "slots": Kind.AT_ONCE,
        "apdb_config": Kind.NURSERY,
        **dict.fromkeys(("state_dir", "socket_dir", "local_repos", "spool_dir"), Kind.RESTART),
    }
    assert str(changes["slots"]) == "slots: 3 -> 4 (at once)"
    assert "secret" not in str(changes["apdb_config"])
    assert compare(old, old) == []


def test_in_force() -> None:
    holder = SettingsInForce(_settings(slots=3))
    settings = in_force(holder)
    assert (settings.slots, settings.to_dict()["slots"]) == (3, 3)
    holder.replace(_settings(slots=4))
    assert settings.slots == 4
    with pytest.raises(AttributeError):
        settings.no_such_setting  # noqa: B018
