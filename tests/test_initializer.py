"""ppd-init: everything written once, nothing on a mistake, safe for two at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_tasks
import yaml
from lsst.daf.butler import Butler, CollectionType, DatasetType, MissingDatasetTypeError
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.utils.packages import Packages

import ppd.initializer
from ppd.cli import init as command
from ppd.deployment import deployment_id
from ppd.errors import CentralUnavailableError, ConfigurationError, NotInitializedError
from ppd.initializer import check_initialized, expected_runs, initialize

DAY = 20261124


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blank")
    tiny_tasks.make_central(root)
    return root


@pytest.fixture
def root(tmp_path: Path, blank: Path) -> Path:
    # A copy of the empty repo: making one takes a third of a second.
    shutil.copytree(blank, tmp_path / "central")
    tiny_tasks.write_pipelines(tmp_path / "pipelines")
    return tmp_path


@pytest.fixture
def central(root: Path) -> Iterator[Butler]:
    with Butler.from_config(str(root / "central"), writeable=True) as butler:
        yield butler


def _rows(root: Path) -> int:
    """Rows in all tables of the registry."""
    with sqlite3.connect(root / "central" / "gen3.sqlite3") as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return sum(db.execute(f'SELECT COUNT(*) FROM "{table}"').fetchone()[0] for table in tables)


def _config_file(root: Path, **changes: Any) -> Path:
    fields = tiny_tasks.tiny_settings(root, **changes).to_dict()
    del fields["config_path"]
    path = root / "ppd.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def test_everything_is_there_afterwards(root: Path, central: Butler) -> None:
    settings = tiny_tasks.tiny_settings(root)
    report = initialize(settings, DAY)
    assert report.written
    assert report.chain == "TinyCam/prompt/output-2026-11-24"
    central.registry.refresh()
    assert central.collections.get_info(report.chain).children == report.runs
    names = [run.split("/")[3] for run in report.runs]
    assert names == ["Measure", "Predict", "NoPipeline"]
    measure, predict, _ = report.runs
    assert central.get("measure_config", collections=measure).offset == 0.0
    assert central.get("predict_config", collections=predict).apdb == "apdb.yaml"
    assert central.get("level_schema", collections=measure).colnames == ["level"]
    for run in (measure, predict):
        assert central.find_dataset("packages", collections=run) is not None
    for name in ("level", "predicted", "measure_metadata", "measure_log", "regionTimeInfo"):
        assert central.get_dataset_type(name).dimensions
    provenance = central.get_dataset_type("prompt_provenance")
    assert set(provenance.dimensions.required) == {"instrument", "group", "detector"}
    assert provenance.storageClass_name == "ProvenanceQuantumGraph"
    check_initialized(central, settings, DAY)


def test_second_time_writes_nothing(root: Path) -> None:
    settings = tiny_tasks.tiny_settings(root)
    initialize(settings, DAY)
    rows, files = _rows(root), sorted((root / "central").rglob("*"))
    report = initialize(settings, DAY)
    assert not report.written
    assert not report.dataset_types
    assert (_rows(root), sorted((root / "central").rglob("*"))) == (rows, files)


def test_a_new_deployment_goes_in_front(root: Path, central: Butler) -> None:
    first = initialize(tiny_tasks.tiny_settings(root), DAY)
    second = initialize(tiny_tasks.tiny_settings(root, apdb_config="other.yaml"), DAY)
    central.registry.refresh()
    assert central.collections.get_info(first.chain).children == second.runs + first.runs


def test_an_interrupted_one_is_completed(
    root: Path, central: Butler, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_tasks.tiny_settings(root)
    write, calls = ppd.initializer._write_init_outputs, []

    def break_at_second(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(ppd.initializer, "_write_init_outputs", break_at_second)
    with pytest.raises(KeyboardInterrupt):
        initialize(settings, DAY)
    with pytest.raises(NotInitializedError):
        check_initialized(central, settings, DAY)
    monkeypatch.setattr(ppd.initializer, "_write_init_outputs", write)
    assert initialize(settings, DAY).written
    central.registry.refresh()
    check_initialized(central, settings, DAY)


_RACER = """
import contextlib, json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ppd.initializer, tiny_tasks
from ppd.initializer import initialize
if sys.argv[3] == "unlocked":
    ppd.initializer._local_lock = lambda repo: contextlib.nullcontext()
