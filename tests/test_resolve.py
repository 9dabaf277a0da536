"""Resolving: for each detector what its own Butler queries would find, at the cost of one visit."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings
from lsst.daf.butler import Butler, CollectionType, DatasetRef, Timespan
from lsst.sphgeom import ConvexPolygon, HtmPixelization
from repo_support import (
    DEFAULTS,
    DETECTORS,
    INSTRUMENT,
    NEW,
    OLD,
    SKYMAP,
    TRACTS,
    certify,
    copy_lsstcam,
    grid_plane,
    make_grid_repo,
    needs_lsstcam,
    span,
)
from site_support import input_type

from ppd.instruments.lsstcam import focal_plane
from ppd.messages import InputType
from ppd.supervisor.resolve import DetectorInputs, Resolution, VisitConstraints, resolve_inputs
from ppd.supervisor.statements import StatementCounter

CALIBS = ("bias", "flat", "camera")
OTHERS = ("skyMap", "template", "stars", "model", "limits", "curve")
NOW = 60005.0
# Collections in a chain whose order varies.
THIRD = "any/calib/third"
_RUNS = ("templates", "templates/some", "refcats", "refcats/some", "skymaps", "models", "models/some")
CHILDREN = ("any/calib", "any/templates", "models/tagged", "cameras/third", *_RUNS)
# Detectors that lack something that the others have.
NO_BIAS, OLD_BIAS, NO_LIMITS = 8, 7, 3


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Butler]:
    """A repo whose datasets have no files: nothing here reads one."""
    root = tmp_path_factory.mktemp("grid")
    make_grid_repo(root)
    with Butler.from_config(str(root), writeable=True) as butler:
        _fill(butler)
        yield butler


def _insert(butler: Butler, name: str, run: str, data_ids: Iterable[dict]) -> list[DatasetRef]:
    butler.collections.register(run)
    return butler.registry.insertDatasets(name, data_ids, run=run)


def _fill(butler: Butler) -> None:
    detectors = [{"instrument": INSTRUMENT, "detector": d} for d in DETECTORS]
    filters = [{"instrument": INSTRUMENT, "physical_filter": f} for f in ("g_1", "r_1")]
    for begin in (60000.0, 60010.0):
        for ref in _insert(butler, "bias", f"bias/{begin:.0f}", detectors):
            if ref.dataId["detector"] not in (NO_BIAS, OLD_BIAS):
                certify(butler, ref, begin, begin + 10.0, NEW)
    for ref in _insert(butler, "bias", "bias/old", detectors):
        if ref.dataId["detector"] != NO_BIAS:
            certify(butler, ref, 59000.0, None, OLD)
    for ref in _insert(butler, "flat", "flats", [{**d, **f} for d in detectors for f in filters]):
        certify(butler, ref, 60000.0, None, NEW)
    (camera,) = _insert(butler, "camera", "cameras", [{"instrument": INSTRUMENT}])
    certify(butler, camera, None, None, OLD)
    patches = butler.query_dimension_records("patch", skymap=SKYMAP)
    for tag in ("r", "g"):
        ids = [{"skymap": SKYMAP, "tract": p.tract, "patch": p.id, "band": tag} for p in patches]
        _insert(butler, "template", "templates", ids)
    htm = HtmPixelization(7)
    pixels = {
        pixel
        for tract in butler.query_dimension_records("tract", skymap=SKYMAP)
        for begin, end in htm.envelope(tract.region)
        for pixel in range(begin, end)
    }
    # Not everywhere are there stars.
    _insert(butler, "stars", "refcats", [{"htm7": p} for p in sorted(pixels) if p % 5])
    _insert(butler, "skyMap", "skymaps", [{"skymap": SKYMAP}])
    _insert(butler, "model", "models", [{}])
    _insert(butler, "limits", "models", [d for d in detectors if d["detector"] != NO_LIMITS])
    _insert(butler, "curve", "models", filters)
    _fill_copies(butler)


def _fill_copies(butler: Butler) -> None:
    """Add copies of some datasets where only chains of their own find them."""
    some = [{"instrument": INSTRUMENT, "detector": d} for d in (0, 1, 2, NO_LIMITS, NO_BIAS)]
    butler.collections.register(THIRD, CollectionType.CALIBRATION)
    for ref in _insert(butler, "bias", "bias/third", some):
        butler.registry.certify(THIRD, [ref], span(60004.0, 60006.0))
    for ref in _insert(butler, "flat", "flats/third", [{**d, "physical_filter": "r_1"} for d in some]):
        butler.registry.certify(THIRD, [ref], span(None, NOW + 1.0))
    (camera,) = _insert(butler, "camera", "cameras/third", [{"instrument": INSTRUMENT}])
    butler.registry.certify(THIRD, [camera], span(NOW + 1.0, None))  # not valid yet
    patches = butler.query_dimension_records("patch", skymap=SKYMAP)
    for run, step in (("templates/some", 2), ("templates/few", 3)):
        ids = [{"skymap": SKYMAP, "tract": p.tract, "patch": p.id, "band": "r"} for p in patches]
        _insert(butler, "template", run, ids[::step])
    stars = butler.query_datasets("stars", collections="refcats", limit=None)
    _insert(butler, "stars", "refcats/some", [r.dataId for r in stars if int(r.dataId["htm7"]) % 2])
    for name, ids in (("limits", some), ("model", [{}]), ("skyMap", [{"skymap": SKYMAP}])):
        _insert(butler, name, "models/some", ids)
    limits = butler.query_datasets("limits", collections="models/some")
    butler.collections.register("models/tagged", CollectionType.TAGGED)
    butler.registry.associate("models/tagged", [r for r in limits if r.dataId["detector"] < 2])
    for chain in ("any/templates", "any/calib", "any"):
        butler.collections.register(chain, CollectionType.CHAINED)
    butler.collections.redefine_chain("any/templates", ["templates/few", "templates"])


def _resolve(
    butler: Butler,
    names: Iterable[str] = CALIBS + OTHERS,
    regions: dict[int, ConvexPolygon] | None = None,
    time: Timespan | None = None,
    physical_filter: str | None = "r_1",
    detectors: tuple[int, ...] = DETECTORS,
    collections: str = DEFAULTS,
) -> Resolution:
    visit = VisitConstraints(
        instrument=INSTRUMENT,
        physical_filter=physical_filter,
        band=physical_filter[0] if physical_filter else None,
        skymap=SKYMAP,
        timespan=time or Timespan.fromInstant(span(NOW, None).begin),
        regions=regions or {},
        detectors=detectors,
    )
    return resolve_inputs(butler, [collections], [input_type(butler, n) for n in names], visit)


def _pointing(ra: float, dec: float, rotation: float = 0.0) -> dict[int, ConvexPolygon]:
    return grid_plane().regions(ra, dec, rotation, padding=30.0)


def _found(resolution: Resolution, detector: int, name: str) -> set[uuid.UUID]:
    ids = resolution.detectors[detector].ids
    return {i for i in ids if resolution.refs[i].datasetType.name == name}


def _by_butler(
    butler: Butler, detector: int, name: str, region: ConvexPolygon, collections: str = DEFAULTS
) -> set[uuid.UUID]:
    """What one detector's own query finds."""
    dataset_type = butler.get_dataset_type(name)
    known = {"instrument": INSTRUMENT, "detector": detector, "physical_filter": "r_1", "skymap": SKYMAP}
    data_id = {k: v for k, v in known.items() if k in dataset_type.dimensions.required}
    if dataset_type.isCalibration():
        time = Timespan.fromInstant(span(NOW, None).begin)
        found = butler.find_dataset(name, data_id, collections=collections, timespan=time)
        return {found.id} if found is not None else set()
    where, bind = "", {}
    if name == "template":
        where, bind = "band = 'r' AND patch.region OVERLAPS area", {"area": region}
    elif name == "stars":
        where, bind = "htm7.region OVERLAPS area", {"area": region}
    refs = butler.query_datasets(
        name, collections=collections, data_id=data_id, where=where, bind=bind, explain=False
    )
    return {ref.id for ref in refs}


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(TRACTS),
    st.floats(-0.7, 0.7),
    st.floats(-0.7, 0.7),
    st.floats(0.0, 360.0),
)
@example((40.0, 90.0), 0.0, 0.0, 0.0)
@example((211.0, -90.0), 0.0, 0.0, 45.0)
@example((0.0, -12.4), 0.0, 0.0, 90.0)
def test_as_each_detector_alone(
    butler: Butler, centre: tuple[float, float], east: float, north: float, rotation: float
) -> None:
    """Also at the poles, across right ascension 0 and at any rotation."""
    ra, dec = (centre[0] + east) % 360.0, max(-90.0, min(90.0, centre[1] + north))
    regions = _pointing(ra, dec, rotation)
    resolution = _resolve(butler, regions=regions)
    for detector, region in regions.items():
        inputs = resolution.detectors[detector]
        for name in CALIBS + OTHERS:
            expected = _by_butler(butler, detector, name, region)
            assert _found(resolution, detector, name) == expected, (name, detector)
            assert (name in inputs.missing) == (not expected)
        assert _found(resolution, detector, "template")
    given_ids = set[uuid.UUID]().union(*(inputs.ids for inputs in resolution.detectors.values()))
    assert given_ids == set(resolution.refs)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.permutations((NEW, OLD, THIRD)).flatmap(lambda order: st.sampled_from([order, order[:2]])),
    st.permutations(CHILDREN).flatmap(lambda order: st.sampled_from([order, order[:7]])),
    st.sampled_from(((0, 4), (1, OLD_BIAS), (2, NO_BIAS), (NO_LIMITS, 5))),
    st.floats(0.0, 360.0),
)
@example((OLD, THIRD, NEW), tuple(reversed(CHILDREN)), (0, 1), 10.0)
@example((NEW, OLD, THIRD), CHILDREN, (NO_LIMITS, NO_BIAS), 10.0)
def test_first_of_several_whatever_the_order(
    butler: Butler,
    calibs: Sequence[str],
    children: Sequence[str],
    detectors: tuple[int, int],
    rotation: float,
) -> None:
    """Copies in runs, a tagged collection, chains in chains and calibration collections in any order."""
    butler.collections.redefine_chain("any/calib", list(calibs))
    butler.collections.redefine_chain("any", list(children))
    regions = _pointing(*TRACTS[3], rotation)
    resolution = _resolve(butler, regions=regions, collections="any")
    for detector in detectors:
        for name in CALIBS + OTHERS:
            expected = _by_butler(butler, detector, name, regions[detector], "any")
            assert _found(resolution, detector, name) == expected, (name, detector)
            assert (name in resolution.detectors[detector].missing) == (not expected)


