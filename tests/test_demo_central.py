"""The demo's central repo: validity of calibs, catalogs, and how pixels are written."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest
from astropy.time import Time, TimeDelta
from demo_support import SEED, Field, shared_field
from lsst.daf.butler import Timespan
from lsst.sphgeom import HtmPixelization, LonLat, UnitVector3d

from ppd.demo.camera import INSTRUMENT
from ppd.demo.central import REFCAT, known_movers


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


def _exposure(field: Field, days: float) -> Timespan:
    """Thirty seconds, some days after the night."""
    begin = Time(field.night_mjd + days, format="mjd", scale="tai")
    return Timespan(begin, begin + TimeDelta(30.0, format="sec"))


@pytest.mark.parametrize(
    ("days", "epoch"), [(-200.0, "expired"), (0.0, "current"), (20.0, "current"), (200.0, "future")]
)
@pytest.mark.parametrize("name", ["bias", "flat", "defects", "gains"])
def test_calibs_by_time(field: Field, name: str, days: float, epoch: str) -> None:
    data_id = {"instrument": INSTRUMENT, "detector": 4}
    if name == "flat":
        data_id["physical_filter"] = "demo-r"
    ref = field.butler.find_dataset(
        name, data_id, collections=f"{INSTRUMENT}/defaults", timespan=_exposure(field, days)
    )
    assert ref is not None
    assert ref.run == f"{INSTRUMENT}/calib/{epoch}"


def test_no_calibs_beyond_their_validity(field: Field) -> None:
    ref = field.butler.find_dataset(
        "bias",
        instrument=INSTRUMENT,
        detector=4,
        collections=f"{INSTRUMENT}/calib",
        timespan=_exposure(field, 900.0),
    )
    assert ref is None


def test_calibs_of_other_times_are_spoilt(field: Field) -> None:
    data_id = {"instrument": INSTRUMENT, "detector": 4}
    current, expired = (
        field.butler.get("gains", data_id, collections=f"{INSTRUMENT}/calib/{epoch}")
        for epoch in ("current", "expired")
    )
    for name, values in current["amplifiers"].items():
        assert expired["amplifiers"][name]["gain"] == pytest.approx(3.0 * values["gain"])


def test_refcat_shards(field: Field) -> None:
    htm = HtmPixelization(7)
    refs = field.butler.query_datasets(REFCAT, collections="refcats")
    shards = {int(ref.dataId["htm7"]): field.butler.get(ref) for ref in refs}
    assert len(shards) > 1
    for pixel, shard in shards.items():
        places = (LonLat.fromDegrees(ra, dec) for ra, dec in zip(shard["ra"], shard["dec"], strict=True))
        assert all(htm.index(UnitVector3d(place)) == pixel for place in places)
    star, ra = (np.concatenate([np.asarray(s[name]) for s in shards.values()]) for name in ("id", "ra"))
    sky = field.sky
    star -= star.min() // 1_000_000 * 1_000_000
    # All that are bright and constant, and nothing else, each once.
    wanted = np.flatnonzero((sky.star_mag[:, 1] < 21.9) & (sky.star_amplitude == 0))
    assert np.array_equal(np.sort(star), wanted)
    error = ((ra - sky.star_ra[star] + 180.0) % 360.0 - 180.0) * 3600.0
    assert error.std() == pytest.approx(0.02, rel=0.15)


def test_orbits_lead_to_tonight(field: Field) -> None:
    orbits = field.butler.get("solar_system_orbits", collections=f"{INSTRUMENT}/defaults")
    known = known_movers(field.sky, SEED)
    assert len(orbits) == known.sum() < len(known)
    hours = (field.night_mjd - np.asarray(orbits["epoch_mjd_tai"])) * 24.0
    assert hours == pytest.approx(24.0)
    dec = np.asarray(orbits["dec"]) + np.asarray(orbits["pm_dec"]) * hours / 3600.0
    assert np.abs(dec - field.sky.mover_dec[known]).max() * 3600.0 < 1.0


def _path(field: Field, name: str) -> Path:
    first = field.observed[0]
    data_id = {**first.visit_id, "exposure": first.conditions.exposure}
    data_id = {k: data_id[k] for k in field.butler.get_dataset_type(name).dimensions.required}
    return Path(field.butler.getURI(name, data_id, collections="test/main").ospath)


def test_pixels_are_quantized_well_below_their_noise(field: Field) -> None:
    with astropy.io.fits.open(_path(field, "post_isr_image"), disable_image_compression=True) as hdus:
        kinds = {h.name: (h.header.get("ZCMPTYPE"), h.header.get("ZQUANTIZ")) for h in hdus}
        step = abs(float(np.median(hdus["IMAGE"].data["ZSCALE"])))
    assert kinds["IMAGE"] == kinds["VARIANCE"] == ("RICE_1", "SUBTRACTIVE_DITHER_2")
    image = field.get("post_isr_image", field.observed[0])
    assert step < np.sqrt(np.median(image.variance.array)) / 10


@pytest.mark.parametrize(
    ("name", "plane", "kind"),
    [("post_isr_image", "MASK", "RICE_1"), ("preliminary_visit_psf", "IMAGE", "GZIP_1")],
)
def test_masks_and_psfs_are_exact(field: Field, name: str, plane: str, kind: str) -> None:
    with astropy.io.fits.open(_path(field, name), disable_image_compression=True) as hdus:
        header = hdus[plane].header
    assert header["ZCMPTYPE"] == kind
    assert header.get("ZQUANTIZ", "NONE") == "NONE"
    assert "ZSCALE" not in {header.get(f"TTYPE{i}") for i in range(1, 6)}
