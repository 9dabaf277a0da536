"""Inputs that are wrong or not there: said plainly, and nobody else suffers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, DimensionConfig
from lsst.daf.butler.dimensions import DimensionUniverse
from repo_support import (
    CALIB,
    DEFAULTS,
    DETECTORS,
    INSTRUMENT,
    NEW,
    SKYMAP,
    TRACTS,
    certify,
    make_grid_repo,
    put,
    span,
    wait_for,
)
from site_support import (
    GRIDCAM,
    INPUTS,
    Site,
    announce,
    ask,
    declare,
    filled_repo,
    given_to,
    prepare_day,
    site_settings,
)

from ppd.errors import ConfigurationError
from ppd.supervisor.central import CentralReader
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.inbox import Inbox
from ppd.supervisor.requests import Resolved

Open = Callable[..., Site]
CONFIGS = "resource://lsst.daf.butler/configs/old_dimensions/daf_butler_universe{}.yaml"


@pytest.fixture
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled_repo(tmp_path_factory)


@pytest.fixture
def open_site(tmp_path: Path, filled: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_site(names: tuple[str, ...] = INPUTS, root: Path = filled, **more: Any) -> Site:
            site = Site(tmp_path / uuid.uuid4().hex, root, names, **more)
            return stack.enter_context(contextlib.closing(site))

        yield open_site


def _only_refused(resolved: Resolved, *detectors: int) -> str:
    """See that some detectors alone are refused, for good; return the reason of the first."""
    assert sorted(resolved.refused) == sorted(detectors)
    assert set(resolved.views) == set(DETECTORS) - set(detectors)
    assert resolved.postponed == {}
    return resolved.refused[detectors[0]]


def test_no_calib_is_valid(open_site: Open) -> None:
    """Of one detector; then of all, at another time."""
    site = open_site()
    (bias,) = site.butler.query_datasets("bias", collections="bias/a", instrument=INSTRUMENT, detector=4)
    site.butler.registry.decertify(NEW, "bias", span(60004.0, 60006.0), dataIds=[bias.dataId])
    reason = _only_refused(site.gather("a"), 4)
    assert "Main lacks bias (none is valid at [2023-03-02T00:00:00, 2023-03-02T00:00:30)" in reason
    assert "template" not in reason
    assert _only_refused(site.gather("b", mjd=60010.0), *DETECTORS).startswith("Main lacks bias (none is val")


def test_reason_has_data_id(open_site: Open) -> None:
    """Nothing of one filter: it is said of which."""
    site = open_site(("flat", "template", "curve"))
    put(site.butler, "curve", "models", physical_filter="r_1")
    reason = _only_refused(site.gather("a", filters="g_1"), *DETECTORS)
    filtered = f"{{instrument: '{INSTRUMENT}', physical_filter: 'g_1'}}"
    for name, data_id in (("flat", filtered), ("template", "{band: 'g', "), ("curve", filtered)):
        assert re.search(rf"{name} \([^()]*(\[.*\))? for {re.escape(data_id)}", reason), reason


def test_input_collections_do_not_exist(open_site: Open) -> None:
    """None of them: an error that has their names.  Some: who needs nothing of them goes on."""
    site = open_site(("camera", "model"))
    for chain in (DEFAULTS, CALIB):
        site.butler.collections.x_remove(chain)
    reason = _only_refused(site.gather("a"), *DETECTORS)
    for part in ("Main lacks", "camera (no collection of skymaps, refcats has any)", "model (no collection"):
        assert part in reason
    site.butler.removeRuns(["skymaps", "refcats"])
    with pytest.raises(ConfigurationError, match=f"none of the collections {DEFAULTS}, {CALIB}, "):
        site.gather("b")


@pytest.mark.parametrize(
    ("name", "harm"), [("bias", "gone"), ("bias", "short"), ("template", "gone"), ("camera", "short")]
)
def test_bad_file(open_site: Open, name: str, harm: str) -> None:
    """The file of an input of one detector, of neighbours, or of all is gone or of another size."""
    site = open_site(("bias", "template", "camera"))
    region = GRIDCAM.focal_plane.regions(*TRACTS[2], 20.0, padding=30.0)[0]
    found = site.gatherer.overlapping({0: region}, "r_1")
    bad = [r for r in found.refs.values() if r.datasetType.name == name]
    if name == "bias":  # certified at another time than now
        bad = site.butler.query_datasets("bias", collections="bias/a", instrument=INSTRUMENT, detector=0)
    for ref in bad:
        path = site.path(ref)
        if harm == "gone":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size - 1)
    resolved = site.gather("a")
    reason = resolved.refused[0]
    assert any(f"Main lacks {name} ({ref.dataId}: " in reason for ref in bad)
    assert ("its file is gone" if harm == "gone" else "bytes, its record says") in reason
    assert len(reason) < 1000
    if name == "camera":
        _only_refused(resolved, *DETECTORS)
    elif name == "bias":
        _only_refused(resolved, 0)
    else:
        # Neighbours have some that are good.
        lost = {d for d in DETECTORS if set(given_to(resolved, d, name)) <= set(bad)}
        assert 0 < len(lost) < len(DETECTORS)
        _only_refused(resolved, *sorted(lost))
    for detector in tuple(resolved.views)[:1]:
        with site.child(resolved, detector) as child:
            assert not any(child.get_dataset(ref.id) for ref in bad)


@pytest.mark.slow
@pytest.mark.parametrize("version", [6, 7])
def test_older_universe(open_site: Open, tmp_path: Path, version: int) -> None:
    """Cache and children have exactly central's universe."""
    make_grid_repo(tmp_path / "old", dimensions=DimensionConfig(CONFIGS.format(version)))
    with Butler.from_config(str(tmp_path / "old"), writeable=True) as butler:
        certify(butler, put(butler, "bias", "biases", detector=4), None, None)
        for patch in butler.query_dimension_records("patch", skymap=SKYMAP, tract=2):
            put(butler, "template", "templates", tract=2, patch=patch.id, band="r")
        prepare_day(butler, site_settings(tmp_path, tmp_path / "old"))
    site = open_site(("bias", "template"), root=tmp_path / "old")
    resolved = site.gather("a")
    assert (set(resolved.views), set(resolved.refused)) == ({4}, set(DETECTORS) - {4})
    universe = site.butler.dimensions
    assert universe.version == version != DimensionUniverse().version
    with site.child(resolved, 4) as child:
        for other in (site.cache.butler, child):
            assert other.dimensions.version == version
            assert other.dimensions.dimensionConfig == universe.dimensionConfig
        (template, *_) = given_to(resolved, 4, "template")
        assert child.get(template)["run"] == "templates"


