"""Settings from file and environment, and mistakes named with their places."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppd.config import PipelineNode, Settings, find_config, load_settings, parse_size
from ppd.errors import ConfigurationError

ROOT = Path(__file__).parents[1]

MINIMAL = """\
instrument: DemoCam
central_repo: /repo
state_dir: state
main_pipelines:
  - pipelines: [pipes/Ap.yaml, $PIPES/Isr.yaml]
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ppd.yaml"
    path.write_text(text)
    return path


def _mistakes(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as e:
        load_settings(_write(tmp_path, text), environ or {})
    return str(e.value).splitlines()[1:]


def test_file(tmp_path: Path) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL), {"PIPES": "/p"})
    assert settings.main_pipelines[0].pipelines == (str(tmp_path / "pipes/Ap.yaml"), "/p/Isr.yaml")
    assert settings.state_dir == tmp_path / "state"
    assert settings.socket_dir == tmp_path / "state/sockets"
    assert settings.spool_dir == tmp_path / "state/spool"
    assert settings.local_repos == tmp_path / "state/local"
    assert settings.config_path == tmp_path / "ppd.yaml"
    assert Settings.from_dict(settings.to_dict()) == settings


def test_configuration_that_is_shipped_works() -> None:
    settings = load_settings(ROOT / "etc" / "ppd.yaml", {})
    assert settings.instrument == "DemoCam"
    assert Path(settings.central_repo).is_absolute()


def test_shipped_configuration_names_every_setting_and_default() -> None:
    text = (ROOT / "etc" / "ppd.yaml").read_text()
    for name, field in Settings.model_fields.items():
        if name == "config_path":
            continue
        match = re.search(rf"^(# )?{name}:(.*)$", text, re.MULTILINE)
        assert match, name
        value = yaml.safe_load(match[2])
        if match[1] and isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert parse_size(value) == field.default, name


def test_every_setting_has_its_sentence() -> None:
    for model in (Settings, PipelineNode):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_environment_wins(tmp_path: Path) -> None:
    environ = {
        "PIPES": "/p",
        "RUBIN_INSTRUMENT": "LATISS",
        "CENTRAL_REPO": "embargo",
        "READ_CENTRAL_REPO": "",
        "CONFIG_APDB": "s3://bucket/apdb.yaml",
        "PREPROCESSING_PIPELINES_CONFIG": "- pipelines: None",
        "MAIN_PIPELINES_CONFIG": (
            "- survey: BLOCK\n  ra: {min: 340, max: 20}\n  binary-map: /m.fits\n  coord-type: boresight\n"
            "  pipelines: ['${PIPES}/X.yaml']\n- pipelines: []\n"
        ),
        "IMAGE_TIMEOUT": "7.5",
        "EXPORT_TYPE_REGEXP": "- .*_visit\n- dia.*",
        "IMAGE_BUCKET": "rubin:raws",
        "S3_ENDPOINT_URL": "https://s3.example.org",
        "RAW_MICROSERVICE": "http://presence:8080/p",
        "LOCAL_REPOS": "/tmp/repos",
        "SERVICE_LOG_LEVELS": "lsst=DEBUG .=warning",
        "UNRELATED": "x",
    }
    settings = load_settings(_write(tmp_path, MINIMAL), environ)
    assert settings.instrument == "LATISS"
    assert settings.central_repo == "embargo"
    assert settings.read_central_repo is None
    assert settings.parameters == {"apdb_config": "s3://bucket/apdb.yaml"}
    assert settings.preprocessing_pipelines[0].pipelines == ()
    first, second = settings.main_pipelines
    assert first.pipelines == ("/p/X.yaml",)
    assert first.binary_map == Path("/m.fits")
    assert first.coord_type == "boresight"
    assert second.pipelines == ()
    assert settings.image_timeout == 7.5
    assert settings.export_types == (".*_visit", "dia.*")
    assert settings.raw_bucket == "rubin:raws"
    assert settings.s3_endpoint == "https://s3.example.org"
    assert settings.raw_microservice == "http://presence:8080/p"
    assert settings.local_repos == Path("/tmp/repos")
    assert settings.log_levels == {"lsst": "DEBUG", ".": "WARNING"}


def test_environment_alone() -> None:
    environ = {
        "RUBIN_INSTRUMENT": "LSSTCam",
        "CENTRAL_REPO": "/repo",
        "MAIN_PIPELINES_CONFIG": "[{pipelines: [/p/A.yaml]}]",
    }
    settings = load_settings(None, environ)
    assert settings.state_dir == Path("/var/lib/ppd")
    assert settings.config_path is None


