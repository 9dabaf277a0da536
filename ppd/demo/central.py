"""Building the demo observatory's central repo and APDB."""

from __future__ import annotations

__all__ = ["build_apdb", "build_central", "known_movers"]

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table
from astropy.time import Time
from lsst.daf.butler import Butler, CollectionType, Config, DatasetType, Timespan

from .calibs import Calibs, camera_dict, measure_calibs, spoil
from .camera import CAMERA, INSTRUMENT, focal_plane
from .democam import DemoCam
from .sky import BANDS, Sky
from .skymap import SKYMAP, Patch, insert_skymap, make_patches, skymap_dict
from .templates import TemplatePixels, draw_template, make_refcat, make_template

REFCAT = "demo_stars_2026"
"""Dataset type of the reference catalog."""

_TYPES = (
    ("raw", ("instrument", "exposure", "detector"), "ImageV2", False),
    ("camera", ("instrument",), "StructuredDataDict", True),
    ("bias", ("instrument", "detector"), "ImageV2", True),
    ("flat", ("instrument", "detector", "physical_filter"), "ImageV2", True),
    ("defects", ("instrument", "detector"), "ArrowAstropy", True),
    ("gains", ("instrument", "detector"), "StructuredDataDict", True),
    ("skyMap", ("skymap",), "StructuredDataDict", False),
    ("template_coadd", ("skymap", "tract", "patch", "band"), "MaskedImageV2", False),
    (REFCAT, ("htm7",), "ArrowAstropy", False),
    ("solar_system_orbits", (), "ArrowAstropy", False),
)

_LOCK_SECONDS = 30
_CALIB = f"{INSTRUMENT}/calib/2026a"
_TEMPLATES = f"{INSTRUMENT}/templates/2026a"
_EPHEMERIDES = f"{INSTRUMENT}/ephemerides"
_REFCATS = f"refcats/{REFCAT}"

type _Job = tuple[Sky, Patch, str, int, float]
type _Draw = Callable[[Callable[[_Job], TemplatePixels], Sequence[_Job]], Iterator[TemplatePixels]]


def build_central(
    root: Path,
    skies: Sequence[Sky],
    fields_and_bands: Iterable[tuple[str, str]],
    seed: int,
    night_mjd: float,
    draw: _Draw = map,
    registry: str | None = None,
) -> None:
    """Make the central repo as it is before the night.

    Parameters
    ----------
    root : `pathlib.Path`
        Folder to make.
    skies : sequence of `ppd.demo.sky.Sky`
        One per field.
    fields_and_bands : iterable of `tuple` [ `str`, `str` ]
        Which templates there are.
    seed : `int`
        Seed of the simulation.
    night_mjd : `float`
        Time of the night, MJD.
    draw : callable, optional
        As `map`; that of a pool of processes draws templates while this one
        does the rest.
    registry : `str`, optional
        URL of the registry's database, which must be empty; SQLite in the folder by default.
    """
    wanted = set(fields_and_bands)
    jobs = [
        (sky, patch, band, seed, night_mjd)
        for sky in skies
        for band in BANDS
        if (sky.field.name, band) in wanted
        for patch in make_patches(sky.field)
    ]
    drawn = draw(_draw_template, jobs)
    config = _repo_config()
    if registry is not None:
        config["registry", "db"] = registry
    with Butler.from_config(Butler.makeRepo(str(root), config=config), writeable=True) as butler:
        DemoCam().register(butler.registry)
        insert_skymap(butler)
        for name, dimensions, storage_class, calibration in _TYPES:
            butler.registry.registerDatasetType(
                DatasetType(
                    name,
                    dimensions,
                    storage_class,
                    universe=butler.dimensions,
                    isCalibration=calibration,
                )
            )
        for run in (_TEMPLATES, "skymaps", _REFCATS, _EPHEMERIDES, f"{INSTRUMENT}/raw/all"):
            butler.collections.register(run)
        _put_calibs(butler, seed, night_mjd)
        butler.put(skymap_dict(), "skyMap", skymap=SKYMAP, run="skymaps")
        with butler.transaction():  # one commit instead of one per dataset
            for pixel, shard in make_refcat(list(skies), seed).items():
                butler.put(shard, REFCAT, htm7=pixel, run=_REFCATS)
            butler.put(_orbits(skies, seed), "solar_system_orbits", {}, run=_EPHEMERIDES)
            for (_, patch, band, *_), pixels in zip(jobs, drawn, strict=True):
                _put_template(butler, patch, band, pixels)
        for chain, children in (
            (f"{INSTRUMENT}/calib", [_CALIB]),
            (f"{INSTRUMENT}/templates", [_TEMPLATES]),
            ("refcats", [_REFCATS]),
            (
                f"{INSTRUMENT}/defaults",
                [f"{INSTRUMENT}/calib", f"{INSTRUMENT}/templates", "skymaps", "refcats", _EPHEMERIDES],
            ),
        ):
            butler.collections.register(chain, CollectionType.CHAINED)
            butler.collections.redefine_chain(chain, children)


def _repo_config() -> Config:
    """Configuration of the repo, where it differs from the middleware's.

    The middleware's default is lossless GZIP_2, one FITS tile per image row:
    exact, good for small cut-outs, and by far the largest cost of a task that
    writes an image.  As Rubin's own repos do, pixels are quantized to a
    sixteenth of their noise, with dither, and Rice-compressed: an eighth of
    the time and a quarter of the size.  Masks are integers, for which Rice is
    lossless; so are PSFs here, which have no noise to quantize by.
    """
    tile = {"tile_shape": [CAMERA.side, CAMERA.side]}
    integers = {"algorithm": "RICE_1", **tile}
    noisy = {**integers, "quantization": {"dither": "SUBTRACTIVE_DITHER_2", "level": 16.0}}
    formatter = "lsst.images.formatters.GenericFormatter"
    config = Config()
    config["datastore", "formatters"] = {
        "preliminary_visit_psf": {"formatter": formatter, "parameters": {"recipe": "exact"}},
        "write_recipes": {
            formatter: {
                "default": {"image": noisy, "mask": integers, "variance": noisy},
                "exact": {"image": {"algorithm": "GZIP_1", **tile}},
            }
        },
    }
    return config


