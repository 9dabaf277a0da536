"""Another configuration under load: checked whole, side by side with the old one, or refused."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from lsst.daf.butler import Butler
from observatory import ISR, Observatory, Ppd, error_of, identity, running, sleepers, wait_for, write_sleepy

from ppd.visit import TAI_MINUS_UTC

pytestmark = pytest.mark.night


def _change(ppd: Ppd, **changes: Any) -> None:
    config = yaml.safe_load(ppd.config.read_text())
    ppd.config.write_text(yaml.safe_dump({**config, **changes}))


def _reload(ppd: Ppd) -> subprocess.CompletedProcess[str]:
    # Not by the configuration, which may be what is wrong.
    return ppd.command("ctl", "reload", "--socket-dir", str(ppd.settings.socket_dir), timeout=180.0)


def _refused(ppd: Ppd) -> str:
    """Reload in vain; return why."""
    before = ppd.status()
    done = _reload(ppd)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("ppdctl: nothing has changed: ")
    after = ppd.status()
    assert after["deployments"] == before["deployments"]
    assert after["health"] == "ok", after["faults"]
    assert done.stderr.strip().rpartition("changed: ")[2] in error_of(after, "reloads_refused")
    return done.stderr


def _nurseries(ppd: Ppd) -> list[int]:
    children = psutil.Process(ppd.status()["pid"]).children()
    return [p.pid for p in children if "ppd.workers.nursery" in p.cmdline()]


@contextlib.contextmanager
def _at_work(observatory: Observatory, folder: Path, **changes: Any) -> Iterator[Ppd]:
    """Run a ppd with one detector-visit that sleeps in a task, and one that waits for its raw."""
    main = write_sleepy(folder / "sleepy", 200.0)
    with running(observatory, folder, main=(main,), **changes) as ppd:
        ppd.good_visit("old-asleep", 2)
        wait_for(lambda: sleepers(folder / "sleepy"), 40.0, "a child to sleep")
        assert ppd.submit(groupId="old-waits", detector=3).ok
        yield ppd


def _wake(ppd: Ppd) -> None:
    """End the sleep."""
    (ppd.folder / "sleepy" / "wake").touch()


def _runs(ppd: Ppd, name: str = "post_isr_image") -> dict[str, str]:
    with Butler.from_config(str(ppd.central), writeable=False) as butler:
        found = butler.query_datasets(
            name, collections="DemoCam/prompt/output-*", find_first=False, with_dimension_records=True
        )
    runs = [(r.dataId.records["exposure"].group, r.run) for r in found]
    assert len(dict(runs)) == len(runs)
    return dict(runs)


@pytest.mark.slow
def test_other_pipelines_under_load(observatory: Observatory, tmp_path: Path) -> None:
    """Old visits end in the old runs with the old pipeline, new ones in the new; none is lost."""
    with _at_work(observatory, tmp_path, initialize_automatically=True, image_timeout=200.0) as ppd:
        (old,) = ppd.status()["deployments"]
        (nursery,) = _nurseries(ppd)
        _change(ppd, main_pipelines=[{"pipelines": [ISR]}])
        done = _reload(ppd)
        assert done.returncode == 0, done.stderr
        assert "main_pipelines: " in done.stdout and "(for new visits)" in done.stdout
        one, new = ppd.status()["deployments"]
        assert (one["id"], one["detector_visits"]) == (old["id"], 2)
        assert (new["id"] != old["id"], new["generation"]) == (True, 1)
        assert nursery in _nurseries(ppd) and len(_nurseries(ppd)) == 2
        for number in range(3):
            ppd.good_visit(f"new{number}", 4 + number)
            ppd.await_state(f"new{number}", exported=1)
        # A raw of an old visit that comes now, and a detector of it that is announced now.
        assert ppd.submit(groupId="old-waits", detector=8).ok
        for detector in (3, 8):
            ppd.drop(observatory.raw(detector, **identity("old-waits")), detector, "old-waits")
        _wake(ppd)
        ppd.await_state("old-asleep", exported=1)
        ppd.await_state("old-waits", exported=2)
        wait_for(lambda: _nurseries(ppd) and nursery not in _nurseries(ppd), 20.0, "the old nursery to end")
        assert [d["id"] for d in ppd.status()["deployments"]] == [new["id"]]
        with Butler.from_config(str(ppd.central), writeable=False) as butler:
            found, slept = (
                butler.query_datasets(
                    name, collections="DemoCam/prompt/output-*", find_first=False, with_dimension_records=True
                )
                for name in ("post_isr_image", "slept")
            )
        runs = sorted((r.dataId.records["exposure"].group, int(r.dataId["detector"]), r.run) for r in found)
        assert [r[:2] for r in runs] == [
            *(("new0", 4), ("new1", 5), ("new2", 6)),
            *(("old-asleep", 2), ("old-waits", 3), ("old-waits", 8)),
        ]
        for group, _, run in runs:
            wanted = f"Sleepy/{old['id']}" if group.startswith("old") else f"Isr/{new['id']}"
            assert run.endswith(wanted), (group, run)
        assert len(slept) == 3 and all(r.run.endswith(f"Sleepy/{old['id']}") for r in slept)
        counts = ppd.counts()
        assert counts["succeeded"] == 6
        assert {
            k for k in counts if k in ("failed", "retried", "nursery_restarts", "internal_errors")
        } == set()


@pytest.mark.slow
def test_pipeline_edited_in_place_with_sighup(observatory: Observatory, tmp_path: Path) -> None:
    """Its name and the configuration stay: the deployment is another all the same."""
    main = tmp_path / "Mine.yaml"
    main.write_text(Path(ISR).read_text())
    with running(observatory, tmp_path, main=(str(main),)) as ppd:
        (old,) = ppd.status()["deployments"]
        main.write_text(main.read_text().replace("description:", "description: Edited."))
        assert ppd.process is not None
        ppd.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ppd.counts().get("reloads_refused"), 60.0, "the reload to be refused")
        # Nobody has prepared central for it: it says how.
        error = error_of(ppd.status(), "reloads_refused")
        assert error.startswith("SIGHUP: The central repo is not prepared for deployment")
        assert ppd.status()["deployments"] == [old]
        ppd.good_visit("before", 2)
        ppd.initialize()
        ppd.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ppd.status()["reload"]["state"] == "in_force", 60.0, "the reload")
        ppd.good_visit("after", 3)
        ppd.await_state("before", exported=1)
        ppd.await_state("after", exported=1)
        new = ppd.status()["deployment"]
        assert new != old["id"]
        runs = _runs(ppd)
        assert runs["before"].endswith(f"Mine/{old['id']}")
        assert runs["after"].endswith(f"Mine/{new}")


@pytest.mark.slow
def test_what_is_refused(observatory: Observatory, tmp_path: Path) -> None:
    with running(observatory, tmp_path) as ppd:
        good = ppd.config.read_text()
        nurseries = _nurseries(ppd)
        ppd.config.write_text("slots: [1\n")
        assert str(ppd.config) in _refused(ppd)
        ppd.config.write_text(good + "no_such_setting: 1\nslots: 0\n")
        reason = _refused(ppd)
        assert "no_such_setting" in reason and "slots" in reason
        ppd.config.write_text(good)
        _change(ppd, main_pipelines=[{"pipelines": [str(tmp_path / "Nowhere.yaml")]}])
        assert "Nowhere.yaml" in _refused(ppd)
        wrong = tmp_path / "Wrong.yaml"
        wrong.write_text(Path(ISR).read_text().replace("IsrTask", "NoSuchTask"))
        _change(ppd, main_pipelines=[{"pipelines": [str(wrong)]}])
        assert "NoSuchTask" in _refused(ppd)
        ppd.config.write_text(good)
        _change(ppd, raw_dirs=[str(tmp_path)], slots=3)
        assert "raw_dirs needs a restart" in _refused(ppd)
        assert ppd.status()["slots"]["total"] == 32
        assert ppd.counts()["reloads_refused"] == 5
        # What was tried has left nothing.
        wait_for(lambda: _nurseries(ppd) == nurseries, 10.0, "the candidates to end")
        ppd.good_visit("afterwards", 3)
        ppd.await_state("afterwards", exported=1)


@pytest.mark.slow
def test_at_once(observatory: Observatory, tmp_path: Path) -> None:
    """No nursery is built for what the supervisor alone reads; children at work are not touched."""
    with _at_work(observatory, tmp_path) as ppd:
        nurseries = _nurseries(ppd)
        assert json.loads(ppd.command("ctl", "reload", "--json").stdout)["changes"] == []
        _change(ppd, slots=5, running=1, message_expiration=20.0)
        begin = time.monotonic()
        done = _reload(ppd)
        assert done.returncode == 0, done.stderr
        assert "slots: 32 -> 5 (at once)" in done.stdout
        assert time.monotonic() - begin < 10.0
        status = ppd.status()
        assert (status["slots"]["total"], status["processors"]["total"]) == (5, 1)
        sent = time.time() + TAI_MINUS_UTC - 30.0
        assert ppd.submit(groupId="stale", detector=4, private_sndStamp=sent).code == "stale"
        assert (_nurseries(ppd), len(status["deployments"])) == (nurseries, 1)
        _wake(ppd)
        ppd.await_state("old-asleep", exported=1)


@pytest.mark.slow
def test_one_after_the_other(observatory: Observatory, tmp_path: Path) -> None:
    """A second one meanwhile is refused; a stop ends it; children's settings are theirs."""
    with running(observatory, tmp_path, export_types=["nothing"]) as ppd:
        ppd.good_visit("unwanted", 2)
        ppd.await_state("unwanted", exported=1)
        assert ppd.outputs("post_isr_image") == []
        _change(ppd, export_types=[".*"])
        assert ppd.process is not None
        ppd.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ppd.status()["reload"].get("state") == "building", 20.0, "a nursery to be built")
        done = _reload(ppd)
        assert done.returncode == 1 and "is at work (building)" in done.stderr
        wait_for(lambda: ppd.status()["reload"]["state"] == "in_force", 60.0, "the reload")
        # The same deployment, and another nursery.
        wait_for(lambda: len(_nurseries(ppd)) == 1, 20.0, "the old nursery to end")
        (one,) = ppd.status()["deployments"]
        assert one["generation"] == 1
        ppd.good_visit("wanted", 3)
        ppd.await_state("wanted", exported=1)
        assert ppd.groups() == [("wanted", 3)]
        # The nursery of the new generation is looked after as the first was.
        psutil.Process(_nurseries(ppd)[0]).kill()
        wait_for(lambda: ppd.counts().get("nursery_restarts"), 20.0, "its death to be seen")
        ppd.good_visit("again", 4)
        ppd.await_state("again", exported=1)
        _change(ppd, export_types=["post_isr_.*"])
        ppd.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ppd.status()["reload"]["state"] == "building", 20.0, "a nursery to be built")
        assert ppd.stop() == 0


