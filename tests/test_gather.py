"""Gathering: all inputs of a visit are held for its detectors, and as central has them now."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DatasetType, Timespan
from lsst.resources import ResourcePath
from lsst.resources.file import FileResourcePath
from repo_support import (
    CALIB,
    DEFAULTS,
    DETECTORS,
    INSTRUMENT,
    NEW,
    OLD,
    SKYMAP,
    TRACTS,
    certify,
    copy_lsstcam,
    needs_lsstcam,
    put,
    span,
)
from site_support import (
    GRIDCAM,
    INPUTS,
    MAIN,
    NIGHT_MJD,
    Site,
    announce,
    ask,
    declare,
    filled_repo,
    given_to,
    prepare_day,
    site_settings,
)

from ppd.cache.repo import CacheRepo
from ppd.errors import NotInitializedError
from ppd.instruments.lsstcam import describe
from ppd.messages import PipelineSummary
from ppd.supervisor.gather import Gatherer
from ppd.supervisor.inputs import describe_inputs
from ppd.supervisor.reading import CentralButlers
from ppd.supervisor.requests import Resolved
from ppd.supervisor.statements import StatementCounter

RUN = ask(announce("any")).runs[0]
CHAIN = f"{INSTRUMENT}/prompt/output-2023-02-26"
Open = Callable[..., Site]


@pytest.fixture
def open_site(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_site(*names: str, **more: Any) -> Site:
            site = Site(tmp_path, filled_repo(tmp_path_factory), names or INPUTS, **more)
            return stack.enter_context(contextlib.closing(site))

        yield open_site


def _holds(site: Site, resolved: Resolved, detector: int, name: str, **data_id: Any) -> DatasetRef | None:
    """What the child of a detector finds by its own search; what it finds it can read."""
    known = {"instrument": INSTRUMENT, "detector": detector, "physical_filter": "r_1", "skymap": SKYMAP}
    with site.child(resolved, detector) as child:
        dataset_type = child.get_dataset_type(name)
        known = {k: v for k, v in known.items() if k in dataset_type.dimensions.required} | data_id
        time = Timespan.fromInstant(span(NIGHT_MJD, None).begin) if dataset_type.isCalibration() else None
        where = resolved.views[detector].collections
        found = child.find_dataset(name, known, collections=where, timespan=time)
        assert found is None or child.get(found)["run"] == found.run
    return found


def test_inputs_are_fetched_once(open_site: Open) -> None:
    site = open_site()
    resolved = site.gather("first")
    assert set(resolved.views) == set(DETECTORS)
    assert (resolved.refused, resolved.postponed) == ({}, {})
    assert resolved.inputs is not None
    resolution = resolved.inputs.resolution
    # What all detectors share is one dataset, fetched once; neighbours share templates.
    for name in ("camera", "skyMap", "model"):
        assert len({ref for d in DETECTORS for ref in given_to(resolved, d, name)}) == 1
    assert len(resolution.refs) < sum(len(own.ids) for own in resolution.detectors.values())
    statistics = site.cache.statistics()
    assert resolved.fetched == statistics.datasets == len(resolution.refs) + 1  # and the init-output
    assert statistics.leases == len(DETECTORS)
    files = [site.path(ref).stat().st_size for ref in resolution.refs.values()]
    (schema,) = site.butler.query_datasets("schema", collections=RUN)
    assert statistics.bytes_fetched == sum(files) + site.path(schema).stat().st_size
    again = site.gather("second")
    assert (again.fetched, set(again.views)) == (0, set(DETECTORS))
    assert site.cache.statistics().bytes_fetched == statistics.bytes_fetched
    assert again.views[4].snapshot == resolved.views[4].snapshot
    some = site.gather("third", (3, 5))
    assert set(some.views) == {3, 5}


def test_child_has_what_was_resolved(open_site: Open) -> None:
    """The clone of one detector's child: by its own queries it finds its inputs, and can read them."""
    site = open_site()
    resolved = site.gather("a")
    for name in ("bias", "flat", "camera", "skyMap", "model"):
        assert [_holds(site, resolved, 4, name)] == given_to(resolved, 4, name)
    with site.child(resolved, 4) as child:
        for name in ("template", "stars"):
            found = child.query_datasets(name, collections=resolved.views[4].collections)
            assert set(given_to(resolved, 4, name)) <= set(found)
        (schema,) = child.query_datasets("schema", collections=RUN)
        assert child.get(schema)["run"] == schema.run
        # Where its outputs go is known already.
        assert child.collections.get_info(f"{INSTRUMENT}/raw/all").type is CollectionType.RUN