def build_apdb(folder: Path) -> Path:
    """Make an empty APDB on SQLite.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where the database and its configuration go.

    Returns
    -------
    config : `pathlib.Path`
        The configuration file.
    """
    from lsst.dax.apdb import Apdb
    from lsst.dax.apdb.sql import ApdbSql

    # Detectors store at the same time and SQLite lets one write: wait for the
    # lock longer than the driver's five seconds.
    config = ApdbSql.init_database(
        f"sqlite:///{folder.resolve() / 'apdb.db'}", read_sources_months=12, connection_timeout=_LOCK_SECONDS
    )
    path = folder / "apdb.yaml"
    config.save(str(path))
    # What is saved is without the connection's part; it is read, though.
    with path.open("a") as stream:
        stream.write(f"connection_config:\n  connection_timeout: {_LOCK_SECONDS}\n")
    Apdb.from_uri(str(path))  # fails here rather than at night
    return path


def known_movers(sky: Sky, seed: int) -> np.ndarray:
    """Which movers the orbit catalog has: about two of three.

    Returns
    -------
    known : `numpy.ndarray`
        `bool`, one per mover.
    """
    rng = np.random.default_rng([seed, 400, int(sky.field.ra)])
    return rng.uniform(size=len(sky.mover_ra)) < 0.67


def _put_calibs(butler: Butler, seed: int, night_mjd: float) -> None:
    edges = [night_mjd - 400.0, night_mjd - 30.0, night_mjd + 30.0, night_mjd + 400.0]
    times = [Time(mjd, format="mjd", scale="tai") for mjd in edges]
    butler.collections.register(_CALIB, CollectionType.CALIBRATION)
    # Certified for three stretches of time: only the middle one is right.
    measured = {d.id: measure_calibs(d.id, seed) for d in focal_plane().detectors}
    spoilt = {d: spoil(c) for d, c in measured.items()}
    epochs = (("expired", 0, spoilt), ("current", 1, measured), ("future", 2, spoilt))
    run = f"{INSTRUMENT}/calib/unbounded"
    butler.collections.register(run)
    camera = butler.put(camera_dict(), "camera", instrument=INSTRUMENT, run=run)
    butler.registry.certify(_CALIB, [camera], Timespan(None, None))
    for label, begin, calibs in epochs:
        run = f"{INSTRUMENT}/calib/{label}"
        butler.collections.register(run)
        with butler.transaction():
            refs = [ref for d, one in calibs.items() for ref in _put_detector(butler, d, one, run)]
        butler.registry.certify(_CALIB, refs, Timespan(times[begin], times[begin + 1]))


def _put_detector(butler: Butler, detector: int, calibs: Calibs, run: str) -> list:
    data_id = {"instrument": INSTRUMENT, "detector": detector}
    refs = [
        butler.put(calibs.bias, "bias", data_id, run=run),
        butler.put(calibs.defects, "defects", data_id, run=run),
        butler.put(calibs.gains, "gains", data_id, run=run),
    ]
    for physical_filter, flat in calibs.flats.items():
        refs.append(butler.put(flat, "flat", data_id, physical_filter=physical_filter, run=run))
    return refs


def _draw_template(job: _Job) -> TemplatePixels:
    return draw_template(*job)


def _put_template(butler: Butler, patch: Patch, band: str, pixels: TemplatePixels) -> None:
    butler.put(
        make_template(patch, pixels),
        "template_coadd",
        skymap=SKYMAP,
        tract=patch.tract,
        patch=patch.patch,
        band=band,
        run=_TEMPLATES,
    )


def _orbits(skies: Sequence[Sky], seed: int) -> Table:
    """The orbit catalog: linear motion from an epoch a day before the night.

    A position at a later time is dec + pm_dec t and ra + pm_ra_cosdec t /
    cos(dec), both with the catalog's dec.
    """
    rows = []
    for number, sky in enumerate(skies):
        rng = np.random.default_rng([seed, 401, number])
        days = 1.0
        # Back along the straight line that a predictor follows forwards, with
        # the cosine of the epoch's declination: a day's motion is far enough
        # for tonight's cosine to be seconds of arc off.
        dec = sky.mover_dec - sky.mover_rate_dec * days * 24.0 / 3600.0
        ra = sky.mover_ra - sky.mover_rate_ra * days * 24.0 / 3600.0 / np.cos(np.radians(dec))
        for i in np.flatnonzero(known_movers(sky, seed)):
            error = rng.normal(0.0, 0.15 / 3600.0, 2)
            rows.append(
                (
                    (number + 1) * 100_000 + int(i),
                    sky.mover_epoch - days,
                    float(ra[i] + error[0]) % 360.0,
                    float(dec[i] + error[1]),
                    float(sky.mover_rate_ra[i]),
                    float(sky.mover_rate_dec[i]),
                    0.3,
                    float(sky.mover_mag[i, 0]),
                    float(sky.mover_mag[i, 1]),
                )
            )
    names = (
        "ssObjectId",
        "epoch_mjd_tai",
        "ra",
        "dec",
        "pm_ra_cosdec",
        "pm_dec",
        "uncertainty_arcsec",
        "g_mag",
        "r_mag",
    )
    return Table(rows=rows, names=names)