@pytest.mark.slow
def test_old_nursery_is_killed(observatory: Observatory, tmp_path: Path) -> None:
    """Its visits are tried again by another one of their deployment; the new ones' children live."""
    with _at_work(observatory, tmp_path, initialize_automatically=True, image_timeout=200.0) as ppd:
        (old,) = ppd.status()["deployments"]
        (nursery,) = _nurseries(ppd)
        _change(ppd, main_pipelines=[{"pipelines": [ISR]}])
        assert _reload(ppd).returncode == 0
        assert ppd.submit(groupId="new-waits", detector=5).ok
        wait_for(lambda: ppd.states("new-waits") == {"ready": 1}, 40.0, "a child of the new nursery")
        psutil.Process(nursery).kill()
        wait_for(lambda: ppd.counts().get("nursery_restarts") == 1, 20.0, "its death to be seen")
        for detector, group in ((3, "old-waits"), (5, "new-waits")):
            ppd.drop(observatory.raw(detector, **identity(group)), detector, group)
        for group in ("old-asleep", "old-waits", "new-waits"):
            ppd.await_state(group, exported=1)
        new = ppd.status()["deployment"]
        runs = _runs(ppd)
        assert {g: r.rpartition("/")[2] for g, r in runs.items()} == {
            **dict.fromkeys(("old-asleep", "old-waits"), old["id"]),
            "new-waits": new,
        }
        retried = [e["what"] for e in ppd.status()["errors"] if e["kind"] == "retried"]
        assert not any("new-waits" in what for what in retried), retried