# What changes during a night.  The same Gatherer sees it at its next visit.


def test_another_calib_is_certified(open_site: Open) -> None:
    """First where nothing was valid, then in place of another, then in a collection searched before."""
    site = open_site("bias", "camera")
    assert set(site.gather("a", mjd=60012.0).refused) == set(DETECTORS)
    first = put(site.butler, "bias", "bias/b", detector=4)
    certify(site.butler, first, 60010.0, 60020.0, OLD)
    later = site.gather("b", mjd=60012.0)
    assert (set(later.views), given_to(later, 4, "bias")) == ({4}, [first])

    before = site.gather("c").views[4]
    site.butler.registry.decertify(NEW, "bias", span(60002.0, 60010.0), dataIds=[first.dataId])
    second = put(site.butler, "bias", "bias/c", detector=4)
    certify(site.butler, second, 60002.0, 60010.0)
    resolved = site.gather("d")
    assert resolved.fetched == 1
    assert given_to(resolved, 4, "bias") == [second] == [_holds(site, resolved, 4, "bias")]
    assert given_to(resolved, 5, "bias")[0].run == "bias/a"
    assert resolved.views[4].snapshot != before.snapshot

    newest = f"{CALIB}/newest"
    site.butler.collections.register(newest, CollectionType.CALIBRATION)
    site.butler.collections.prepend_chain(CALIB, newest)
    third = put(site.butler, "bias", "bias/d", detector=4)
    site.butler.registry.certify(newest, [third], span(60004.9, 60005.1))
    resolved = site.gather("e")
    assert given_to(resolved, 4, "bias") == [third] == [_holds(site, resolved, 4, "bias")]


def test_calib_is_certified_no_more(open_site: Open) -> None:
    site = open_site("bias", "camera")
    assert 4 in site.gather("a").views
    older = put(site.butler, "bias", "bias/older", detector=4)
    site.butler.registry.decertify(NEW, "bias", span(None, None), dataIds=[older.dataId])
    resolved = site.gather("b")
    assert list(resolved.refused) == [4]
    assert "bias (none is valid at" in resolved.refused[4]
    certify(site.butler, older, None, None, OLD)
    resolved = site.gather("c")
    assert given_to(resolved, 4, "bias") == [older] == [_holds(site, resolved, 4, "bias")]


@pytest.mark.parametrize("replaced", [False, True])
def test_optional_calib_is_certified_no_more(open_site: Open, replaced: bool) -> None:
    """Central takes it back, or replaces it by one whose file is gone: the child does not find it either."""
    site = open_site("bias", "camera", optional=("bias",))
    (old,) = given_to(site.gather("a"), 4, "bias")
    site.butler.registry.decertify(NEW, "bias", span(None, None), dataIds=[old.dataId])
    if replaced:
        new = put(site.butler, "bias", "bias/new", detector=4)
        certify(site.butler, new, None, None)
        site.path(new).unlink()
    resolved = site.gather("b")
    assert resolved.inputs is not None and "bias" in resolved.inputs.lacking(4)
    assert _holds(site, resolved, 5, "bias") is not None
    assert _holds(site, resolved, 4, "bias") is None


