"""The sky map and the templates on it: patches, regions, noise and stars."""

from __future__ import annotations

import numpy as np
import pytest
from demo_support import FIELD, Field, shared_field
from lsst.images import MaskedImage
from lsst.sphgeom import LonLat, UnitVector3d

from ppd.demo.camera import INSTRUMENT
from ppd.demo.sky import FIELDS
from ppd.demo.skymap import SKYMAP, insert_skymap, make_patches, patch_in, skymap_dict
from ppd.demo.templates import EPOCHS, template_star_factor

TRACT = FIELDS.index(FIELD)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def template(field: Field) -> MaskedImage:
    """The middle patch's."""
    return field.butler.get(
        "template_coadd", skymap=SKYMAP, tract=TRACT, patch=4, band="r", collections=f"{INSTRUMENT}/defaults"
    )


def _point(ra: float, dec: float) -> UnitVector3d:
    return UnitVector3d(LonLat.fromDegrees(float(ra) % 360.0, float(dec)))


@pytest.mark.parametrize("field_of", FIELDS, ids=lambda f: f.name)
def test_patches_overlap_and_cover_the_field(field_of) -> None:
    patches = make_patches(field_of)
    assert len(patches) == 9
    for dx, dy in np.random.default_rng(1).uniform(-0.09, 0.09, (30, 2)):
        place = _point(field_of.ra + dx / np.cos(np.radians(field_of.dec)), field_of.dec + dy)
        assert any(patch.region().contains(place) for patch in patches)
    middle, right = patches[4], patches[5]
    assert middle.x0 + middle.side == right.x0 + 80


def test_a_region_holds_its_patch_and_no_more() -> None:
    patch = make_patches(FIELD)[3]
    wcs, region = patch.wcs(), patch.region()
    for x, y in ((0, 0), (659, 659), (330, 2), (-2, 330), (330, 662)):
        ra, dec = wcs.wcs_pix2world(x, y, 0)
        assert region.contains(_point(float(ra), float(dec))) is (min(x, y) >= 0 and max(x, y) < patch.side)
        assert np.array(patch.grid().to_pixels(ra, dec)) == pytest.approx([x, y], abs=1e-6)


def test_the_tract_is_centred_on_its_field() -> None:
    for one in FIELDS:
        patch = make_patches(one)[4]
        middle = (patch.side - 1) / 2
        assert patch.wcs().wcs_world2pix(one.ra, one.dec, 0) == pytest.approx([middle, middle], abs=1e-6)


def test_the_dataset_gives_the_same_patches(field: Field) -> None:
    sky_map = field.butler.get("skyMap", skymap=SKYMAP, collections="skymaps")
    for tract, one in enumerate(FIELDS):
        assert [patch_in(sky_map, tract, number) for number in range(9)] == make_patches(one)


@pytest.mark.parametrize(("tract", "patch"), [(0, 9), (0, -1), (7, 0)])
def test_no_such_patch(tract: int, patch: int) -> None:
    with pytest.raises(LookupError):
        patch_in(skymap_dict(), tract, patch)


def test_records(field: Field) -> None:
    records = field.butler.query_dimension_records("patch", skymap=SKYMAP, explain=False)
    assert len(records) == 27
    regions = {(r.tract, r.id): r.region for r in records}
    for patch in make_patches(FIELD):
        assert regions[patch.tract, patch.patch] == patch.region()
    insert_skymap(field.butler)  # a repo that has it already is left as it is
    assert len(field.butler.query_dimension_records("patch", skymap=SKYMAP, explain=False)) == 27


def test_every_patch_has_a_template(field: Field) -> None:
    refs = field.butler.query_datasets("template_coadd", collections=f"{INSTRUMENT}/defaults")
    assert {(r.dataId["tract"], r.dataId["patch"]) for r in refs} == {(TRACT, n) for n in range(9)}


def test_a_template_is_where_its_patch_is(template: MaskedImage) -> None:
    here, there = template.sky_projection.as_fits_wcs(template.bbox), make_patches(FIELD)[4].wcs()
    x, y = np.array([10.0, 600.0]), np.array([20.0, 400.0])
    assert np.array(here.wcs_pix2world(x, y, 0)) == pytest.approx(np.array(there.wcs_pix2world(x, y, 0)))


def test_noise_of_a_template(template: MaskedImage) -> None:
    pixels = template.image.array
    sigma = 1.4826 * np.median(np.abs(pixels - np.median(pixels)))
    assert sigma == pytest.approx(np.sqrt(np.median(template.variance.array)), rel=0.08)


def test_stars_in_a_template(field: Field, template: MaskedImage) -> None:
    sky, patch = field.sky, make_patches(FIELD)[4]
    x, y = patch.grid().to_pixels(sky.star_ra, sky.star_dec)
    mag = sky.star_mag[:, 1]
    bright = (np.abs(x - 330) < 300) & (np.abs(y - 330) < 300) & (mag < 19.5) & (mag > 17.5)
    flux = 10 ** (0.4 * (31.4 - mag)) * template_star_factor(sky, field.night_mjd)
    ratios = []
    for i in np.flatnonzero(bright):
        row, column = round(float(y[i])), round(float(x[i]))
        ratios.append(template.image.array[row - 12 : row + 13, column - 12 : column + 13].sum() / flux[i])
    assert len(ratios) >= 4
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)


def test_saturated_pixels_are_masked(field: Field, template: MaskedImage) -> None:
    sky, patch = field.sky, make_patches(FIELD)[4]
    x, y = patch.grid().to_pixels(sky.star_ra, sky.star_dec)
    inside = (np.abs(x - 330) < 320) & (np.abs(y - 330) < 320)
    saturated = template.mask.get("SAT")
    at = saturated[np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)]
    assert at[sky.star_mag[inside, 1] < 16.0].all()
    assert saturated.mean() < 0.01


def test_a_template_is_deeper_than_an_exposure(field: Field, template: MaskedImage) -> None:
    one = field.get("preliminary_visit_image", field.observed[0])
    ratio = float(np.median(one.variance.array) / np.median(template.variance.array))
    c = field.observed[0].conditions
    assert ratio == pytest.approx(EPOCHS * c.sky_factor / c.transparency**2, rel=0.1)