settings = tiny_tasks.tiny_settings(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(initialize(settings, 20261124).written), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["locked", "unlocked"])
def test_two_at_once(root: Path, central: Butler, lock: str) -> None:
    argv = [sys.executable, "-c", _RACER, str(Path(__file__).parent), str(root), lock]
    racers = [
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    ends = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], [err for _, err in ends]
    written = sorted(json.loads(out) for out, _ in ends)
    assert written[1] is True
    if lock == "locked":
        assert written == [False, True]
    settings = tiny_tasks.tiny_settings(root)
    central.registry.refresh()
    check_initialized(central, settings, DAY)
    measure = next(run for run in initialize(settings, DAY).runs if "/Measure/" in run)
    for name in ("packages", "measure_config", "level_schema"):
        assert len(central.query_datasets(name, collections=measure)) == 1
        assert central.get(name, collections=measure) is not None


def test_a_lost_race_is_found_done(root: Path, central: Butler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another ppd-init writes all of it between our look and our write."""
    settings = tiny_tasks.tiny_settings(root)
    monkeypatch.setattr(ppd.initializer, "_local_lock", lambda repo: contextlib.nullcontext())
    write_packages, conflicts = PipelineGraph.write_packages, []

    def lose(self: PipelineGraph, butler: Butler) -> None:
        monkeypatch.setattr(PipelineGraph, "write_packages", write_packages)
        assert initialize(settings, DAY).written
        try:
            butler.put(Packages.fromSystem(), self.packages_dataset_type)
        except ConflictingDefinitionError as e:
            conflicts.append(e)
            raise

    monkeypatch.setattr(PipelineGraph, "write_packages", lose)
    assert not initialize(settings, DAY).written
    assert len(conflicts) == 1
    central.registry.refresh()
    check_initialized(central, settings, DAY)


def test_command_to_run_is_named(root: Path, central: Butler) -> None:
    settings = tiny_tasks.tiny_settings(root, config_path="/etc/my ppd.yaml")
    with pytest.raises(
        NotInitializedError, match=r"ppd-init --config '/etc/my ppd.yaml' --day-obs 20261124$"
    ):
        check_initialized(central, settings, DAY)


def _refused(root: Path, match: str, **changes: Any) -> None:
    rows = _rows(root)
    with pytest.raises(ConfigurationError, match=match):
        initialize(tiny_tasks.tiny_settings(root, **changes), DAY)
    assert _rows(root) == rows


def test_task_that_does_not_exist(root: Path) -> None:
    path = root / "pipelines" / "Measure.yaml"
    path.write_text(path.read_text() + "  more:\n    class: tiny_tasks.NoSuchTask\n")
    _refused(root, r"Measure\.yaml: task more \(tiny_tasks\.NoSuchTask\) can't be imported")


def test_every_bad_pipeline_is_named(root: Path) -> None:
    (root / "pipelines" / "Measure.yaml").write_text("tasks: {m: {class: no.such.Module}}\ndescription: x\n")
    (root / "pipelines" / "Predict.yaml").write_text("tasks: [\n")
    _refused(root, r"(?s)Predict\.yaml is not a pipeline.*Measure\.yaml: task m \(no\.such\.Module\)")


def test_config_field_that_does_not_exist(root: Path) -> None:
    path = root / "pipelines" / "Measure.yaml"
    path.write_text(path.read_text() + "    config: {no_such_field: 3}\n")
    _refused(root, r"(?s)Measure\.yaml.*no_such_field")


def test_missing_pipeline_file(root: Path) -> None:
    (root / "pipelines" / "Measure.yaml").unlink()
    _refused(root, r"Measure\.yaml can't be read")


def test_unknown_instrument(root: Path) -> None:
    _refused(root, "no instrument record of NoCam", instrument="NoCam")


def test_input_that_nothing_gives(root: Path, central: Butler) -> None:
    central.registry.removeDatasetType("bias")
    _refused(root, r"Measure\.yaml reads bias, which neither")


def test_dataset_type_of_another_definition(root: Path, central: Butler) -> None:
    other = DatasetType(
        "level", ("instrument", "detector"), "StructuredDataDict", universe=central.dimensions
    )
    central.registry.registerDatasetType(other)
    _refused(root, r"Measure\.yaml does not fit the central repo")


def test_own_dataset_type_of_another_definition(root: Path, central: Butler) -> None:
    other = DatasetType("regionTimeInfo", ("instrument",), "StructuredDataDict", universe=central.dimensions)
    central.registry.registerDatasetType(other)
    _refused(root, "regionTimeInfo")


def test_same_file_name_with_other_config(root: Path) -> None:
    other = root / "other" / "Measure.yaml"
    other.parent.mkdir()
    other.write_text(tiny_tasks.MEASURE_YAML + "    config: {offset: 3.0}\n")
    nodes = [
        {"survey": "s", "pipelines": [str(other)]},
        {"pipelines": [str(root / "pipelines/Measure.yaml")]},
    ]
    _refused(root, "measure is configured differently", main_pipelines=nodes)


def test_no_central_repo(tmp_path: Path, root: Path) -> None:
    with pytest.raises(CentralUnavailableError, match="nowhere"):
        initialize(tiny_tasks.tiny_settings(root, central_repo=str(tmp_path / "nowhere")), DAY)


def test_chain_name_taken(root: Path, central: Butler) -> None:
    central.collections.register("TinyCam/prompt/output-2026-11-24", CollectionType.RUN)
    _refused(root, "of type RUN, not CHAINED")


def test_run_that_contradicts(root: Path, central: Butler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppd.initializer, "_ATTEMPTS", 2)
    settings = tiny_tasks.tiny_settings(root)
    deployment = deployment_id(settings)
    initialize(settings, DAY)
    central.registry.refresh()
    run = expected_runs(settings, DAY, deployment)[str(root / "pipelines" / "Measure.yaml")]
    config = tiny_tasks.MeasureConfig()
    config.offset = 5.0
    central.pruneDatasets(
        list(central.query_datasets("measure_config", collections=run)),
        purge=True,
        unstore=True,
        disassociate=True,
    )
    central.put(config, "measure_config", run=run)
    central.collections.remove_from_chain("TinyCam/prompt/output-2026-11-24", run)
    with pytest.raises(ConflictingDefinitionError):
        initialize(settings, DAY)


def test_command(root: Path, central: Butler, capsys: pytest.CaptureFixture[str]) -> None:
    path = _config_file(root)
    argv = ["--config", str(path), "--day-obs", "2026-11-24"]
    assert command.main(argv) == 0
    assert "Prepared TinyCam/prompt/output-2026-11-24" in capsys.readouterr().out
    assert command.main(argv) == 0
    assert capsys.readouterr().out.startswith("Already initialized: ")
    assert command.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["code"], found["error"], found["written"]) == (True, "ok", None, False)


def test_command_exit_codes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config", str(root / "none.yaml")]) == 2
    assert "none.yaml: can't be read" in capsys.readouterr().err
    assert command.main(["--json", "--config", str(root / "none.yaml")]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["code"], list(found)) == (False, "configuration", ["ok", "code", "error"])
    path = _config_file(root, central_repo=str(root / "nowhere"))
    assert command.main(["--config", str(path)]) == 3
    (root / "pipelines" / "Measure.yaml").write_text("tasks: {m: {class: no.such.Module}}\ndescription: x\n")
    assert command.main(["--config", str(_config_file(root))]) == 2
    assert "nothing was written" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        command.main(["--day-obs", "20261399"])
    assert e.value.code == 2


def test_optional_input_need_not_be_known(central: Butler) -> None:
    with pytest.raises(MissingDatasetTypeError):
        central.get_dataset_type("orbits")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppd._settings_sources import ENVIRONMENT

    for name in (*ENVIRONMENT, "PPD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert os.environ.get("CENTRAL_REPO") is None
