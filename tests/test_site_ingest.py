"""A site's own ingest, by its contract: a stand-in has the signatures of ``lsst.obs.base``."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import lsst
import pytest
from lsst.daf.butler import Butler
from observatory import Observatory, Ppd, identity, wait_for
from repo_support import (
    DEMO_EXPOSURE,
    DEMOCAM,
    make_demo_repo,
    needs_root,
    small_tmpfs,
    write_demo_raw,
)

from ppd.demo import democam
from ppd.errors import ConfigurationError
from ppd.instruments import lsstcam
from ppd.workers.ingest import RawExposure, load_translators, read_raw
from ppd.workers.ingesting import OwnIngest, choose_ingest
from ppd.workers.site_ingest import SiteIngest, find_site_ingest

STAND_IN = Path(__file__).parent / "site_stand_in"
GROUP = "2026-11-25T04:47:59.000"
GROUP_ID = 20261125044759000
RUN = f"{DEMOCAM}/raw/all"
ELEMENTS = ("group", "day_obs", "exposure")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_translators()
    return write_demo_raw(tmp_path_factory.mktemp("raws"))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A site where ``lsst.obs.base`` is installed."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(lsst, "__path__", [*lsst.__path__, str(STAND_IN / "lsst")])
    importlib.invalidate_caches()
    find_site_ingest.cache_clear()
    yield
    find_site_ingest.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("lsst.obs", "site_")):
            del sys.modules[name]
    lsst.__dict__.pop("obs", None)


def _open(root: Path, class_name: str) -> Butler:
    make_demo_repo(root)
    butler = Butler.from_config(str(root), writeable=True)
    (instrument,) = butler.query_dimension_records("instrument", instrument=DEMOCAM)
    changed = {**instrument.toDict(), "class_name": class_name, "visit_system": 1}
    butler.registry.insertDimensionData("instrument", changed, replace=True)
    return butler


@pytest.fixture
def butler(tmp_path: Path, site: None) -> Iterator[Butler]:
    with _open(tmp_path / "repo", "site_democam.SiteDemoCam") as butler:
        yield butler


def _ingest() -> SiteIngest:
    from site_description import describe

    ingest = choose_ingest("site", describe())
    assert isinstance(ingest, SiteIngest)
    return ingest


def _copy(good: Path, folder: Path) -> RawExposure:
    folder.mkdir(exist_ok=True)
    shutil.copy(good, folder / "a.fits")
    return read_raw(folder / "a.fits", DEMOCAM, GROUP, 4)


def _records(butler: Butler, element: str) -> list[object]:
    return sorted(
        butler.query_dimension_records(element, instrument=DEMOCAM, explain=False),
        key=lambda r: str(r.dataId),
    )


def test_records_are_those_of_ppds_own_way(good: Path, tmp_path: Path, butler: Butler) -> None:
    """Except for the visit system, which the instrument's overrides choose."""
    raw = _copy(good, tmp_path / "raws")
    ingest = _ingest()
    ingest.ingest(butler, raw, RUN)
    assert ingest.define_visits(butler, [raw], ["inputs"]) == (GROUP_ID,)
    with _open(tmp_path / "own", "none") as own:
        for name, number in (("one-to-one", 0), ("by-group-metadata", 1)):
            record = {"instrument": DEMOCAM, "id": number, "name": name}
            own.registry.insertDimensionData("visit_system", record, skip_existing=True)
        ours = OwnIngest(democam.describe())
        ours.ingest(own, raw, RUN)
        assert ours.define_visits(own, [raw], []) == (GROUP_ID,)
        for element in ELEMENTS:
            assert _records(own, element) == _records(butler, element)
        for element in ("visit", "visit_definition", "visit_system_membership"):
            assert _records(butler, element) == [r for r in _records(own, element) if _id(r) == GROUP_ID]
        (region,) = [r for r in _records(own, "visit_detector_region") if _id(r) == GROUP_ID]
        assert region in _records(butler, "visit_detector_region")


def _id(record: object) -> int:
    return int(record.dataId["visit"])  # type: ignore[attr-defined]


def test_hard_link_and_twice_is_once(good: Path, tmp_path: Path, butler: Butler) -> None:
    raw = _copy(good, tmp_path / "raws")
    ingest = _ingest()
    for _ in range(2):
        ingest.ingest(butler, raw, RUN)
        assert ingest.define_visits(butler, [raw], []) == (GROUP_ID,)
    ref = butler.find_dataset("raw", instrument=DEMOCAM, exposure=DEMO_EXPOSURE, detector=4, collections=RUN)
    assert ref is not None
    assert os.path.samefile(butler.getURI(ref).ospath, raw.path)  # noqa: PTH121
    assert butler.get(ref).array.shape == (512, 544)