def test_templates_are_added(open_site: Open) -> None:
    """One more in a run that is searched; then a whole set before the others; then that set goes again."""
    site = open_site("template", "skyMap")
    red = given_to(site.gather("a"), 4, "template")
    data_id = {"tract": 2, "patch": red[0].dataId["patch"]}
    assert set(site.gather("b", filters="g_1").refused) == set(DETECTORS)
    green = put(site.butler, "template", "templates", band="g", **data_id)
    resolved = site.gather("c", filters="g_1")
    assert given_to(resolved, 4, "template") == [green]
    assert _holds(site, resolved, 4, "template", band="g", **data_id) == green

    better = put(site.butler, "template", "templates/better", band="r", **data_id)
    assert given_to(site.gather("d"), 4, "template") == red
    children = site.butler.collections.get_info(DEFAULTS).children
    site.butler.collections.redefine_chain(DEFAULTS, [children[0], "templates/better", *children[1:]])
    resolved = site.gather("e")
    assert given_to(resolved, 4, "template") == sorted([better, *red[1:]])
    assert _holds(site, resolved, 4, "template", band="r", **data_id) == better
    site.butler.collections.redefine_chain(DEFAULTS, [*children, "templates/better"])
    resolved = site.gather("f")
    assert given_to(resolved, 4, "template") == red
    assert _holds(site, resolved, 4, "template", band="r", **data_id) == red[0]


def test_template_is_withdrawn(open_site: Open) -> None:
    """Removed from central: the child finds the older one that is left; who uses it may go on to."""
    site = open_site("template", "skyMap")
    old, *_ = given_to(site.gather("a"), 4, "template")
    data_id = {"tract": 2, "patch": old.dataId["patch"], "band": "r"}
    new = put(site.butler, "template", "templates/new", **data_id)
    site.butler.collections.prepend_chain(DEFAULTS, "templates/new")
    using = site.gather("b", (4,))
    site.butler.pruneDatasets([new], disassociate=True, unstore=True, purge=True)
    resolved = site.gather("c", (4,))
    assert old in given_to(resolved, 4, "template") and new not in given_to(resolved, 4, "template")
    assert _holds(site, using, 4, "template", **data_id) == new
    site.cache.release("b/4")
    assert _holds(site, site.gather("d"), 4, "template", **data_id) == old


def test_input_collections_are_added(open_site: Open) -> None:
    """To the umbrella chain: a run, and a chain with one."""
    site = open_site("limits", "camera")
    assert set(site.gather("a").refused) == set(DETECTORS)
    one, two = (put(site.butler, "limits", f"limits/{d}", detector=d) for d in (1, 2))
    site.butler.collections.register("limits", CollectionType.CHAINED)
    site.butler.collections.redefine_chain("limits", [two.run])
    for ref, name in ((one, one.run), (two, "limits")):
        site.butler.collections.extend_chain(DEFAULTS, name)
        resolved, detector = site.gather(f"b{ref.run[-1]}"), int(ref.dataId["detector"])
        assert given_to(resolved, detector, "limits") == [ref] == [_holds(site, resolved, detector, "limits")]


def test_tag_moves(open_site: Open) -> None:
    """A tagged collection: from one dataset to another of the same data ID and back, and away."""
    site = open_site("limits", "camera")
    one, two = (put(site.butler, "limits", f"limits/{i}", detector=4) for i in "ab")
    site.butler.collections.register("tagged", CollectionType.TAGGED)
    site.butler.collections.prepend_chain(DEFAULTS, "tagged")
    for number, ref in enumerate((one, two, one)):
        site.butler.registry.disassociate("tagged", [one, two])
        site.butler.registry.associate("tagged", [ref])
        resolved = site.gather(f"a{number}", (4,))
        assert given_to(resolved, 4, "limits") == [ref] == [_holds(site, resolved, 4, "limits")]
    site.butler.registry.disassociate("tagged", [one, two])
    assert list(site.gather("none", (4,)).refused) == [4]


