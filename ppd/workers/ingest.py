"""From a raw file to an exposure in the child's repo."""

from __future__ import annotations

__all__ = ["RawExposure", "ingest_raw", "load_translators", "read_raw"]

import dataclasses
import logging
import math
from importlib.metadata import entry_points
from pathlib import Path

import astropy.time
import astropy.units as u
from astro_metadata_translator import ObservationInfo
from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, FileDataset, Timespan

from ..errors import InvalidRawError
from ..fits_extent import NotFitsError, check_extent
from ..instruments.description import InstrumentDescription

_LOG = logging.getLogger(__name__)


def load_translators() -> None:
    """Import the header translators that installed packages announce.

    Notes
    -----
    `astro_metadata_translator` knows a translator once its class exists; it
    lists plugins but leaves their import to the application.
    """
    for plugin in entry_points(group="astro_metadata_translators"):
        try:
            plugin.load()
        except Exception as e:
            _LOG.warning("Header translator %s can't be imported: %s", plugin.name, e)


@dataclasses.dataclass(frozen=True)
class RawExposure:
    """What the header of a raw says."""

    path: Path
    info: ObservationInfo

    @property
    def exposure(self) -> int:
        """Exposure ID."""
        return int(self.info.exposure_id)

    @property
    def detector(self) -> int:
        """Detector ID."""
        return int(self.info.detector_num)

    @property
    def pointing(self) -> tuple[float, float, float]:
        """Right ascension and declination of the boresight and sky angle, degrees."""
        radec = self.info.tracking_radec
        return (
            float(radec.icrs.ra.deg),
            float(radec.icrs.dec.deg),
            float(self.info.boresight_rotation_angle.deg) % 360.0,
        )


def read_raw(
    path: Path, instrument: str, group: str, detector: int, exposure: int | None = None
) -> RawExposure:
    """Read a raw's header and check that it is what its path said.

    Parameters
    ----------
    path : `pathlib.Path`
        The file.
    instrument, group : `str`
        Instrument and group that it should be of.
    detector : `int`
        Detector that it should be of.
    exposure : `int`, optional
        Exposure that it should be of; `None`: only the header tells.

    Returns
    -------
    raw : `RawExposure`
        The translated header.

    Raises
    ------
    InvalidRawError
        Raised if the file is empty, cut short, not FITS, not understood, or
        of something else than its path says.
    """
    try:
        size = path.stat().st_size
    except OSError as e:
        raise InvalidRawError(f"Raw {path} can't be read: {e.strerror}.") from e
    if size == 0:
        raise InvalidRawError(f"Raw {path} is empty.")
    try:
        header = check_extent(path)
    except NotFitsError as e:
        raise InvalidRawError(f"Raw {path} is {e}.") from None
    except Exception as e:
        raise InvalidRawError(f"Raw {path} can't be read to its end: {e}.") from e
    try:
        obs = ObservationInfo(
            header,
            filename=str(path),
            pedantic=True,
            required={
                "exposure_id",
                "detector_num",
                "exposure_group",
                "instrument",
                "physical_filter",
                "datetime_begin",
                "datetime_end",
                "tracking_radec",
                "boresight_rotation_angle",
            },
        )
    except Exception as e:
        # The translator's own words name the property; the cause names the card.
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InvalidRawError(f"Raw {path}: its header can't be translated: {cause} ({e}).") from e
    raw = RawExposure(path, obs)
    # An exposure ID that is another's would take that exposure's place in central.
    for what, expected, found in (
        ("instrument", instrument, obs.instrument),
        ("group", group, obs.exposure_group),
        ("detector", detector, raw.detector),
        ("exposure", exposure, raw.exposure),
    ):
        if expected is not None and expected != found:
            raise InvalidRawError(f"Raw {path} is of {what} {found!r}, its path says {expected!r}.")
    _check_values(raw)
    return raw


def _check_values(raw: RawExposure) -> None:
    """Refuse values that no record can be made of; the translator does not mind them."""
    info = raw.info
    fault = None
    try:
        if not all(math.isfinite(value) for value in raw.pointing):
            fault = "its pointing is not a number"
        elif not 0 <= raw.exposure < 1 << 63:
            fault = f"{raw.exposure} is no exposure ID"
        elif not info.observation_id:
            fault = "it has no observation ID"
        elif not (info.datetime_end - info.datetime_begin).sec >= 0.0:
            fault = "it ends before it begins"
        else:
            Timespan(info.datetime_begin, info.datetime_end)
            _day_timespan(info)
    except Exception as e:
        fault = f"its header makes no sense: {e}"
    if fault:
        raise InvalidRawError(f"Raw {raw.path}: {fault}.")


