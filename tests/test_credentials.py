"""Secrets from files and from systemd's credentials."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ppd.cli import ctl
from ppd.config import load_settings
from ppd.credentials import FILES, VALUES, take_credentials
from ppd.errors import ConfigurationError
from ppd.supervisor.nursery_client import nursery_environment


def _credentials(folder: Path, mode: int = 0o400, **secrets: str) -> Path:
    folder.mkdir()
    for name, text in secrets.items():
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    return folder


def test_a_file_for_a_variable(tmp_path: Path) -> None:
    (tmp_path / "central").write_text("postgresql://ppd:pass-word@db/central\n")
    environ = {
        "RUBIN_INSTRUMENT": "DemoCam",
        "MAIN_PIPELINES_CONFIG": "[{pipelines: [/p/A.yaml]}]",
        "CENTRAL_REPO_FILE": str(tmp_path / "central"),
    }
    take_credentials(environ)
    assert load_settings(None, environ).central_repo == "postgresql://ppd:pass-word@db/central"
    before = dict(environ)
    take_credentials(environ)  # as ppd-init does that ppd has started
    assert environ == before


def test_mistakes_are_named_and_no_secret_is(tmp_path: Path) -> None:
    (tmp_path / "both").write_text("pass-word")
    (tmp_path / "binary").write_bytes(b"pass-word\0")
    environ = {
        "PGPASSWORD": "other-word",
        "PGPASSWORD_FILE": str(tmp_path / "both"),
        "CONFIG_APDB_FILE": str(tmp_path / "none"),
        "AWS_SESSION_TOKEN_FILE": str(tmp_path / "binary"),
    }
    with pytest.raises(ConfigurationError) as e:
        take_credentials(environ)
    assert str(e.value).splitlines()[1:] == [
        f"environment CONFIG_APDB_FILE: {tmp_path}/none: can't be read: No such file or directory",
        "environment: PGPASSWORD and PGPASSWORD_FILE are both set",
        f"environment AWS_SESSION_TOKEN_FILE: {tmp_path}/binary: can't be read: it has a NUL character",
    ]


def test_commands_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD_FILE", str(tmp_path / "none"))
    assert ctl.main(["config", "show"]) == 2
    assert f"PGPASSWORD_FILE: {tmp_path}/none" in capsys.readouterr().err


def test_credentials_of_systemd(tmp_path: Path) -> None:
    """By their own name, or as LoadCredential= of a folder names them; the environment wins."""
    folder = _credentials(
        tmp_path / "creds", PGPASSWORD="one", ppd_AWS_SECRET_ACCESS_KEY="two\n", CONFIG_APDB="no"
    )
    environ = {"CREDENTIALS_DIRECTORY": str(folder), "CONFIG_APDB": "/apdb.yaml"}
    take_credentials(environ)
    assert (environ["PGPASSWORD"], environ["AWS_SECRET_ACCESS_KEY"]) == ("one", "two")
    assert environ["CONFIG_APDB"] == "/apdb.yaml"
    assert not set(FILES) & environ.keys()


@pytest.mark.parametrize("mode", [0o400, 0o440])
def test_files_that_have_to_be_private(tmp_path: Path, mode: int) -> None:
    """With an access list, which looks like the group's right, a copy is used: libpq refuses the other."""
    folder = _credentials(tmp_path / "creds", mode, ppd_PGPASSFILE="*:*:*:ppd:pass-word\n")
    runtime = tmp_path / "run"
    runtime.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(folder), "RUNTIME_DIRECTORY": f"{runtime}:/elsewhere"}
    take_credentials(environ)
    path = Path(environ["PGPASSFILE"])
    assert path.parent == (folder if mode == 0o400 else runtime / "credentials")
    assert path.read_text() == "*:*:*:ppd:pass-word\n"
    assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    if mode == 0o440:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [p.name for p in path.parent.iterdir()] == ["ppd_PGPASSFILE"]


def test_what_tasks_get() -> None:
    """Nothing that opens central; what is meant for them under its own name."""
    secrets = {"PGPASSFILE": "central", "LSST_DB_AUTH": "central", "CREDENTIALS_DIRECTORY": "/run/c"}
    secrets |= {"REDIS_PASSWORD": "central", "REDIS_STREAM_HOST": "central"}
    files = {f"{name}_FILE": "central" for name in ("CENTRAL_REPO", "PGPASSWORD", "REDIS_PASSWORD")}
    environ = {**secrets, **files, "PPD_TASKS_LSST_DB_AUTH": "apdb", "AP_KAFKA_TOPIC": "alerts"}
    got = nursery_environment(environ)
    assert "central" not in got.values()
    assert (got["LSST_DB_AUTH"], got["AP_KAFKA_TOPIC"]) == ("apdb", "alerts")
    assert not {"CREDENTIALS_DIRECTORY", "PGPASSFILE", "PPD_TASKS_LSST_DB_AUTH"} & got.keys()


def test_no_name_means_two_things() -> None:
    assert not {f"{name}_FILE" for name in VALUES} & {*VALUES, *FILES}