@pytest.mark.parametrize(
    ("begin", "end", "runs"),
    [
        (60000.0, 60001.0, {"bias/60000"}),
        (60009.0, 60010.0, {"bias/60000"}),  # ends exactly where the next begins
        (60010.0, 60011.0, {"bias/60010"}),
        (60009.9, 60010.1, {"bias/60000", "bias/60010"}),  # the exposure may be on either side
        (60020.0, 60021.0, {"bias/old"}),  # only the second collection of the chain has one
        (59999.0, 60000.0, {"bias/old"}),
        (59999.9, 60000.1, {"bias/60000"}),
        (58000.0, 58001.0, set()),
    ],
)
def test_validity(butler: Butler, begin: float, end: float, runs: set[str]) -> None:
    resolution = _resolve(butler, ("bias",), time=span(begin, end))
    assert {resolution.refs[i].run for i in _found(resolution, 0, "bias")} == runs
    # A certification for each dataset, as central has it, and the collection that it is in.
    for c in resolution.certifications:
        assert c.collection == (OLD if c.ref.run == "bias/old" else NEW)
        if c.ref.run == "bias/60000":
            assert c.timespan == span(60000.0, 60010.0)
    assert {c.ref.id for c in resolution.certifications} == set(resolution.refs)


def test_first_collection_of_each_detector(butler: Butler) -> None:
    """One detector has its calib only in an older collection; another has none and lacks it alone."""
    resolution = _resolve(butler, ("bias", "camera"))
    runs = {d: {resolution.refs[i].run for i in _found(resolution, d, "bias")} for d in resolution.detectors}
    assert runs.pop(NO_BIAS) == set()
    assert runs.pop(OLD_BIAS) == {"bias/old"}
    assert set.union(*runs.values()) == {"bias/60000"}
    lacking = {d: inputs.missing for d, inputs in resolution.detectors.items() if inputs.missing}
    assert list(lacking) == [NO_BIAS]
    assert "none is valid at" in lacking[NO_BIAS]["bias"]
    assert _found(resolution, NO_BIAS, "camera")


