"""The simulated sky: the same for the same seed, what varies varies, what moves moves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ppd.demo.sky import FIELDS, HALF_WIDTH, Sky, make_sky

NIGHT = 61_368.0


def _arrays(sky: Sky) -> dict[str, np.ndarray]:
    return {f.name: v for f in dataclasses.fields(sky) if isinstance(v := getattr(sky, f.name), np.ndarray)}


def test_same_seed_same_sky() -> None:
    one, two = _arrays(make_sky(FIELDS[0], 3, NIGHT)), _arrays(make_sky(FIELDS[0], 3, NIGHT))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("field", "seed"), [(0, 4), (1, 3)])
def test_other_seed_or_field_other_sky(field: int, seed: int) -> None:
    one, two = make_sky(FIELDS[0], 3, NIGHT), make_sky(FIELDS[field], seed, NIGHT)
    n = min(len(one.star_mag), len(two.star_mag))
    assert not np.allclose(one.star_mag[:n], two.star_mag[:n])


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_sources_are_in_the_field(field) -> None:
    sky = make_sky(field, 1, NIGHT)
    for ra, dec in ((sky.star_ra, sky.star_dec), (sky.galaxy_ra, sky.galaxy_dec)):
        assert ((ra >= 0) & (ra < 360)).all()
        off = (ra - field.ra + 180.0) % 360.0 - 180.0
        assert (np.abs(off * np.cos(np.radians(dec))) <= HALF_WIDTH * 1.001).all()
        assert (np.abs(dec - field.dec) <= HALF_WIDTH).all()


def test_field_across_zero_has_both_sides() -> None:
    sky = make_sky(FIELDS[2], 1, NIGHT)
    assert (sky.star_ra > 359.0).sum() > 500
    assert (sky.star_ra < 1.0).sum() > 500


def test_only_variables_vary() -> None:
    sky = make_sky(FIELDS[0], 1, NIGHT)
    factors = np.array([sky.star_flux_factor(NIGHT + t) for t in np.linspace(0.0, 30.0, 400)])
    constant = sky.star_amplitude == 0
    assert (factors[:, constant] == 1.0).all()
    reached = (factors[:, ~constant].max(axis=0) - factors[:, ~constant].min(axis=0)) / 2
    assert reached == pytest.approx(sky.star_amplitude[~constant], rel=0.05)


def test_movers_move_by_their_rates() -> None:
    sky = make_sky(FIELDS[2], 1, NIGHT)
    ra0, dec0 = sky.mover_positions(NIGHT)
    ra1, dec1 = sky.mover_positions(NIGHT + 2.0 / 24.0)
    assert (dec1 - dec0) * 3600.0 == pytest.approx(2.0 * sky.mover_rate_dec)
    step = ((ra1 - ra0 + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec0)) * 3600.0
    assert step == pytest.approx(2.0 * sky.mover_rate_ra)


def test_supernovae_are_in_their_galaxies() -> None:
    sky = make_sky(FIELDS[0], 1, NIGHT)
    for ra, dec in zip(sky.supernova_ra, sky.supernova_dec, strict=True):
        x = (sky.galaxy_ra - ra) * np.cos(np.radians(dec)) * 3600.0
        nearest = np.hypot(x, (sky.galaxy_dec - dec) * 3600.0).min()
        assert nearest < 15.0
