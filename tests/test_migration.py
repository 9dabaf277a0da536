"""``ppdctl config from-prompt-processing``: values of a chart, ``env``, and lists of Kubernetes."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from observatory import ISR

from ppd._settings_sources import ENVIRONMENT
from ppd.cli import ctl
from ppd.cli.foreign_environment import VALUES
from ppd.cli.migration import _ALSO, _REASONS, _SECRETS, _STAYS
from ppd.config import load_settings

_GUIDE = Path(__file__).parent.parent / "docs" / "moving-over.md"

# In the shape of Phalanx: an application's own values, and what a site sets over them.
_DEFAULTS = """
prompt-keda:
  image: {repository: ghcr.io/example/prompt-service, pullPolicy: IfNotPresent, tag: latest}
  worker: {restart: 0, grace_period: 45, timeout: 900}
  instrument:
    name: LSSTCam
    pipelines: {main: "", preprocessing: ""}
    skymap: lsst_cells_v1
    preloadPadding: 50
    centralRepo: ""
    repoWait: 30
  cache: {baseSize: 3, refcatsPerImage: 6, patchesPerImage: 16}
  s3: {imageBucket: "", endpointUrl: "", auth_env: true, disableBucketValidation: 0, checksum: WHEN_REQUIRED}
  raw_microservice: ""
  imageNotifications: {kafkaClusterAddress: "", topic: "", consumerOffsetReset: latest, imageTimeout: 20}
  apdb: {config: ""}
  alerts: {username: "", server: "", topic: ""}
  logLevel: ""
  sasquatch: {endpointUrl: "", namespace: lsst.prompt, auth_env: true}
  debug: {exportOutputs: true, monitorDaxApdb: false}
  keda:
    minReplicaCount: 3
    redisStreams: {host: prompt-redis, streamName: "instrument:lsstcam", expiration: 3600}
  resources: {limits: {cpu: 1, memory: 8Gi}}
  podAnnotations: {}