@pytest.mark.parametrize(
    ("attribute", "value", "part"),
    [
        ("config:dimensions.json", "{nonsense", "Expecting property name"),
        ("config:dimensions.json", '{"version": 99, "namespace": "daf_butler"}', "DimensionConfig"),
        ("version:%.ByDimensionsDatasetRecord%", "99.0.0", "registry schema version 99.0.0"),
        ("config:registry.managers.datasets", "lsst.daf.butler.Newer", "stored: lsst.daf.butler.Newer"),
    ],
)
def test_unreadable_universe(tmp_path: Path, filled: Path, attribute: str, value: str, part: str) -> None:
    """Of a newer middleware, or damaged: said at the start, with the repo and what is wrong."""
    root = shutil.copytree(filled, tmp_path / "central")
    with sqlite3.connect(root / "gen3.sqlite3") as db:
        done = db.execute("UPDATE butler_attributes SET value = ? WHERE name LIKE ?", (value, attribute))
        assert done.rowcount == 1
    with pytest.raises(ConfigurationError) as caught:
        CentralReader(site_settings(tmp_path, root), GRIDCAM, Inbox())
    assert str(caught.value).startswith(
        f"The central repo {root} can't be read by the installed middleware: "
    )
    assert part in str(caught.value)
    assert not list(tmp_path.glob("ppd-*"))


def _add_sky_map(butler: Butler) -> None:
    """Add another sky map with the patches of the third tract."""
    insert = butler.registry.insertDimensionData
    insert(
        "skymap", {"name": "other", "hash": b"other", "tract_max": 9, "patch_nx_max": 9, "patch_ny_max": 9}
    )
    for element in ("tract", "patch"):
        for record in butler.query_dimension_records(element, skymap=SKYMAP, tract=2):
            insert(element, record.toDict() | {"skymap": "other"})


def test_templates_of_two_sky_maps(open_site: Open) -> None:
    """Which of them is not for ppd to guess."""
    names = ("template", "bias")
    unsure, sure = open_site(names, skymap=None), open_site(names)
    for site in (unsure, sure):
        _add_sky_map(site.butler)
        first = site.gather("a")
        assert set(first.views) == set(DETECTORS)
        (template, *_) = given_to(first, 4, "template")
        put(site.butler, "template", "templates", **dict(template.dataId.required) | {"skymap": "other"})
    reason = _only_refused(unsure.gather("b"), *DETECTORS)
    assert "Main lacks template (" in reason and "several sky maps (grid, other): configure one" in reason
    resolved = sure.gather("b")
    assert set(resolved.views) == set(DETECTORS)
    assert {r.dataId["skymap"] for d in DETECTORS for r in given_to(resolved, d, "template")} == {SKYMAP}


