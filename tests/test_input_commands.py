"""What an operator sees of inputs, and what is fetched ahead of an announcement."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from astropy.time import Time, TimeDelta
from lsst.daf.butler import Butler, Timespan
from observatory import Observatory, Ppd, error_of, identity, running, wait_for

pytestmark = pytest.mark.night

_LONG = 2 << 30


@pytest.fixture(scope="module")
def ppd(observatory: Observatory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppd]:
    with running(observatory, tmp_path_factory.mktemp("inputs")) as ppd:
        yield ppd


def _ctl(ppd: Ppd, *arguments: str) -> str:
    done = ppd.command("ctl", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inputs_with_reasons(ppd: Ppd) -> None:
    assert ppd.submit(groupId="inspected").ok
    wait_for(lambda: not json.loads(_ctl(ppd, "inputs", "inspected", "--json"))["looking"], 30.0, "inputs")
    found = json.loads(_ctl(ppd, "inputs", "inspected", "--json"))
    assert sorted(map(int, found["detectors"])) == list(range(9))
    with Butler.from_config(str(ppd.central), writeable=False) as butler:
        for detector, own in found["detectors"].items():
            assert not own["missing"]
            by_type = {line["type"]: line for line in own["inputs"]}
            assert by_type["bias"]["data_id"] == {"instrument": "DemoCam", "detector": int(detector)}
            assert by_type["bias"]["why"].startswith("certified in DemoCam/calib")
            for line in own["inputs"]:
                ref = butler.get_dataset(line["id"])
                assert ref is not None and (ref.datasetType.name, ref.run) == (line["type"], line["run"])
    text = _ctl(ppd, "inputs", "inspected", "--detector", "3")
    assert "certified in" in text and "bias" in text and "\n4:" not in text


def test_inputs_of_nobody(ppd: Ppd) -> None:
    for arguments in (["nobody"], ["inspected", "--detector", "77"]):
        done = ppd.command("ctl", "inputs", *arguments)
        assert done.returncode == 1
        assert arguments[0] in done.stderr


def test_prefetch(ppd: Ppd, tmp_path: Path) -> None:
    """After it, a visit there fetches nothing."""
    visit = ppd.observatory.message(0)
    ra, dec = visit["position"]
    before = ppd.status()["prefetch"]["fetched"]
    tonight = tmp_path / "tonight.txt"
    tonight.write_text(f"# tonight\n{ra} {dec} {visit['filters']}\n\n10.0 -80\n")
    assert "2 pointings" in _ctl(ppd, "prefetch", str(tonight))
    wait_for(lambda: not ppd.status()["prefetch"]["pointings"], 30.0, "the pointings to be done")
    assert ppd.status()["prefetch"]["fetched"] >= before
    held = ppd.status()["cache"]["bytes_fetched"]
    assert ppd.submit(groupId="expected").ok
    wait_for(lambda: ppd.states("expected").get("accepted", 0) == 0, 30.0, "inputs")
    assert ppd.status()["cache"]["bytes_fetched"] == held


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--ra", "10"], "--ra and --dec go together"),
        (["--ra", "10", "--dec", "91"], "dec"),
        ([], "no pointing is given"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_prefetch_with_mistakes(ppd: Ppd, arguments: list[str], reason: str) -> None:
    done = ppd.command("ctl", "prefetch", *arguments)
    assert done.returncode == 2 and reason in done.stderr


def test_prefetch_with_an_unknown_filter(ppd: Ppd) -> None:
    done = ppd.command("ctl", "prefetch", "--ra", "10", "--dec", "20", "--filter", "violet")
    assert done.returncode == 1 and "Unknown filter 'violet'" in done.stderr


def _bias(ppd: Ppd, detector: int) -> Path:
    """File of the bias that is valid now."""
    now = Time.now()
    with Butler.from_config(str(ppd.central), writeable=False) as butler:
        ref = butler.find_dataset(
            "bias",
            instrument="DemoCam",
            detector=detector,
            collections="DemoCam/defaults",
            timespan=Timespan(now, now + TimeDelta(1.0, format="sec")),
        )
        assert ref is not None
        return Path(butler.getURI(ref).ospath)


def _growing(place: Path) -> list[Path]:
    """Files that are too big for anything but the one that is copied."""
    found = []
    for path in place.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_size > 16 << 20:
                found.append(path)
    return found


@pytest.mark.slow
def test_killed_within_a_transfer(observatory: Observatory, tmp_path: Path) -> None:
    """The next start throws the cache away, half file and all, and finishes what was accepted."""
    memory = tmp_path / "memory"  # a disk: it has room, and is not too fast
    memory.mkdir()
    with running(observatory, tmp_path, warm_ahead=False, shm_dir=str(memory)) as ppd:
        path = _bias(ppd, 4)
        whole = path.read_bytes()
        path.unlink()  # it was a link of everybody's file
        with path.open("wb") as stream:
            stream.truncate(_LONG)
        assert ppd.submit(groupId="halved", detector=4).ok
        ppd.drop(ppd.observatory.raw(4, **identity("halved")), 4, "halved")
        (place,) = memory.glob("ppd-DemoCam-*")
        (half,) = wait_for(
            lambda: _growing(place),
            20.0,
            "the transfer to begin",
        )
        assert ppd.process is not None
        ppd.process.kill()
        ppd.process.wait(10.0)
        assert half.stat().st_size < _LONG
        path.unlink()
        path.write_bytes(whole)
        ppd.start()
        assert not half.exists() or half.stat().st_size == len(whole)
        ppd.await_state("halved", exported=1)
        assert ppd.groups() == [("halved", 4)]
        ppd.stop()
    assert not list(memory.iterdir())


@pytest.mark.slow
def test_file_comes_back(observatory: Observatory, tmp_path: Path) -> None:
    """Its detector is told of the missing file at once; the others work."""
    with running(observatory, tmp_path, warm_ahead=False) as ppd:
        path = _bias(ppd, 4)
        moved = path.with_suffix(".away")
        shutil.move(path, moved)
        assert ppd.submit(groupId="gap").ok
        wait_for(lambda: ppd.states("gap").get("failed"), 30.0, "the detector to fail")
        text = error_of(ppd.status(), "failed")
        for word in ("gap/4", "bias", "detector: 4", "its file is gone"):
            assert word in text, text
        assert ppd.states("gap")["failed"] == 1
        shutil.move(moved, path)
        ppd.good_visit("mended", 4)
        ppd.await_state("mended", exported=1)
