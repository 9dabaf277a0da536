"""What is planted to be wrong is found, each with a way to mend it, and nothing that is right."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lsst.daf.butler import Config
from observatory import Observatory, Ppd, running
from redis_support import redis_server

from ppd.cli import ctl, doctor_checks
from ppd.cli.doctor import Finding, examine
from ppd.initializer import initialize

Found = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def healthy(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    """All that a ppd needs, but none that runs."""
    ppd = Ppd(observatory, tmp_path_factory.mktemp("doctor"), apdb_config=observatory.plan.apdb_config)
    initialize(ppd.settings)
    yield ppd
    ppd.close()


@pytest.fixture
def examined(
    healthy: Ppd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Found]]:
    def examine_it(code: int = 0, **changes: Any) -> Found:
        config = {**yaml.safe_load(healthy.config.read_text()), **changes}
        path = tmp_path / "ppd.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
        capsys.readouterr()
        assert ctl.main(["doctor", "--json", "--config", str(path)]) == code
        found: Found = json.loads(capsys.readouterr().out)["findings"]
        return found

    yield examine_it
    logging.disable(logging.NOTSET)


def _wrong(found: Found, level: str = "fault") -> dict[str, str]:
    """What is said by each check that has found something, with the remedy."""
    return {
        name: " ".join(f"{f['text']} -> {f['remedy']}" for f in some if f["level"] == level)
        for name, some in found.items()
        if any(f["level"] == level for f in some)
    }


def test_all_is_well(examined: Callable[..., Found]) -> None:
    """But for what is not there: a ppd that runs, and on some machines somebody who keeps the clock."""
    found = examined()
    assert _wrong(found) == {}
    assert set(_wrong(found, "warning")) - {"clock", "landlock", "memory"} == {"daemon"}
    assert "init-outputs" in found


def _closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _no_replica(folder: Path) -> dict[str, Any]:
    """A repo whose database nobody serves."""
    root = folder / "replica"
    root.mkdir()
    database = f"postgresql+psycopg2://nobody@127.0.0.1:{_closed_port()}/nothing"
    (root / "butler.yaml").write_text(Config({"registry": {"db": database}}).dump() or "")
    return {"read_central_repo": str(root)}


def _file_for_a_folder(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("")
    return {"spool_dir": str(folder / "file" / "spool")}


# What each plants, which check finds it, and what is said.
_TOGETHER: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    "no folder": (_file_for_a_folder, "folders", "is no folder"),
    "no shared memory": (lambda p: {"shm_min_free": "900 TB"}, "memory", "set shm_fallback"),
    "no pipeline": (
        lambda p: {"main_pipelines": [{"pipelines": [str(p / "Nothing.yaml")]}]},
        "pipelines",
        "Nothing.yaml",
    ),
    "no replica": (_no_replica, "replica", "does not answer"),
    "no APDB": (lambda p: {"apdb_config": str(p / "nothing.yaml")}, "apdb", "correct apdb_config"),
    "no bucket": (
        lambda p: {"raw_bucket": "raws", "s3_endpoint": f"http://127.0.0.1:{_closed_port()}"},
        "bucket",
        "can't be listed",
    ),
    "no stream": (
        lambda p: {"redis_url": f"redis://:pass-word@127.0.0.1:{_closed_port()}"},
        "stream",
        "can't be asked: ConnectionError",
    ),
}
_ALONE: dict[str, tuple[dict[str, Any], str, str]] = {
    "no room for outputs": ({"spool_min_free": "900 TB"}, "folders", "no visit is accepted"),
    "no source of raws": ({"raw_dirs": []}, "raws", "set raw_dirs or raw_bucket"),
    "no central repo": ({"central_repo": "/nowhere/central"}, "central", "no Butler repo at"),
    "another instrument": ({"instrument": "LSSTCam"}, "central", "no detectors of LSSTCam"),
    "not initialized": ({"preload_padding": 31.0}, "init-outputs", "ppd-init --config"),
    "mistake in the file": ({"slotz": 3}, "configuration", "did you mean slots?"),
}


def test_all_that_is_wrong_is_found(examined: Callable[..., Found], tmp_path: Path) -> None:
    """One fault does not hide another, and each comes with a way to mend it."""
    changes: dict[str, Any] = {}
    for plant, _, _ in _TOGETHER.values():
        changes |= plant(tmp_path)
    wrong = _wrong(examined(1, **changes))
    for planted, (_, where, said) in _TOGETHER.items():
        assert said in wrong.get(where, ""), (planted, wrong)
    assert all("-> " in text and not text.endswith("-> ") for text in wrong.values()), wrong


@pytest.mark.parametrize("planted", _ALONE)
def test_what_is_wrong_is_found(examined: Callable[..., Found], planted: str) -> None:
    changes, where, said = _ALONE[planted]
    wrong = _wrong(examined(1, **changes))
    assert said in wrong.get(where, ""), wrong
    assert set(wrong) <= {where, "init-outputs"}, wrong


def test_stream_of_visits(examined: Callable[..., Found], tmp_path: Path) -> None:
    """A group that is not there is no fault, but may be a typing error."""
    with redis_server(tmp_path) as server:
        found = examined(redis_url=server.url)
        assert "no stream instrument:democam, group ppd" in _wrong(found, "warning")["stream"]
        server.client.xgroup_create("visits", "prompt", mkstream=True)
        server.add("visits", {"detector": 1})
        found = examined(redis_url=server.url, redis_stream="visits", redis_group="prompt")
    assert "stream" not in _wrong(found, "warning")
    assert found["stream"][0]["text"].endswith(
        "stream visits, group prompt: 1 entries wait, 0 are not confirmed"
    )


def test_packages_of_other_versions(examined: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy>=999", "no-such-package", "pytest; extra == 'test'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    wrong = _wrong(examined(1))
    assert set(wrong) == {"packages"}
    assert "numpy is" in wrong["packages"]
    assert "no-such-package is not installed" in wrong["packages"]


def test_more_folders_than_may_be_watched(
    examined: Callable[..., Found], healthy: Ppd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / "raws" / str(number)).mkdir(parents=True)
    (tmp_path / "max_user_watches").write_text("5\n")
    monkeypatch.setattr(doctor_checks, "_INOTIFY", tmp_path)
    wrong = _wrong(examined(1, raw_dirs=[str(tmp_path / "raws")]))
    assert "6 folders are to be watched, and a user may watch 5" in wrong["raws"]
    assert _wrong(examined(0, raw_dirs=[str(tmp_path / "raws")], raw_observer="polling")) == {}


def test_a_folder_of_raws_that_is_not_there(examined: Callable[..., Found], tmp_path: Path) -> None:
    """ppd would wait for it: a warning, also that the outputs will be copied."""
    found = examined(0, raw_dirs=[str(tmp_path / "raw")], local_repos="/dev/shm/ppd-doctor")
    warnings = _wrong(found, "warning")
    assert "raw is no folder" in warnings["raws"]
    assert "different file systems" in warnings["folders"]
    assert not Path("/dev/shm/ppd-doctor").exists()


def test_what_hangs_is_not_waited_for() -> None:
    """Nor what fails in a way that nobody thought of; the others are done all the same."""
    released = threading.Event()

    def hangs() -> Iterator[Finding]:
        released.wait(20.0)
        yield Finding("ok", "at last")

    def fails() -> Iterator[Finding]:
        yield Finding("ok", "so far")
        raise LookupError("no\nsuch thing")

    begin = time.monotonic()
    found = examine({"a": hangs, "b": fails, "c": lambda: iter([Finding("ok", "well")])}, 0.5)
    assert time.monotonic() - begin < 5.0
    released.set()
    assert list(found) == ["a", "b", "c"]
    assert found["a"][0].text == "no answer within 0.5 s"
    assert [f.text for f in found["b"]] == ["it can't be checked: LookupError: no such thing"]
    assert found["c"][0].level == "ok"


@pytest.mark.night
@pytest.mark.slow
def test_a_ppd_that_runs_and_is_in_trouble(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path) as ppd:
        said = ppd.command("ctl", "doctor")
        assert said.returncode == 0, said.stdout
        assert "daemon: ppd runs (ok)" in said.stdout
        assert said.stdout.endswith(" warnings\n")
        ppd.raws.rename(ppd.raws.with_name("elsewhere"))
        said = ppd.command("ctl", "doctor")
        assert "raw_dirs" in said.stdout