def test_dataset_type_is_registered(open_site: Open) -> None:
    """Of an input that central knows nothing about at first."""
    site = open_site("camera")
    (camera,) = declare(site.butler, "camera").inputs
    late = camera.model_copy(update={"name": "late", "is_calibration": False})
    site.gatherer.learn([PipelineSummary(path=MAIN, inputs=(camera, late), outputs=(), init_outputs=())])
    assert "late (central has no such dataset type)" in site.gather("a").refused[4]
    late_type = DatasetType("late", ("instrument",), "StructuredDataDict", universe=site.butler.dimensions)
    site.butler.registry.registerDatasetType(late_type)
    ref = put(site.butler, "late", "models")
    resolved = site.gather("b")
    assert given_to(resolved, 4, "late") == [ref] == [_holds(site, resolved, 4, "late")]


def test_what_is_kept(open_site: Open) -> None:
    """A visit costs the same whatever the number of its detectors; the init-outputs cost once."""
    site = open_site()
    counts = []
    with contextlib.closing(StatementCounter(str(site.place))) as counter:
        for number, detectors in enumerate((DETECTORS, (4,), DETECTORS, (0, 4, 8))):
            site.gather(f"visit{number}", detectors)
            counts.append(counter.take())
    first, *warm = counts
    assert len(set(warm)) == 1
    assert 7 <= warm[0] < min(first, 40)
    # Nobody looks at the day's chain again, and the child has its init-outputs all the same.
    site.butler.collections.redefine_chain(CHAIN, [])
    resolved = site.gather("late", (4,))
    with site.child(resolved, 4) as child:
        assert len(child.query_datasets("schema", collections=RUN)) == 1


def test_not_initialized(open_site: Open) -> None:
    """Said with the command to run; after that it goes on without a new start."""
    site = open_site("camera")
    children = site.butler.collections.get_info(CHAIN).children
    site.butler.collections.redefine_chain(CHAIN, children[:1])
    with pytest.raises(NotInitializedError, match="Run: ppd-init --day-obs 20230226"):
        site.gather("a")
    site.butler.collections.redefine_chain(CHAIN, children)
    assert set(site.gather("b").views) == set(DETECTORS)


def test_optional_input_is_missing(open_site: Open) -> None:
    site = open_site("bias", "limits", optional=("limits",))
    limits = put(site.butler, "limits", "models", detector=3)
    resolved = site.gather("a")
    assert set(resolved.views) == set(DETECTORS)
    assert given_to(resolved, 3, "limits") == [limits]
    assert resolved.inputs is not None
    described = describe_inputs([resolved.inputs])["detectors"]
    assert described["3"]["missing"] == {}
    reason = f"there is none for {{instrument: '{INSTRUMENT}'}}"
    assert described["4"]["missing"] == {"limits": {"reason": reason, "optional": True}}


def test_one_of_several_templates_is_gone(open_site: Open) -> None:
    """The detector does with the others; who looks is told."""
    site = open_site("template", "bias")
    regions = {4: GRIDCAM.focal_plane.regions(*TRACTS[2], 20.0, padding=30.0)[4]}
    found = site.gatherer.overlapping(regions, "r_1")
    bad, *good = sorted(r for r in found.refs.values() if r.datasetType.name == "template")
    assert good
    site.path(bad).unlink()
    resolved = site.gather("a")
    assert set(resolved.views) == set(DETECTORS)
    assert resolved.inputs is not None
    assert resolved.inputs.lacking(4) == {}
    described = describe_inputs([resolved.inputs], 4)["detectors"]
    assert list(described) == ["4"] and described["4"]["missing"] == {}
    failures = {line["id"]: line.get("failure") for line in described["4"]["inputs"]}
    assert "its file is gone" in failures.pop(str(bad.id))
    assert set(failures.values()) == {None}
    with site.child(resolved, 4) as child:
        held = child.query_datasets("template", collections=DEFAULTS)
        assert set(good) <= set(held) and bad not in held