def ingest_raw(butler: Butler, raw: RawExposure, run: str, description: InstrumentDescription) -> DatasetRef:
    """Insert the exposure's records and ingest the raw, by hard link where that works.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo.
    raw : `RawExposure`
        The raw.
    run : `str`
        Run for raws.
    description : `ppd.instruments.description.InstrumentDescription`
        Says which formatter reads the file.

    Returns
    -------
    ref : `lsst.daf.butler.DatasetRef`
        The ``raw`` dataset.
    """
    for element, record in exposure_records(butler, raw).items():
        butler.registry.insertDimensionData(element, record, skip_existing=True)
    data_id = butler.registry.expandDataId(
        instrument=raw.info.instrument, exposure=raw.exposure, detector=raw.detector
    )
    ref = DatasetRef(butler.get_dataset_type("raw"), data_id, run=run)
    butler.registry.registerRun(run)
    dataset = FileDataset(path=str(raw.path), refs=[ref], formatter=description.raw_formatter)
    try:
        butler.ingest(dataset, transfer="hardlink", record_validation_info=False)
    except OSError:
        # Another file system, or one that has no hard links.
        dataset = FileDataset(path=str(raw.path), refs=[ref], formatter=description.raw_formatter)
        butler.ingest(dataset, transfer="copy", record_validation_info=False)
    return ref


def exposure_records(butler: Butler, raw: RawExposure) -> dict[str, DimensionRecord]:
    """Make the ``group``, ``day_obs`` and ``exposure`` records of a raw.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        Gives the universe.
    raw : `RawExposure`
        The raw.

    Returns
    -------
    records : `dict` [ `str`, `lsst.daf.butler.DimensionRecord` ]
        In dependency order.
    """
    info = raw.info
    universe = butler.dimensions
    day = info.observing_day
    ra, dec, rotation = raw.pointing
    zenith = None
    if info.altaz_begin is not None:
        zenith = 90.0 - float(info.altaz_begin.alt.deg)
    azimuth = float(info.altaz_begin.az.deg) if info.altaz_begin is not None else None
    values = {
        "instrument": info.instrument,
        "id": raw.exposure,
        "day_obs": day,
        "group": info.exposure_group,
        "physical_filter": info.physical_filter,
        "obs_id": info.observation_id,
        "exposure_time": _value(info.exposure_time, u.s),
        "dark_time": _value(info.dark_time, u.s),
        "observation_type": info.observation_type,
        "observation_reason": info.observation_reason,
        "seq_num": info.observation_counter,
        "seq_start": info.group_counter_start,
        "seq_end": info.group_counter_end,
        "target_name": info.object,
        "science_program": info.science_program,
        "tracking_ra": ra,
        "tracking_dec": dec,
        "sky_angle": rotation,
        "azimuth": azimuth,
        "zenith_angle": zenith,
        "has_simulated": bool(info.has_simulated_content),
        "can_see_sky": info.can_see_sky,
        "timespan": Timespan(info.datetime_begin, info.datetime_end),
    }
    exposure = universe["exposure"]
    fields = set(exposure.RecordClass.fields.names)
    return {
        "group": universe["group"].RecordClass(instrument=info.instrument, name=info.exposure_group),
        "day_obs": universe["day_obs"].RecordClass(
            instrument=info.instrument, id=day, timespan=_day_timespan(info)
        ),
        "exposure": exposure.RecordClass(**{k: v for k, v in values.items() if k in fields}),
    }


def _day_timespan(info: ObservationInfo) -> Timespan:
    day = str(info.observing_day)
    offset = getattr(info, "observing_day_offset", None)
    start = astropy.time.Time(f"{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00", format="isot", scale="tai")
    if offset is not None:
        start = start + offset
    return Timespan(start, start + astropy.time.TimeDelta(1.0, format="jd", scale="tai"))


def _value(quantity: u.Quantity | None, unit: u.Unit) -> float | None:
    if quantity is None:
        return None
    value = float(quantity.to_value(unit))
    return value if math.isfinite(value) else None
