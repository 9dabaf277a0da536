"""Fetching ahead: all that a visit there would need, in small steps, at nobody's cost."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from astropy.time import Time
from hypothesis import example, given, settings
from lsst.daf.butler import Butler, DatasetRef
from repo_support import DEFAULTS, DETECTORS, SKYMAP, TRACTS, certify, grid_plane, position, put, wait_for
from site_support import GRIDCAM, INPUTS, Site, announce, ask, declare, filled_repo, given_to, site_settings

from ppd.errors import CentralUnavailableError
from ppd.instruments.lsstcam import focal_plane
from ppd.messages import Pointing
from ppd.supervisor.central import CentralReader
from ppd.supervisor.deployments import Deployment
from ppd.supervisor.inbox import Inbox
from ppd.supervisor.prefetch import Prefetcher, _disc
from ppd.supervisor.requests import Prefetch, Resolved

RA, DEC = TRACTS[2]
THERE = Pointing(ra=RA, dec=DEC, physical_filter="r_1")
PADDING = 30.0
Open = Callable[..., Site]


@pytest.fixture
def open_site(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_site(names: tuple[str, ...] = INPUTS, **more: Any) -> Site:
            site = Site(tmp_path / "site", filled_repo(tmp_path_factory), names, **more)
            return stack.enter_context(contextlib.closing(site))

        yield open_site


def _prefetcher(site: Site, *pointings: Pointing, **more: Any) -> Prefetcher:
    prefetcher = Prefetcher(site.gatherer, site.cache, grid_plane(), PADDING, **more)
    prefetcher.add(pointings)
    return prefetcher


def _finish(prefetcher: Prefetcher) -> None:
    for _ in range(10_000):
        if not prefetcher.busy:
            return
        prefetcher.step()
    raise AssertionError("it never ends")


def _now() -> float:
    """What is fetched ahead is for now, whatever night the tests are in."""
    return float(Time.now().tai.mjd)


def _held(site: Site, *refs: DatasetRef) -> list[bool]:
    return [site.cache.size(ref.id) is not None for ref in refs]


# The area.


PLANES = {"3 degrees": grid_plane(0.9), "9 arcmin": grid_plane(0.05), "LSSTCam": focal_plane()}


@pytest.mark.parametrize("name", PLANES)
@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 360.0), st.floats(-90.0, 90.0), st.floats(-360.0, 360.0))
@example(0.0, 90.0, 0.0)
@example(123.0, -90.0, 45.0)
@example(10.0, 89.5, 30.0)
@example(200.0, -89.99, 7.5)
@example(0.0, -12.4, 45.0)
@example(359.999, 0.0, 90.0)
def test_disc_holds_every_detector(name: str, ra: float, dec: float, rotation: float) -> None:
    """At the poles, across right ascension 0, at any rotation; and it is not much bigger than needed."""
    plane = PLANES[name]
    disc = _disc(plane, ra, dec, PADDING)
    regions = plane.regions(ra, dec, rotation, padding=PADDING)
    for detector, region in regions.items():
        assert disc.contains(region), detector
    boresight = position(ra, dec)
    vertices = [v for region in regions.values() for v in region.getVertices()]
    needed = max(math.acos(min(1.0, boresight.dot(v))) for v in vertices)
    assert disc.getBoundingCircle().getOpeningAngle().asRadians() < 1.05 * needed


# The steps.


def test_visit_fetches_nothing_then(open_site: Open) -> None:
    """At any rotation; its children find all of it."""
    site = open_site()
    late = put(site.butler, "bias", "bias/late", detector=4)
    certify(site.butler, late, 60010.0, None)
    _finish(_prefetcher(site, THERE))
    resolved = site.gather("a", (4,), mjd=_now())
    assert resolved.fetched == 1  # the init-output, which is no pointing's
    assert given_to(resolved, 4, "bias") == [late]
    for rotation in (0.0, 20.0, 45.0, 200.0):
        resolved = site.gather(f"at{rotation}", mjd=_now(), cameraAngle=rotation)
        assert (resolved.fetched, list(resolved.views)) == (0, [4])
    with site.child(resolved, 4) as child:
        for name in INPUTS:
            for ref in given_to(resolved, 4, name):
                assert child.get(ref)["run"] == ref.run


def test_steps_are_small(open_site: Open) -> None:
    """The first asks; then a few datasets each; the last says what it was."""
    site = open_site()
    prefetcher = _prefetcher(site, THERE)
    steps, results = [], []
    while prefetcher.busy:
        before = site.cache.statistics().datasets
        results.append(prefetcher.step())
        steps.append(site.cache.statistics().datasets - before)
    assert steps[0] == steps[-1] == 0
    assert min(steps[1:-1]) >= 1 and max(steps) <= 8 < sum(steps)
    assert sum(steps) == prefetcher.fetched == site.cache.statistics().datasets
    *others, last = results
    assert others == [None] * len(others)
    assert last is not None and all(_held(site, *last.refs.values()))
    prefetcher.add([THERE])
    assert prefetcher.step() is None
    assert prefetcher.step() is not None  # all of it is there
    assert prefetcher.fetched == sum(steps)


def test_pointings_wait(open_site: Open) -> None:
    """Each once; of too many the oldest go."""
    site = open_site(("camera",))
    pointings = [Pointing(ra=float(i), dec=0.0) for i in range(5)]
    prefetcher = _prefetcher(site, *pointings[:2], *pointings, max_pointings=3)
    assert prefetcher.waiting == 3
    prefetcher.step()
    assert (prefetcher.waiting, prefetcher.busy) == (3, True)
    _finish(prefetcher)
    assert (prefetcher.waiting, prefetcher.fetched) == (0, 1)


def test_no_position_and_no_filter(open_site: Open) -> None:
    """Of a pointing without a position, what every visit in that filter needs."""
    site = open_site()
    _finish(_prefetcher(site, Pointing()))
    types = {name for name in INPUTS if site.cache.butler.registry.queryDatasetTypes(name)}
    assert types == {"camera", "skyMap", "model"}
    _finish(_prefetcher(site, Pointing(physical_filter="r_1")))
    flats = site.butler.query_datasets("flat", collections="flats", limit=None)
    assert len(flats) == len(DETECTORS) and all(_held(site, *flats))
    templates = site.butler.query_datasets("template", collections="templates")
    assert not any(_held(site, *templates))
    _finish(_prefetcher(site, Pointing(ra=RA, dec=DEC)))
    assert not any(_held(site, *templates))  # of which band is not known
    assert any(_held(site, *site.butler.query_datasets("stars", collections="refcats")))


def test_file_that_is_gone(open_site: Open, caplog: pytest.LogCaptureFixture) -> None:
    """It is noted and not tried again, and everything else comes; the visit tries itself."""
    site = open_site(("template", "camera"))
    prefetcher = _prefetcher(site, THERE)
    prefetcher.step()
    found = site.gatherer.overlapping({4: grid_plane().regions(RA, DEC, 20.0, PADDING)[4]}, "r_1")
    bad, *good = sorted(r for r in found.refs.values() if r.datasetType.name == "template")
    path = site.path(bad)
    path.rename(path.with_suffix(".away"))
    with caplog.at_level(logging.WARNING):
        _finish(prefetcher)
        path.with_suffix(".away").rename(path)
        prefetcher.add([THERE])
        _finish(prefetcher)
    noted = [record.getMessage() for record in caplog.records if "fetched ahead" in record.getMessage()]
    assert len(noted) == 1 and str(bad.id) in noted[0] and "its file is gone" in noted[0]
    assert _held(site, bad, *good) == [False] + [True] * len(good)
    assert site.gather("a").fetched == 2  # and the init-output
    assert _held(site, bad) == [True]


# What it may not do.


def _big_templates(butler: Butler, size: int) -> None:
    """Put a set of templates before the others."""
    for patch in butler.query_dimension_records("patch", skymap=SKYMAP, tract=2):
        put(butler, "template", "templates/big", size, tract=2, patch=patch.id, band="r")
    butler.collections.prepend_chain(DEFAULTS, "templates/big")


@pytest.mark.parametrize(("size", "some"), [(19_000, False), (16_800, True)])
def test_cache_is_nearly_full(
    open_site: Open, caplog: pytest.LogCaptureFixture, size: int, some: bool
) -> None:
    """It ends before what was fetched for a visit would have to go."""
    site = open_site(max_bytes=20_000)
    put(site.butler, "model", "models/big", size)
    site.butler.collections.prepend_chain(DEFAULTS, "models/big")
    resolved = site.gather("a", (4,))
    site.cache.release("a/4")
    before = site.cache.statistics()
    prefetcher = _prefetcher(site, THERE, Pointing(ra=RA, dec=DEC + 1.0, physical_filter="r_1"))
    with caplog.at_level(logging.WARNING):
        _finish(prefetcher)
    after = site.cache.statistics()
    assert after.evicted == 0 and after.bytes_held <= 20_000
    assert (after.datasets > before.datasets) is some
    assert resolved.inputs is not None and all(_held(site, *resolved.inputs.resolution.refs.values()))
    assert "The cache is nearly full: " in caplog.text


def test_cache_is_nearly_full_of_big_datasets(open_site: Open) -> None:
    """A step of big ones is no reason to evict either."""
    site = open_site(("template",), max_bytes=24_000)
    _big_templates(site.butler, 2000)
    resolved = site.gather("a", (4,))
    site.cache.release("a/4")
    _finish(_prefetcher(site, THERE))
    assert site.cache.statistics().evicted == 0
    assert all(_held(site, *given_to(resolved, 4, "template")))


def test_central_is_away(open_site: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first question or in the middle: the pointings are dropped, and new ones are taken."""
    site = open_site(("template", "camera"))
    registry = site.root / "gen3.sqlite3"
    registry.rename(site.root / "away")
    prefetcher = _prefetcher(site, THERE, Pointing(ra=10.0, dec=10.0))
    assert prefetcher.step() is None
    assert (prefetcher.busy, prefetcher.waiting) == (False, 0)
    (site.root / "away").rename(registry)

    def away(*_: Any, **__: Any) -> None:
        raise CentralUnavailableError("The central repo does not answer.")

    prefetcher.add([THERE, Pointing(ra=10.0, dec=10.0)])
    prefetcher.step()
    prefetcher.step()
    fetched = prefetcher.fetched
    assert fetched == 8
    with monkeypatch.context() as patch:
        patch.setattr(site.central, "read", away)
        assert prefetcher.step() is None
    assert not prefetcher.busy
    prefetcher.add([THERE])
    _finish(prefetcher)
    assert prefetcher.fetched > fetched
    assert site.gather("a").fetched == 1  # the init-output


@pytest.mark.slow
def test_visit_is_served_meanwhile(open_site: Open, tmp_path: Path) -> None:
    """A visit that comes while a hundred pointings are fetched waits for one step only."""
    names = ("bias", "template", "stars", "camera")
    site, inbox = open_site(names), Inbox()
    reader = CentralReader(site_settings(tmp_path, site.root, warm_ahead=False), GRIDCAM, inbox)
    reader.start(Deployment("d", site_settings(tmp_path, site.root), (declare(site.butler, *names),)))
    try:
        pointings = [Pointing(ra=RA + i / 50, dec=DEC, physical_filter="r_1") for i in range(100)]
        reader.request(Prefetch(tuple(pointings)))
        wait_for(lambda: 0 < reader.status.prefetching < 99)
        reader.request(ask(announce("visit")))
        answers: list[Resolved] = []
        wait_for(lambda: answers.extend(a for a in inbox.drain() if isinstance(a, Resolved)) or answers)
        assert set(answers[0].views) == set(DETECTORS)
        assert reader.status.prefetching > 10
        wait_for(lambda: reader.status.prefetching == 0, 60.0)
        assert reader.status.prefetched > 30
    finally:
        assert reader.stop(10.0)
        inbox.close()