@needs_root
def test_copy_from_another_file_system(good: Path, tmp_path: Path, butler: Butler) -> None:
    with small_tmpfs(tmp_path / "raws", "size=8M") as folder:
        raw = _copy(good, folder)
        _ingest().ingest(butler, raw, RUN)
        assert raw.path.exists()
        ref = butler.find_dataset(
            "raw", instrument=DEMOCAM, exposure=DEMO_EXPOSURE, detector=4, collections=RUN
        )
        assert ref is not None
        assert Path(butler.getURI(ref).ospath).stat().st_dev != folder.stat().st_dev


def test_dome_closed(good: Path, tmp_path: Path, butler: Butler) -> None:
    """The site's tasks define no visit of what is not of the sky."""
    raw = _copy(good, tmp_path / "raws")
    ingest = _ingest()
    ingest.ingest(butler, raw, RUN)
    (exposure,) = butler.query_dimension_records("exposure", instrument=DEMOCAM)
    closed = {**exposure.toDict(), "can_see_sky": False}
    butler.registry.insertDimensionData("exposure", closed, replace=True)
    assert ingest.define_visits(butler, [raw], []) == ()


# Which is chosen


def test_without_lsst_obs_base() -> None:
    find_site_ingest.cache_clear()
    for kind in ("auto", "own"):
        assert isinstance(choose_ingest(kind, lsstcam.describe()), OwnIngest)
    with pytest.raises(ConfigurationError, match=r"ingest is site, but lsst\.obs\.base is not installed"):
        choose_ingest("site", lsstcam.describe())


@pytest.mark.usefixtures("site")
def test_with_lsst_obs_base() -> None:
    from site_description import describe, describe_absent

    assert isinstance(choose_ingest("auto", describe()), SiteIngest)
    assert isinstance(choose_ingest("own", describe()), OwnIngest)
    for description, reason in (
        (describe_absent(), "nowhere.Cam can't be imported"),
        (democam.describe(), "names no instrument_class"),
        (
            describe().model_copy(update={"instrument_class": "ppd.demo.democam.DemoCam"}),
            "no instrument of lsst.obs.base",
        ),
    ):
        assert isinstance(choose_ingest("auto", description), OwnIngest)
        with pytest.raises(ConfigurationError, match=reason):
            choose_ingest("site", description)


# A real ppd


def _make(observatory: Observatory, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Ppd:
    path = os.pathsep.join(filter(None, [str(STAND_IN), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(STAND_IN))
    return Ppd(observatory, folder, instrument_description="site_description:describe", **changes)


@pytest.mark.slow
@pytest.mark.night
def test_a_visit_by_the_sites_tasks(
    observatory: Observatory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppd = _make(observatory, tmp_path, monkeypatch, ingest="auto")
    try:
        with Butler.from_config(str(ppd.central), writeable=True) as central:
            (instrument,) = central.query_dimension_records("instrument", instrument=DEMOCAM)
            changed = {**instrument.toDict(), "class_name": "site_democam.SiteDemoCam", "visit_system": 1}
            central.registry.insertDimensionData("instrument", changed, replace=True)
        ppd.initialize()
        ppd.start()
        group = "2026-11-25T04:00:00.000"
        ppd.good_visit(group, 4)
        ppd.await_state(group, exported=1)
        assert ppd.groups() == [(group, 4)]
        # What is refused is refused before the site's tasks see it.
        group = "2026-11-25T05:00:00.000"
        assert ppd.submit(groupId=group, detector=5).ok
        raw = observatory.raw(5, **identity(group))
        ppd.drop(raw[:-5000], 5, group)
        wait_for(lambda: ppd.counts().get("raws_refused"), 30.0, "the raw to be refused")
        ppd.drop(raw, 5, group, name="again.fits")
        ppd.await_state(group, exported=1)
        logs = "".join(p.read_text() for p in (tmp_path / "state" / "logs").rglob("*") if p.is_file())
        assert logs.count("Stand-in: exposure") == 2
        assert logs.count("Stand-in: 1 visits defined, camera from ['DemoCam/defaults'") == 2
        assert ppd.stop() == 0
    finally:
        ppd.close()


@pytest.mark.night
@pytest.mark.slow
def test_site_without_it_ends_the_start(
    observatory: Observatory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first visit, with the reason."""
    ppd = Ppd(observatory, tmp_path, ingest="site")
    try:
        ppd.initialize()
        done = ppd.command("daemon")
        assert done.returncode == 2
        assert "ingest is site, but lsst.obs.base is not installed" in done.stderr
    finally:
        ppd.close()
