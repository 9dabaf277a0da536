"""Settings: whatever the file and the environment hold, there are settings or mistakes with their places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings

from ppd._settings_sources import ENVIRONMENT
from ppd.config import PipelineNode, Settings, load_settings, parse_size
from ppd.errors import ConfigurationError

_VALID: dict[str, Any] = {
    "instrument": "DemoCam",
    "central_repo": "/repo",
    "state_dir": "/tmp/ppd-state",
    "main_pipelines": [
        {"survey": "A", "ra": {"min": 350, "max": 10}, "pipelines": ["/p/A.yaml", "/p/B.yaml"]},
        {"pipelines": None},
    ],
}
_NAMES = [name for name in Settings.model_fields if name != "config_path"]
_NODE_NAMES = [field.alias or name for name, field in PipelineNode.model_fields.items()]

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(
        ["~nobody-of-that-name/x", "a\0b", "$NOT_SET", "${", "9" * 400, "a{99999999999}", "(" * 2000]
    )
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*_NODE_NAMES, "min", "max"]) | _SCALARS, inner, max_size=3)
    ),
    max_leaves=6,
)
_SETTINGS = st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=8) | _SCALARS, _VALUES, max_size=4)
# Where a mistake is: the file with line and column, or a variable by name.
_PLACE = re.compile(r"(/.*?ppd\.yaml(:\d+:\d+)?|environment( \w+)?(, line \d+, column \d+)?): ", re.DOTALL)


def _load(folder: Path, data: str | bytes, environ: dict[str, str] | None = None) -> Settings | list[str]:
    """Read settings; return them, or the mistakes."""
    path = folder / "ppd.yaml"
    path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    try:
        return load_settings(path, environ or {})
    except ConfigurationError as e:
        head, *mistakes = str(e).split("\n")
        assert head == "The configuration can't be used:"
        assert mistakes
        assert all(_PLACE.match(mistake) for mistake in mistakes), mistakes
        return mistakes


def _check(found: Settings | list[str]) -> None:
    if isinstance(found, Settings):
        # Those that are accepted are of use: they go to the nursery as JSON.
        assert Settings.from_dict(found.to_dict()) == found
        assert found.slots >= 1
        assert found.main_pipelines


_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(_FOLDER, max_examples=300)
@given(_SETTINGS, st.sets(st.sampled_from(list(_VALID)), max_size=2))
@example({"cache_bytes": "9" * 400}, set())
@example({"export_types": ["a{99999999999999}"]}, set())
@example({"export_types": ["(" * 5000 + ")" * 5000]}, set())
@example({"central_repo": "~nobody-of-that-name/x"}, set())
@example({"spool_dir": "a\0b"}, set())
def test_any_values(tmp_path: Path, changes: dict[Any, Any], without: set[str]) -> None:
    fields = {name: value for name, value in _VALID.items() if name not in without} | changes
    _check(_load(tmp_path, yaml.dump(fields, allow_unicode=True, sort_keys=False)))


@settings(_FOLDER, max_examples=150)
@given(st.data())
def test_disturbed_text(tmp_path: Path, data: st.DataObject) -> None:
    """A text that lost, gained or changed some characters."""
    text = yaml.safe_dump(_VALID, sort_keys=False)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(at + 5, len(text))))
        new = data.draw(st.text("[]{}&*!|>:-,?#%@'\"\n\t \0\x07\ufffe\u2028a1~=<$", max_size=3))
        text = text[:at] + new + text[until:]
    _check(_load(tmp_path, text))


@settings(_FOLDER, max_examples=60)
@given(st.binary(max_size=60))
def test_bytes(tmp_path: Path, data: bytes) -> None:
    assert isinstance(_load(tmp_path, data), list)


def test_numbers_beyond_all_numbers(tmp_path: Path) -> None:
    """Hexadecimal ones have no limit of digits."""
    text = yaml.safe_dump(_VALID)
    for name in ("slots", "retries", "cache_bytes", "running"):
        assert isinstance(_load(tmp_path, f"{text}{name}: 0x{'f' * 5000}\n"), list)


_TAGS = [
    "int",
    "float",
    "bool",
    "null",
    "timestamp",
    "binary",
    "omap",
    "pairs",
    "set",
    "seq",
    "map",
    "str",
    "python/x",
]


@settings(_FOLDER, max_examples=100)
@given(
    st.sampled_from(_TAGS),
    st.sampled_from(["x", "", "[x]", "{x: y}", "[[x]]", "'9'", "2001-99-99"]),
    st.booleans(),
)
def test_tags(tmp_path: Path, tag: str, value: str, in_environment: bool) -> None:
    """YAML's constructors raise whatever they run into."""
    text = yaml.safe_dump(_VALID)
    if in_environment:
        _check(_load(tmp_path, text, {"MAIN_PIPELINES_CONFIG": f"- !!{tag} {value}"}))
    else:
        _check(_load(tmp_path, f"{text}skymap: !!{tag} {value}\n"))


@settings(_FOLDER, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(list(ENVIRONMENT)),
        # What an environment can hold: no NUL, and bytes that are not UTF-8.
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
        | st.text("[]{}&*!|>:-,?#%@'\"\n\t \x07\udcff", max_size=8)
        | _VALUES.map(lambda value: yaml.dump(value).replace("\0", "")),
        max_size=4,
    )
)
def test_any_environment(tmp_path: Path, environ: dict[str, str]) -> None:
    _check(_load(tmp_path, yaml.safe_dump(_VALID), environ))


_WRONG: dict[str, Any] = {
    "slots": "many",
    "worker_timeout": float("nan"),
    "cache_bytes": "9" * 400,
    "export_types": ["a{99999999999999}"],
    "spool_dir": "a\0b",
    "local_repos": "~nobody-of-that-name",
    "log_level": "loud",
    "skymap": [1],
    "raw_dirs": 5,
    "retries": -1,
    "log_format": "xml",
    "instrument": "",
    "main_pipelines": [],
    "surprise": 1,
}


@settings(_FOLDER, max_examples=80)
@given(st.sets(st.sampled_from(list(_WRONG)), min_size=1))
def test_each_mistake_has_its_place(tmp_path: Path, names: set[str]) -> None:
    """As many mistakes as there are, each at the line of its own setting."""
    fields = {**_VALID, **{name: _WRONG[name] for name in names}}
    text = yaml.safe_dump(fields, sort_keys=False, width=10**6)
    found = _load(tmp_path, text)
    assert isinstance(found, list)
    lines = text.splitlines()
    at = set()
    for mistake in found:
        match = re.match(r".*/ppd\.yaml:(\d+):\d+: ", mistake)
        assert match, mistake
        number = int(match[1]) - 1
        while lines[number].startswith(("-", " ")):
            number -= 1  # an item of a list
        at.add(lines[number].partition(":")[0])
    assert at == names
    assert len(found) == len(names)


@settings(deadline=None)
@given(st.integers(0, 2**62), st.sampled_from(["", "K", "M", "G", "T"]), st.booleans())
def test_sizes(number: int, prefix: str, binary: bool) -> None:
    text = f"{number} {prefix}{'i' if binary else ''}B"
    factor = (1024 if binary else 1000) ** " KMGT".index(prefix or " ")
    size = parse_size(text)
    assert isinstance(size, int)
    assert size == pytest.approx(number * factor, rel=1e-15)


@given(st.text() | st.text("0123456789. KMGTiB", max_size=500))
@example("9" * 400)
def test_no_sizes(text: str) -> None:
    try:
        assert isinstance(parse_size(text), int)
    except ValueError:
        pass