"""
_SITE = """
prompt-keda:
  image: {tag: 11.1.0}
  instrument:
    pipelines:
      main: |-
        - survey: BLOCK-407  # the survey before operations
          pipelines:
          - ${PROMPT_PROCESSING_DIR}/pipelines/LSSTCam/ApPipe.yaml
          - ${PROMPT_PROCESSING_DIR}/pipelines/LSSTCam/Isr.yaml
        # Nothing else, for now
        - {survey: "", pipelines: []}
        - {pipelines: []}
      preprocessing: |-
        - survey: BLOCK-407
          pipelines: ['${PROMPT_PROCESSING_DIR}/pipelines/LSSTCam/Preprocessing.yaml']
        - {pipelines: []}
    preloadPadding: 50.1
    centralRepo: s3://rubin-summit-users
    readRepo: s3://rubin-summit-users/butler-readonly.yaml
    exportTypes: |-
      - ".*_(config|metadata|log)"
      - "dia_source_detector"
    transferScale: 5
  s3:
    imageBucket: rubin-summit
    endpointUrl: https://s3.example.org
    aws_profile: embargo
    cred_file_auth: true
  raw_microservice: http://172.24.5.158:8080/presence
  imageNotifications: {kafkaClusterAddress: "kafka:9094", topic: notification-6, imageTimeout: 120}
  apdb: {config: s3://rubin-summit-users/apdb/pp_apdb.yaml}
  alerts: {username: kafka-admin, server: "alerts.example.org:9094", topic: lsst-alerts}
  logLevel: >-
    timer.lsst.activator=DEBUG
    lsst.daf.butler=VERBOSE
  debug: {monitorDaxApdb: true}
  butler_writer: {enabled: true, kafka_cluster: "kafka:9092", kafka_username: butler-writer, kafka_topic: t}
"""


def _migrate(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert ctl.main(["config", "from-prompt-processing", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def _files(tmp_path: Path, *texts: str) -> list[Path]:
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts):
        path.write_text(text)
    return paths


def test_values_of_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = _migrate(capsys, *_files(tmp_path, _DEFAULTS, _SITE))
    path = tmp_path / "ppd.yaml"
    path.write_text(out)
    settings = load_settings(path, {"PROMPT_PROCESSING_DIR": "/opt/pp"})
    assert (settings.instrument, settings.skymap) == ("LSSTCam", "lsst_cells_v1")
    assert settings.main_pipelines[0].pipelines[1] == "/opt/pp/pipelines/LSSTCam/Isr.yaml"
    assert [node.pipelines for node in settings.main_pipelines[1:]] == [(), ()]
    assert settings.preprocessing_pipelines[0].survey == "BLOCK-407"
    assert settings.export_types == (".*_(config|metadata|log)", "dia_source_detector")
    assert (settings.preload_padding, settings.image_timeout, settings.transfer_workers) == (50.1, 120, 5)
    assert settings.read_central_repo == "s3://rubin-summit-users/butler-readonly.yaml"
    assert (settings.redis_url, settings.redis_stream) == ("redis://prompt-redis", "instrument:lsstcam")
    assert (settings.worker_timeout, settings.message_expiration) == (900, 3600)
    assert settings.log_levels == {"timer.lsst.activator": "DEBUG", "lsst.daf.butler": "VERBOSE"}
    # With the sentence of each setting, and the comments that there were.
    assert "# Short name of the instrument" in out
    assert "  # Nothing else, for now\n" in out
    told = {line.strip() for line in err.splitlines()}
    assert "Paths have variables, which ppd's environment must have: PROMPT_PROCESSING_DIR." in told
    assert {
        "AP_KAFKA_SERVER=alerts.example.org:9094",
        "AWS_PROFILE=embargo",
        "DAX_APDB_MONITOR_CONFIG=logging:lsst.dax.apdb.monitor",
        "S3_ENDPOINT_URL=https://s3.example.org",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AP_KAFKA_PRODUCER_PASSWORD",
        "LSST_DB_AUTH",
    } <= told
    left = [line.strip() for line in err.partition("Not carried over:")[2].splitlines() if line]
    for what in (
        "KAFKA_CLUSTER (kafka:9094)",
        "image",
        "resources",
        "keda",
        "USE_KAFKA_BUTLER_WRITER (1)",
        "LOCAL_REPO_CACHE_SIZE (3)",
        "WORKER_GRACE_PERIOD (45)",
    ):
        assert any(line.startswith(f"{what}: ") for line in left), (what, left)
    # What says what ppd does anyway, and what is empty, is not told.
    assert not any("DEBUG_EXPORT_OUTPUTS" in line or "podAnnotations" in line for line in left)


def test_what_env_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of many lines, secrets whose values are never shown; the result can be used as it is."""
    (dump,) = _files(
        tmp_path,
        "PATH=/usr/bin\nRUBIN_INSTRUMENT=DemoCam\n"
        f"MAIN_PIPELINES_CONFIG=- survey: DEMO\n  pipelines: [{ISR}]\n- pipelines: null\n"
        "CALIB_REPO=/old\nCENTRAL_REPO=postgresql://ppd:pass-word@db/central\nWORKER_TIMEOUT=0\n"
        "EXPORT_TYPE_REGEXP=- [\nDEBUG_EXPORT_OUTPUTS=0\nIMAGE_TIMEOUT=20\nSKYMAP=\nREDIS_STREAM_HOST=redis\n"
        "AWS_SECRET_ACCESS_KEY=secret-key\nLOCAL_REPOS=/tmp-butler\n",
    )
    output = tmp_path / "ppd.yaml"
    out, err = _migrate(capsys, dump, "--output", output)
    assert out == ""
    assert "secret-key" not in err + output.read_text()
    assert "  AWS_SECRET_ACCESS_KEY\n" in err
    assert "worker_timeout: 0: Input should be greater than 0" in err
    assert "EXPORT_TYPE_REGEXP (export_types): not YAML" in err
    assert "export_types: [] to export nothing" in err
    settings = load_settings(output, {})
    assert settings.central_repo == "postgresql://ppd:pass-word@db/central"
    assert (settings.skymap, str(settings.local_repos)) == (None, "/tmp-butler")
    assert ctl.main(["config", "check", "--config", str(output)]) == 0
    # What is there is not written over.
    _, err = _migrate(capsys, dump, "--output", output, code=2)
    assert "File exists" in err


_CONTAINER = {
    "name": "service",
    "env": [
        {"name": "RUBIN_INSTRUMENT", "value": "LATISS"},
        {"name": "CENTRAL_REPO", "value": "/repo"},
        {"name": "PRELOAD_PADDING", "value": "30"},
        {"name": "SASQUATCH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "sasquatch_token"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ],
}
_OTHER = {"name": "prepare", "env": [{"name": "CENTRAL_REPO", "value": "/wrong"}]}
_SPEC = {"template": {"spec": {"containers": [_CONTAINER], "initContainers": [_OTHER]}}}


@pytest.mark.parametrize(
    "document", [_CONTAINER["env"], {"kind": "Deployment", "spec": _SPEC}], ids=["list", "all"]
)
def test_lists_of_kubernetes(tmp_path: Path, capsys: pytest.CaptureFixture[str], document: Any) -> None:
    """It can't be used yet: that is told, in the file too, and by the exit code."""
    (path,) = _files(tmp_path, yaml.safe_dump(document))
    out, _ = _migrate(capsys, path, "--json", code=1)
    made = json.loads(out)
    assert made["settings"] == {"instrument": "LATISS", "central_repo": "/repo", "preload_padding": 30}
    assert (made["needed"], made["secrets"]) == (["main_pipelines"], ["SASQUATCH_TOKEN"])
    assert "# main_pipelines:   # it is needed, and was not found" in made["text"]


@pytest.mark.parametrize("text", ["", "a: [", "just words", "[1, 2]", "kind: ConfigMap\ndata: {}\n"])
def test_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (path,) = _files(tmp_path, text)
    _, err = _migrate(capsys, path, code=2)
    assert str(path) in err


def test_the_older_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = """
        instrument:
            name: LATISS
            pipelines: "- {survey: SURVEY, pipelines: [/p/Isr.yaml]}"
            calibRepo: /repo
        apdb: {url: "postgresql://rubin:pass-word@apdb/lsst", namespace: pp}
        containerConcurrency: 1
    """
    out, err = _migrate(capsys, *_files(tmp_path, textwrap.dedent(values)))
    path = tmp_path / "ppd.yaml"
    path.write_text(out)
    settings = load_settings(path, {})
    assert (settings.central_repo, settings.main_pipelines[0].survey) == ("/repo", "SURVEY")
    assert "apdb-cli" in err
    assert "pass-word" not in out + err


def test_each_key_comes_to_something() -> None:
    """A variable that a chart sets is a setting, stays, is secret, or there is a reason why not."""
    from ppd._settings_sources import ENVIRONMENT
    from ppd.cli.migration import _ALSO

    assert set(VALUES.values()) - {*ENVIRONMENT, *_ALSO, *_STAYS, *_SECRETS, *_REASONS} == set()


def test_the_guide_is_exact() -> None:
    """Its table has what is carried over, as it is, and its text every other name."""
    text = _GUIDE.read_text()
    charts = {variable: key for key, variable in VALUES.items()}
    rows = re.findall(r"^\| `(\w+)` \| (?:`([\w.]+)`)? *\| `(\w+)` \|$", text, re.MULTILINE)
    assert rows == [(name, charts.get(name, ""), setting) for name, setting in ENVIRONMENT.items()]
    for name, setting in _ALSO.items():
        assert re.search(rf"`{name}` \(`{charts[name]}`[^)]*\) becomes\s+`{setting}`", text)
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))
    assert named >= {*_STAYS, *_SECRETS, *_REASONS}