def test_no_position(butler: Butler) -> None:
    resolution = _resolve(butler)
    for detector, inputs in resolution.detectors.items():
        for name in ("template", "stars"):
            assert "no position" in inputs.missing[name]
        for name in ("flat", "camera", "skyMap", "model", "curve"):
            assert _found(resolution, detector, name)
    assert resolution.lasting == set(resolution.refs)


def test_no_filter(butler: Butler) -> None:
    resolution = _resolve(butler, regions=_pointing(*TRACTS[3]), physical_filter=None)
    for detector, inputs in resolution.detectors.items():
        assert {"flat", "template", "curve"} <= set(inputs.missing)
        assert "no filter" in inputs.missing["flat"]
        assert _found(resolution, detector, "stars")
        assert _found(resolution, detector, "model")


def test_empty_sky(butler: Butler) -> None:
    resolution = _resolve(butler, ("template", "stars", "model"), regions=_pointing(300.0, 50.0))
    for inputs in resolution.detectors.values():
        assert set(inputs.missing) == {"template", "stars"}
        assert inputs.missing["template"] == "none overlaps the detector for {band: 'r', skymap: 'grid'}"
    assert len(resolution.refs) == 1


def test_what_does_not_exist(butler: Butler) -> None:
    """An unknown type, one that no collection has, and what only the visit itself will make."""
    declared = [
        InputType(
            name=name,
            dimensions=dimensions,
            storage_class="StructuredDataDict",
            is_calibration=False,
            is_prerequisite=False,
            optional=True,
            multiple=False,
        )
        for name, dimensions in (
            ("unheard_of", ("instrument",)),
            ("raw", ("instrument", "exposure", "detector")),
            ("predicted", ("instrument", "group", "detector")),
        )
    ]
    visit = VisitConstraints(INSTRUMENT, "r_1", "r", SKYMAP, span(NOW, NOW + 1), {}, (1,))
    inputs = resolve_inputs(butler, [DEFAULTS], declared, visit).detectors[1]
    assert inputs == DetectorInputs(missing={"unheard_of": "central has no such dataset type"})
    nothing = resolve_inputs(butler, ["skymaps"], [input_type(butler, "bias")], visit).detectors[1]
    assert nothing.missing == {"bias": "no collection of skymaps has any"}