def test_file_that_can_not_be_read_once(open_site: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its detector is asked about again, the others go on; the next try succeeds."""
    site = open_site("bias", "camera")
    bad = site.butler.find_dataset("bias", instrument=INSTRUMENT, detector=4, collections="bias/a")
    assert bad is not None
    path, original = site.path(bad), FileResourcePath.transfer_from

    def transfer_from(self: FileResourcePath, src: ResourcePath, *args: Any, **kwargs: Any) -> None:
        if src.ospath == str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        original(self, src, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FileResourcePath, "transfer_from", transfer_from)
        resolved = site.gather("a")
    assert (resolved.refused, list(resolved.postponed)) == ({}, [4])
    assert set(resolved.views) == set(DETECTORS) - {4}
    for part in ("Main lacks bias", "detector: 4", "can't be read", "Input/output error"):
        assert part in resolved.postponed[4]
    resolved = site.gather("a", (4,))
    assert (list(resolved.views), resolved.fetched) == ([4], 1)
    assert _holds(site, resolved, 4, "bias") == bad


@needs_lsstcam
def test_lsstcam(tmp_path: Path) -> None:
    """A real LSSTCam registry, a real visit, all detectors; nothing of the compiled stack is needed."""
    none = ("transmission_optics", "gain_correction")  # declared in the registry, and that is all
    root = copy_lsstcam(tmp_path)
    with sqlite3.connect(root / "gen3.sqlite3") as registry:
        # The files of this test repo are empty.
        for (path,) in registry.execute("SELECT path FROM file_datastore_records").fetchall():
            size = (root / path).stat().st_size
            registry.execute("UPDATE file_datastore_records SET file_size = ? WHERE path = ?", (size, path))
    with Butler.from_config(str(root), writeable=True) as butler:
        settings = site_settings(tmp_path, root, instrument="LSSTCam", skymap="lsst_cells_v1")
        prepare_day(butler, settings)
        names = {t.name for t in butler.registry.queryDatasetTypes() if t.isCalibration()}
        names |= {"pretrainedModelPackage", "skyMap", "template_coadd", "the_monster_20250219"}
        summary = declare(butler, *sorted(names), optional=none)
        (visit,) = butler.query_dimension_records("visit", instrument="LSSTCam", visit=2025052100138)
        (tmp_path / "place").mkdir()
        cache = CacheRepo(tmp_path / "place", butler, 1 << 30)
        for element in ("instrument", "detector", "physical_filter", "skymap"):
            cache.insert_records({element: butler.query_dimension_records(element)})
    central = CentralButlers(str(root), None)
    gatherer = Gatherer(settings, describe(), central, cache, {"g_6": "g"})
    gatherer.learn([summary])
    detectors = tuple(d.id for d in describe().focal_plane.detectors)
    pointing = {"position": (225.85827927603876, -38.6275010948895), "cameraAngle": 357.9606420320256}
    what = {"instrument": "LSSTCam", "filters": "g_6", "mjd": visit.timespan.begin.tai.mjd}
    message = announce("2025-05-22T05:18:32.763", **what, **pointing)
    first = gatherer.gather(ask(message, detectors))
    with contextlib.closing(StatementCounter(str(tmp_path / "place"))) as counter:
        resolved = gatherer.gather(ask(message, detectors))
        statements = counter.take()
    assert (len(detectors), list(resolved.views), resolved.postponed) == (189, [90, 91], {})
    assert (resolved.views, resolved.refused) == (first.views, first.refused)
    assert len(resolved.refused) == 187
    for detector, reason in resolved.refused.items():
        assert reason.startswith("Main lacks ") and "flat (none is valid at" in reason, detector
        assert "camera" not in reason
    assert first.fetched > 30 and resolved.fetched == 0
    assert len(names) == 19 <= statements < 60
    assert resolved.inputs is not None
    described = describe_inputs([resolved.inputs], 90)["detectors"]["90"]
    assert set(described["missing"]) == set(none)
    assert {line["type"] for line in described["inputs"]} == names - set(none)
    cache.close()
    central.close()