def test_sky_map_is_added_later(open_site: Open) -> None:
    """Without a sky map configured, the first template on a new one costs its detectors, not the visit."""
    site = open_site(("template", "bias"), skymap=None)
    assert set(site.gather("a").views) == set(DETECTORS)
    _add_sky_map(site.butler)
    put(site.butler, "template", "templates", skymap="other", tract=2, patch=14, band="r")
    assert "several sky maps (grid, other)" in _only_refused(site.gather("b"), *DETECTORS)


def test_no_position(open_site: Open) -> None:
    """No position on the sky, one that is not ICRS, or no angle: the rest is there."""
    site = open_site()
    for number, changes in enumerate(
        ({"coordinateSystem": 1}, {"coordinateSystem": 3}, {"rotationSystem": 1})
    ):
        site.gatherer.learn([declare(site.butler, *INPUTS, optional=("template", "stars"))])
        resolved = site.gather(f"a{number}", **changes)
        assert set(resolved.views) == set(DETECTORS)
        assert resolved.inputs is not None
        for detector in DETECTORS:
            lacking = {name: reason for name, (reason, _) in resolved.inputs.lacking(detector).items()}
            assert lacking == dict.fromkeys(("template", "stars"), "the visit has no position")
            for name in set(INPUTS) - {"template", "stars"}:
                assert given_to(resolved, detector, name), name
        site.gatherer.learn([declare(site.butler, *INPUTS)])
        reason = _only_refused(site.gather(f"b{number}", **changes), *DETECTORS)
        assert reason == "Main lacks template (the visit has no position), stars (the visit has no position)"


def test_unknown_filter(open_site: Open) -> None:
    """No filter, or one that the repo knows nothing about: what needs none is there."""
    site = open_site()
    for number, name in enumerate(("", "z_9")):
        site.gatherer.learn([declare(site.butler, *INPUTS, optional=("template", "flat"))])
        resolved = site.gather(f"a{number}", filters=name)
        assert set(resolved.views) == set(DETECTORS)
        assert resolved.inputs is not None
        for detector in DETECTORS:
            assert set(resolved.inputs.lacking(detector)) == {"template", "flat"}
        site.gatherer.learn([declare(site.butler, *INPUTS)])
        reason = _only_refused(site.gather(f"b{number}", filters=name), *DETECTORS)
        assert "flat (" in reason and "template (" in reason and "bias" not in reason


@pytest.fixture
def reader(tmp_path: Path, open_site: Open) -> Iterator[tuple[CentralReader, Inbox, Site]]:
    site, inbox = open_site(("bias", "camera")), Inbox()
    reader = CentralReader(site_settings(tmp_path, site.root, warm_ahead=False), GRIDCAM, inbox)
    reader.start(
        Deployment("d", site_settings(tmp_path, site.root), (declare(site.butler, "bias", "camera"),))
    )
    yield reader, inbox, site
    assert reader.stop(10.0)
    inbox.close()


def _answer(inbox: Inbox) -> Resolved:
    answers: list[Resolved] = []
    wait_for(lambda: answers.extend(a for a in inbox.drain() if isinstance(a, Resolved)) or answers)
    (answer,) = answers
    return answer


def test_reader_goes_on(reader: tuple[CentralReader, Inbox, Site]) -> None:
    """What concerns a visit is an answer, final or not; the next visit is served as if nothing had been."""
    central, inbox, site = reader
    central.request(ask(announce("good")))
    assert set(_answer(inbox).views) == set(DETECTORS)

    other = put(site.butler, "bias", "bias/b", detector=4)
    site.butler.registry.decertify(NEW, "bias", span(None, None), dataIds=[other.dataId])
    certify(site.butler, other, None, None)
    site.path(other).unlink()
    central.request(ask(announce("bad-file")))
    answer = _answer(inbox)
    assert (answer.error, answer.group) == (None, "bad-file")
    assert "bias" in _only_refused(answer, 4)

    # Chains that are empty while someone rebuilds them.
    children = {c: site.butler.collections.get_info(c).children for c in (DEFAULTS, CALIB)}
    for chain in children:
        site.butler.collections.redefine_chain(chain, [])
    central.request(ask(announce("empty")))
    assert "camera (no collection of" in _only_refused(_answer(inbox), *DETECTORS)
    for chain in children:
        site.butler.collections.redefine_chain(chain, children[chain])

    central.request(dataclasses.replace(ask(announce("another-day")), day_obs=20230227))
    answer = _answer(inbox)
    assert answer.retry and answer.error is not None and "ppd-init --day-obs 20230227" in answer.error
    central.request(ask(announce("good-again"), (3, 5)))
    assert set(_answer(inbox).views) == {3, 5}