def test_every_mistake_at_once_with_its_place(tmp_path: Path) -> None:
    text = """\
instrument: DemoCam
centrl_repo: /repo
state_dir: state
slots: none
cache_bytes: 4 gigs
export_types: ["(", ok]
main_pipelines:
  - pipelines: [a/X.yaml, b/X.yaml]
  - ra: {min: 3}
    dec: {min: 5, max: 3}
    pipelines: [$NOWHERE/Y.yaml]
    bianry-map: m.fits
heartbeat_timeout: 1
slots: 3
"""
    environ = {"IMAGE_TIMEOUT": "soon", "PREPROCESSING_PIPELINES_CONFIG": "- pipelines:\n  survey: {a: 1}\n"}
    found = _mistakes(tmp_path, text.replace("slots: 3\n", "slots: many\n"), environ)
    path = tmp_path / "ppd.yaml"
    expected = [
        f"{path}: central_repo is missing (or set CENTRAL_REPO)",
        rf"{path}:2:1: centrl_repo is not a setting; did you mean central_repo?",
        f"{path}:14:1: slots is given twice",
        f"{path}:5:14: cache_bytes: not a size",
        f"{path}:6:16: export_types.0: not a regular expression",
        f"{path}:8:16: main_pipelines.0.pipelines: two pipeline files of one node have the same name: X",
        f"{path}:9:9: main_pipelines.1.ra.max is missing",
        f"{path}:10:10: main_pipelines.1.dec: min is greater than max",
        f"{path}:11:17: environment variable NOWHERE is not set",
        f"{path}:12:5: main_pipelines.1.bianry-map is not a setting; did you mean binary-map?",
        f"{path}:13:20: heartbeat_timeout: must be longer",
        "environment IMAGE_TIMEOUT: image_timeout: ",
        "environment PREPROCESSING_PIPELINES_CONFIG, line 2, column 11: preprocessing_pipelines.0.survey: ",
    ]
    for text in expected:
        assert any(line.startswith(text) for line in found), (text, found)
    assert len(found) == len(expected) + 1, "\n".join(found)  # and what slots is
    assert any("slots: Input should be a valid integer" in line for line in found)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1\nb: 2\n", r"ppd\.yaml:2:2: not YAML"),
        ("- a\n", r"ppd\.yaml:1:1: must be a mapping"),
        ("instrument: !!python/object:os.system {}\n", "not YAML"),
        ("3: x\n" + MINIMAL, "3 is not the name of a setting"),
        (MINIMAL + "config_path: /x\n", r"ppd\.yaml:6:1: config_path is not a setting"),
        ("", "instrument is missing"),
        (MINIMAL + "main_pipelines: []\n", "main_pipelines is given twice"),
        (MINIMAL + "worker_timeout: .nan\n", r":6:17: worker_timeout: "),
        (MINIMAL + "raw_bucket: s3://raws\n", r":6:13: raw_bucket: "),
        (MINIMAL + "s3_endpoint: s3.example.org\n", r":6:14: s3_endpoint: "),
        (MINIMAL + "raw_microservice: http://x\n", r":6:19: raw_microservice: needs raw_bucket"),
        (MINIMAL + "raw_poll_min: 3\nraw_poll_max: 2\n", r":7:15: raw_poll_max: must not be shorter"),
        (MINIMAL + "log_level: loud\n", r":6:12: log_level: not a log level"),
        (MINIMAL + f"socket_dir: /{'x' * 90}\n", r":6:13: socket_dir: .*107"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, match: str) -> None:
    lines = _mistakes(tmp_path, text, {"PIPES": "/p"})
    assert any(re.search(match, line) for line in lines), lines


def test_default_socket_dir_too_long(tmp_path: Path) -> None:
    lines = _mistakes(tmp_path, MINIMAL.replace("state\n", f"/{'y' * 90}\n"), {"PIPES": "/p"})
    assert any("set socket_dir to a shorter path" in line for line in lines)


def test_unreadable_file_and_environment_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as e:
        load_settings(tmp_path / "none.yaml", {"IMAGE_TIMEOUT": "-3"})
    assert "none.yaml: can't be read: No such file" in str(e.value)
    assert "environment IMAGE_TIMEOUT" in str(e.value)
    assert "missing" not in str(e.value)


def test_broken_yaml_in_environment(tmp_path: Path) -> None:
    lines = _mistakes(tmp_path, MINIMAL, {"PIPES": "/p", "MAIN_PIPELINES_CONFIG": "- a: [\n"})
    assert len(lines) == 1
    assert lines[0].startswith("environment MAIN_PIPELINES_CONFIG, line 2, column 1: not YAML")


def test_not_yet_used_environment_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_settings(_write(tmp_path, MINIMAL), {"PIPES": "/p", "KAFKA_CLUSTER": "b"})
    assert "KAFKA_CLUSTER" in caplog.text


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("4 GiB", 4 << 30), ("500MB", 500_000_000), ("1.5k", 1500), ("2 tib", 2 << 40), (7, 7)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


def test_find_config(tmp_path: Path) -> None:
    assert find_config(Path("a"), {"PPD_CONFIG": "b"}) == Path("a")
    assert find_config(None, {"PPD_CONFIG": "b"}) == Path("b")


def test_frozen(tmp_path: Path) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL), {"PIPES": "/p"})
    with pytest.raises(ValueError, match="frozen"):
        settings.slots = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("prompt-redis", "redis://prompt-redis"),
        (" prompt-redis:6380 ", "redis://prompt-redis:6380"),
        ("[::1]:6379", "redis://[::1]:6379"),
        ("redis://user:pass-word@h:6379/3", "redis://user:pass-word@h:6379/3"),
        ("rediss://h", "rediss://h"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_where_the_stream_is(tmp_path: Path, given: str, found: str) -> None:
    """By the names of prompt_processing, which knows just a host."""
    environ = {
        "PIPES": "/p",
        "REDIS_STREAM_HOST": given,
        "REDIS_STREAM_CONSUMER_GROUP": "workers",
        "REDIS_RETRY_DELAY": "7",
    }
    settings = load_settings(_write(tmp_path, MINIMAL), environ)
    assert (settings.redis_url, settings.redis_group, settings.redis_retry_delay) == (found, "workers", 7.0)
    assert settings.redis_stream == f"instrument:{settings.instrument.lower()}"


@pytest.mark.parametrize(
    "given",
    [
        "http://h",
        "redis://",
        "h:port",
        "h:99999",
        "h:0",
        "redis://h/name",
        "rediss://h?ssl_cert_reqs=none",
        "unix://",
    ],
)
def test_nowhere_to_find_the_stream(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigurationError, match="no URL of a Redis server"):
        load_settings(_write(tmp_path, MINIMAL), {"PIPES": "/p", "REDIS_STREAM_HOST": given})
