"""Containers: the Dockerfile's steps are done, manifests are valid, and all fit each other and ppd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ppd.cli.ctl import make_parser
from ppd.config import Settings, parse_size
from ppd.demo.site import main as site

ROOT = Path(__file__).parent.parent
_MANIFESTS = sorted(p for p in (ROOT / "deploy/kubernetes").glob("*.yaml") if p.name != "kustomization.yaml")
# Those that are supported now, and what a site may still have.
_VERSIONS = ("1.29", "1.37")
_GRACES = ("stop_grace", "kill_grace", "drain_grace")
# The exporter, the nursery, the reader and what is killed last.
_BESIDES = 40.0


def _documents() -> list[dict[str, Any]]:
    return [d for path in _MANIFESTS for d in yaml.safe_load_all(path.read_text())]


def _of(kind: str) -> dict[str, Any]:
    (found,) = (d for d in _documents() if d["kind"] == kind)
    return found


def _settings(text: str, tmp_path: Path) -> Settings:
    """Read a configuration as ppd does, but for the places that are not on this machine."""
    return Settings.model_validate(yaml.safe_load(text))


def _graces(settings: Settings) -> float:
    return sum(getattr(settings, name) for name in _GRACES) + _BESIDES


@pytest.mark.parametrize("version", _VERSIONS)
def test_manifests_are_valid(version: str) -> None:
    listed = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == [p.name for p in _MANIFESTS]
    for document in _documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_would_notice() -> None:
    document = _of("StatefulSet")
    document["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, _VERSIONS[-1], strict=True)


def test_pods_fit_their_settings(tmp_path: Path) -> None:
    """Times and sizes: nothing is killed that ppd still waits for, and the cache has room."""
    settings = _settings(_of("ConfigMap")["data"]["ppd.yaml"], tmp_path)
    pod = _of("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= float(drain[-1]) + _graces(settings)
    volumes = {v["name"]: v for v in pod["volumes"]}
    memory = volumes["memory"]["emptyDir"]
    assert memory["medium"] == "Memory"
    assert _size(memory["sizeLimit"]) >= settings.cache_bytes + settings.shm_min_free
    for each in (*pod["initContainers"], container):
        named = {m["name"] for m in each["volumeMounts"]}
        assert named <= {*volumes, "state"}
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    # fsGroup gives these folders to root: ppd makes its own below.
    assert mounted[str(settings.socket_dir.parent)] == "run"
    assert mounted[str(settings.state_dir)] == "state"
    assert mounted[str(settings.shm_dir)] == "memory"


def test_commands_of_containers_exist() -> None:
    """Probes and hooks ask what ppdctl understands, and have time for the answer."""
    pod = _of("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    commands = [container["lifecycle"]["preStop"]["exec"]["command"]]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        commands.append(probe["exec"]["command"])
        assert float(probe["exec"]["command"][-1]) < probe["timeoutSeconds"] <= probe["periodSeconds"] * 2
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    commands.append(compose["services"]["ppd"]["healthcheck"]["test"][1:])
    match = re.search(r"HEALTHCHECK.*?CMD (\[.*?\])", (ROOT / "Dockerfile").read_text(), re.DOTALL)
    assert match is not None
    commands.append(yaml.safe_load(match[1]))
    assert len(commands) == 6
    for command in commands:
        assert command[0] == "ppdctl"
        make_parser().parse_args(command[1:])  # ends the test if it is not understood


def test_the_site_of_compose_fits_together(tmp_path: Path) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert re.search(r":[\w.-]+$", service["image"]), name
        for kind in ("secrets", "configs"):
            used = {entry if isinstance(entry, str) else entry["source"] for entry in service.get(kind, [])}
            assert used <= set(compose[kind]), name
        assert {v.partition(":")[0] for v in service.get("volumes", [])} <= set(compose["volumes"]), name
    settings = _settings(compose["configs"]["ppd"]["content"], tmp_path)
    ppd = services["ppd"]
    assert float(ppd["stop_grace_period"].removesuffix("s")) >= _graces(settings)
    size = parse_size(ppd["shm_size"].upper())
    assert isinstance(size, int)
    assert size >= settings.cache_bytes + settings.shm_min_free
    # What the passwords are called, in the file of them that is given along.
    text = (ROOT / "compose.yaml").read_text()
    wanted = {s["environment"] for s in compose["secrets"].values()} | set(
        re.findall(r"\$\{(\w+):\?\}", text)
    )
    given = set(re.findall(r"^(\w+)=", (ROOT / "deploy/compose.env").read_text(), re.MULTILINE))
    assert wanted == given
    for path in settings.main_pipelines[0].pipelines:
        inside = path.removeprefix("/opt/ppd/lib/python3.13/site-packages/")
        assert (ROOT / inside).is_file(), path


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["prepare"], "folder"),
        (["play", "/nowhere", "--visits", "4-2"], "no visits: '4-2'"),
        (["play", "/nowhere", "--visits", "0"], "no visits: '0'"),
    ],
)
def test_the_site_says_what_it_wants(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        site(arguments)
    assert e.value.code == 2
    assert wanted in capsys.readouterr().err


def test_the_site_wants_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site(["play", str(tmp_path), "--config", str(tmp_path / "ppd.yaml")]) == 2
    assert "ppd.demo.site:" in capsys.readouterr().err


def test_only_what_it_needs_to_run() -> None:
    """The image has the locked versions, and none of the tools."""
    command = [str(ROOT / "tools/runtime-requirements"), "setup.cfg", "requirements.txt", "postgresql"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert set(lines) <= set((ROOT / "requirements.txt").read_text().splitlines())
    names = {line.partition("==")[0] for line in lines}
    assert {"lsst-daf-butler", "pyzmq", "psycopg2-binary"} <= names
    assert not {"pytest", "mypy", "setuptools", "scipy"} & names


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_the_dockerfile_can_be_built() -> None:
    """Each step is done in a root of its own, and what comes of it runs, as the user that it names."""
    commands = [
        "test $(id -u):$(id -g) = 990:990",
        "ppd --help > /dev/null && ppd-init --help > /dev/null",
        "ppdctl config schema > /dev/null",
        "python -c 'import psycopg2, ppd.workers.nursery, ppd.supervisor.daemon'",
        "! python -m pip --version 2> /dev/null",
        "! python -c 'import pytest' 2> /dev/null",
        "! touch /opt/ppd/bin/ppd 2> /dev/null",
        "touch /var/lib/ppd/mine /run/ppd/mine /repo/mine",
        "ppdctl status --timeout 0.5 --socket-dir /run/ppd/none; test $? = 3",
    ]
    done = subprocess.run(
        [str(ROOT / "tools/run-dockerfile"), "--", *commands],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _size(text: str) -> int:
    size = parse_size(f"{text}B")
    assert isinstance(size, int)
    return size