def test_only_the_detectors_asked_for(butler: Butler) -> None:
    regions = {d: r for d, r in _pointing(*TRACTS[2]).items() if d in (2, 4)}
    resolution = _resolve(butler, regions=regions, detectors=(2, 4))
    assert set(resolution.detectors) == {2, 4}
    detectors = {r.dataId["detector"] for r in resolution.refs.values() if "detector" in r.dataId.dimensions}
    assert detectors == {2, 4}
    whole = _resolve(butler, regions=_pointing(*TRACTS[2]))
    for detector in (2, 4):
        assert resolution.detectors[detector] == whole.detectors[detector]


def test_lasting(butler: Butler) -> None:
    """What depends on the pointing does not last."""
    resolution = _resolve(butler, regions=_pointing(*TRACTS[2]))
    moving = {i for i, ref in resolution.refs.items() if ref.datasetType.name in ("template", "stars")}
    assert moving
    assert resolution.lasting == set(resolution.refs) - moving


def test_statements_do_not_grow_with_detectors(butler: Butler) -> None:
    counter = StatementCounter("no database is excluded")
    try:
        counts = []
        # Of those that lack a calib, every collection is asked.
        for detectors in ((NO_BIAS,), (0, 1, NO_BIAS), DETECTORS, DETECTORS):
            regions = {d: r for d, r in _pointing(*TRACTS[2]).items() if d in detectors}
            counter.take()
            _resolve(butler, regions=regions, detectors=detectors)
            counts.append(counter.take())
    finally:
        counter.close()
    assert len(set(counts)) == 1
    assert len(CALIBS + OTHERS) <= counts[0] <= 6 * len(CALIBS + OTHERS)


@needs_lsstcam
def test_lsstcam(tmp_path: Path) -> None:
    """A real LSSTCam registry, for the visit that its README tells of."""
    with Butler.from_config(str(copy_lsstcam(tmp_path)), writeable=False) as butler:
        visit = butler.query_dimension_records("visit", instrument="LSSTCam", visit=2025052100138)[0]
        plane = focal_plane()
        detectors = (90, 91, 92)
        regions = plane.regions(225.85827927603876, -38.6275010948895, 357.9606420320256, padding=30.0)
        constraints = VisitConstraints(
            "LSSTCam",
            "g_6",
            "g",
            "lsst_cells_v1",
            visit.timespan,
            {d: regions[d] for d in detectors},
            detectors,
        )
        calibs = [t.name for t in butler.registry.queryDatasetTypes() if t.isCalibration()]
        names = [*calibs, "template_coadd", "the_monster_20250219", "skyMap", "pretrainedModelPackage"]
        resolution = resolve_inputs(
            butler,
            ["LSSTCam/defaults", "LSSTCam/templates"],
            [input_type(butler, name) for name in names],
            constraints,
        )
        for detector in (90, 91):
            inputs = resolution.detectors[detector]
            counts = {name: len(_found(resolution, detector, name)) for name in names}
            # The registry declares these two and has none.
            assert set(inputs.missing) == {"transmission_optics", "gain_correction"}
            for name in set(calibs) - set(inputs.missing):
                assert counts[name] == 1, name
                assert _found(resolution, detector, name) <= {c.ref.id for c in resolution.certifications}
            assert counts["skyMap"] == counts["pretrainedModelPackage"] == 1
            assert counts["the_monster_20250219"] >= 1
            assert counts["template_coadd"] >= 1
            templates = [resolution.refs[i].dataId for i in _found(resolution, detector, "template_coadd")]
            assert {(d["tract"], d["band"]) for d in templates} == {(3534, "g")}
            flats = [resolution.refs[i].dataId for i in _found(resolution, detector, "flat")]
            assert [(d["physical_filter"], d["detector"]) for d in flats] == [("g_6", detector)]
        # A detector that this registry has no calibs of.
        assert {"bias", "dark", "flat"} <= set(resolution.detectors[92].missing)
        assert _found(resolution, 92, "camera")
