"""Drawing sources: profiles, fluxes and the map between sky and pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lsst.sphgeom import LonLat, UnitVector3d

from ppd.demo.calibs import camera_dict
from ppd.demo.camera import CAMERA, focal_plane
from ppd.demo.drawing import Psf, TanGrid, draw_galaxies, draw_points, stack_fwhm
from ppd.demo.tasks.astrometry import header_wcs


def _grid(side: int = 201, ra: float = 10.0, dec: float = -20.0) -> TanGrid:
    step = math.radians(0.4 / 3600.0)
    middle = (side - 1) / 2
    return TanGrid(ra, dec, np.array([[-step, 0.0], [0.0, step]]), middle, middle, (side, side))


def _stamp(psf: Psf, side: int = 61) -> np.ndarray:
    image = np.zeros((side, side))
    middle = np.array([side // 2])
    draw_points(image, middle, middle, np.array([1.0]), psf, 1e-12)
    return image


def test_a_point_keeps_its_flux_and_place() -> None:
    image = np.zeros((101, 121))
    draw_points(image, np.array([40.3]), np.array([55.8]), np.array([5000.0]), Psf(3.0), 0.01)
    assert image.sum() == pytest.approx(5000.0, rel=1e-4)
    y, x = np.mgrid[0:101, 0:121]
    assert (image * x).sum() / image.sum() == pytest.approx(40.3, abs=1e-3)
    assert (image * y).sum() / image.sum() == pytest.approx(55.8, abs=1e-3)


def test_points_beyond_the_edge() -> None:
    image = np.zeros((50, 50))
    places = np.array([-3.0, 200.0])
    draw_points(image, places, places, np.array([1e4, 1e4]), Psf(3.0), 1.0)
    assert 0 < image.sum() < 1e3


def test_width_and_effective_area_of_a_psf() -> None:
    psf = Psf(3.2, elongation=0.05)
    stamp = _stamp(psf)
    assert stamp.sum() == pytest.approx(1.0, abs=1e-6)
    assert psf.effective_area() == pytest.approx(1.0 / (stamp**2).sum(), rel=1e-3)
    assert stack_fwhm([Psf(3.2, halo_fraction=0.0)]) == pytest.approx(3.2, abs=0.01)
    # The halo and the worse epochs widen it.
    assert 2.1 < stack_fwhm([Psf(2.1)]) < stack_fwhm([Psf(2.1), Psf(2.6)]) < stack_fwhm([Psf(2.6)])


def test_a_galaxy_keeps_its_flux_and_orientation() -> None:
    grid = _grid()
    angle = math.radians(30.0)
    image = np.zeros(grid.shape)
    draw_galaxies(
        image,
        grid,
        np.array([10.0]),
        np.array([-20.0]),
        np.array([1e5]),
        np.array([3.0]),
        np.array([0.3]),
        np.array([angle]),
        Psf(2.0),
        0.001,
    )
    assert image.sum() == pytest.approx(1e5, rel=5e-3)
    y, x = np.mgrid[0 : grid.shape[0], 0 : grid.shape[1]] - 100.0
    xx, yy, xy = ((image * a * b).sum() for a, b in ((x, x), (y, y), (x, y)))
    # East is at low x: an angle from north over east leans to the left.
    axis = 0.5 * math.atan2(2 * xy, xx - yy)
    assert axis % math.pi == pytest.approx((math.pi / 2 + angle) % math.pi, abs=0.02)


def test_half_light_radius() -> None:
    grid = _grid(301)
    image = np.zeros(grid.shape)
    one = np.array([1.0])
    draw_galaxies(image, grid, 10.0 * one, -20.0 * one, 1e6 * one, 4.0 * one, one, 0 * one, Psf(0.3), 0.001)
    radius = np.hypot(*(np.mgrid[0:301, 0:301] - 150.0))
    assert image[radius < 10.0].sum() / image.sum() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("boresight", [(149.95, -24.8), (359.995, -12.4), (0.004, 60.0)])
@pytest.mark.parametrize("rotation", [0.0, 4.0, 200.0])
def test_pipeline_and_simulator_agree_on_every_detector(
    boresight: tuple[float, float], rotation: float
) -> None:
    """The WCS that tasks make of a header is the map that the simulator draws by."""
    rng = np.random.default_rng(4)
    header = {"RA": boresight[0], "DEC": boresight[1], "ROTSKY": rotation}
    for outline in focal_plane().detectors:
        wcs = header_wcs(header, camera_dict(), outline.id)
        x, y = rng.uniform(0, CAMERA.side, (2, 20))
        ra, dec = wcs.wcs_pix2world(x, y, 0)
        back = TanGrid.of_detector(focal_plane(), outline.id, *boresight, rotation).to_pixels(ra, dec)
        assert np.abs(np.array(back) - [x, y]).max() < 1e-6


def test_regions_hold_the_detectors_pixels() -> None:
    regions = focal_plane().regions(359.98, -12.4, 7.0, 0.0)
    for outline in focal_plane().detectors:
        wcs = header_wcs({"RA": 359.98, "DEC": -12.4, "ROTSKY": 7.0}, camera_dict(), outline.id)
        for x, y in ((3, 3), (508, 3), (508, 508), (-4, 250), (250, 516)):
            ra, dec = wcs.wcs_pix2world(x, y, 0)
            place = UnitVector3d(LonLat.fromDegrees(float(ra) % 360.0, float(dec)))
            assert regions[outline.id].contains(place) is (min(x, y) > 0 and max(x, y) < CAMERA.side)


def test_pixel_scale() -> None:
    grid = TanGrid.of_detector(focal_plane(), 4, 10.0, -20.0, 33.0)
    assert grid.scale == pytest.approx(CAMERA.pixel_scale, rel=1e-9)
