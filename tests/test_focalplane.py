"""The focal-plane model against formulas and against a real registry."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from lsst.sphgeom import LonLat, UnitVector3d

from ppd.focalplane import DetectorOutline, FocalPlane
from ppd.instruments.description import find_description

LSSTCAM = Path(__file__).parents[2] / "shared" / "lsstcam"


@pytest.fixture
def plane() -> FocalPlane:
    """One detector of 10 mm at the centre and one to the right of it."""
    outlines = (
        DetectorOutline(id=0, name="A", x_min=-5, y_min=-5, x_max=5, y_max=5, nx=1000, ny=1000),
        DetectorOutline(id=1, name="B", x_min=6, y_min=-5, x_max=16, y_max=5, nx=1000, ny=1000),
    )
    return FocalPlane(detectors=outlines, scale=20.0, flip_x=False)


def _separation(a: UnitVector3d, b: UnitVector3d) -> float:
    return math.degrees(math.acos(min(1.0, a.dot(b)))) * 3600.0


def test_centre_and_offset(plane: FocalPlane) -> None:
    regions = plane.regions(10.0, -30.0, 0.0)
    centre = UnitVector3d(LonLat.fromDegrees(10.0, -30.0))
    assert _separation(regions[0].getCentroid(), centre) < 0.01
    # 11 mm at 20 arcsec/mm, to the east without a flip.
    assert _separation(regions[1].getCentroid(), centre) == pytest.approx(220.0, abs=0.1)
    assert LonLat(regions[1].getCentroid()).getLon().asDegrees() > 10.0


def test_rotation_turns_up_to_east(plane: FocalPlane) -> None:
    # At sky angle 90, focal-plane +Y points east, so +X points south.
    lat = LonLat(plane.regions(10.0, 0.0, 90.0)[1].getCentroid()).getLat().asDegrees()
    assert lat == pytest.approx(-220.0 / 3600.0, abs=1e-4)


@pytest.mark.parametrize("dec", [90.0, -90.0, 89.9999])
def test_poles(plane: FocalPlane, dec: float) -> None:
    regions = plane.regions(123.0, dec, 45.0)
    pole = UnitVector3d(LonLat.fromDegrees(0.0, math.copysign(90.0, dec)))
    assert regions[0].contains(pole)
    assert not regions[1].contains(pole)


def test_padding_moves_every_edge(plane: FocalPlane) -> None:
    small = plane.regions(0.0, 0.0, 0.0)[0]
    large = plane.regions(0.0, 0.0, 0.0, padding=30.0)[0]
    assert large.contains(small)
    box = large.getBoundingBox()
    assert box.getHeight().asDegrees() * 3600.0 == pytest.approx(200.0 + 60.0, abs=0.1)


@pytest.mark.parametrize("pointing", [(math.nan, 0, 0), (0, 91, 0), (0, 0, math.inf)])
def test_no_such_pointing(plane: FocalPlane, pointing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="no such pointing"):
        plane.regions(*pointing)


@pytest.mark.skipif(not LSSTCAM.exists(), reason="the LSSTCam test data is not beside this checkout")
def test_lsstcam_registry(tmp_path: Path) -> None:
    """Centroids agree with the observatory's own regions to 0.04 arcsec."""
    from lsst.daf.butler import Butler

    camera = find_description("LSSTCam").focal_plane
    regions = camera.regions(225.85827927603876, -38.6275010948895, 357.9606420320256)
    repo = shutil.copytree(LSSTCAM / "central_repo", tmp_path / "repo")
    with Butler.from_config(str(repo), writeable=False) as butler:
        found = butler.query_dimension_records(
            "visit_detector_region", instrument="LSSTCam", visit=2025052100138
        )
        outlines = {
            r.id: r.full_name for r in butler.query_dimension_records("detector", instrument="LSSTCam")
        }
        worst = max(
            _separation(r.region.getCentroid(), regions[r.detector].getCentroid())
            for r in found
            if r.detector in regions
        )
    assert len(regions) == 189
    assert worst < 0.05
    # The names are the registry's too.
    assert all(outlines[d.id] == d.name for d in camera.detectors)
