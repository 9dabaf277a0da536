"""Where inputs are searched: in which collections of the central repo, and in what order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lsst.daf.butler import Butler, CollectionType

from ppd.errors import ConfigurationError
from ppd.supervisor.input_collections import find_collections

LSSTCAM = Path(__file__).parents[2] / "shared" / "lsstcam"


@pytest.fixture
def butler(tmp_path: Path) -> Iterator[Butler]:
    with Butler.from_config(Butler.makeRepo(str(tmp_path / "repo")), writeable=True) as butler:
        yield butler


def _chain(butler: Butler, name: str, *children: str) -> None:
    butler.collections.register(name, CollectionType.CHAINED)
    butler.collections.redefine_chain(name, children)


def test_nothing_there(butler: Butler) -> None:
    with pytest.raises(ConfigurationError, match="none of the collections Cam/defaults, "):
        find_collections(butler, "Cam")


def test_umbrella_holds_all(butler: Butler) -> None:
    butler.collections.register("Cam/calib/a", CollectionType.CALIBRATION)
    for run in ("skymaps", "refcats/x", "Cam/templates/1"):
        butler.collections.register(run)
    _chain(butler, "Cam/calib", "Cam/calib/a")
    _chain(butler, "refcats", "refcats/x")
    _chain(butler, "Cam/templates", "Cam/templates/1")
    _chain(butler, "Cam/defaults", "Cam/calib", "skymaps", "refcats", "Cam/templates")
    found = find_collections(butler, "Cam")
    assert found.search == ("Cam/defaults",)
    assert found.calibrations == ("Cam/calib/a",)
    assert found.chains["Cam/defaults"] == ("Cam/calib", "skymaps", "refcats", "Cam/templates")
    assert list(found.chains)[-1] == "Cam/defaults"


def test_without_umbrella(butler: Butler) -> None:
    butler.collections.register("skymaps")
    butler.collections.register("Cam/calib", CollectionType.CALIBRATION)
    found = find_collections(butler, "Cam")
    assert found.search == ("Cam/calib", "skymaps")
    assert found.calibrations == ("Cam/calib",)
    assert found.runs == ("skymaps",)


def test_chain_in_two_chains(butler: Butler) -> None:
    """An inner chain comes before every chain that holds it, however deep."""
    butler.collections.register("run")
    _chain(butler, "inner", "run")
    _chain(butler, "middle", "inner")
    _chain(butler, "Cam/defaults", "inner", "middle")
    assert list(find_collections(butler, "Cam").chains) == ["inner", "middle", "Cam/defaults"]


@pytest.mark.skipif(not LSSTCAM.exists(), reason="the LSSTCam test data is not beside this checkout")
def test_lsstcam_has_templates_outside_its_umbrella(tmp_path: Path) -> None:
    repo = shutil.copytree(LSSTCAM / "central_repo", tmp_path / "repo")
    with Butler.from_config(str(repo), writeable=False) as butler:
        found = find_collections(butler, "LSSTCam")
    assert found.search[0] == "LSSTCam/defaults"
    assert "LSSTCam/templates" in found.search
