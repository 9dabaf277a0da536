"""How to read the header of a DemoCam raw."""

from __future__ import annotations

__all__ = ["DemoCamTranslator", "translators"]

from collections.abc import Mapping
from typing import Any, ClassVar

import astropy.units as u
from astro_metadata_translator import StubTranslator, cache_translation
from astropy.coordinates import AltAz, Angle, EarthLocation, SkyCoord
from astropy.time import Time, TimeDelta

from .camera import INSTRUMENT

_SITE = EarthLocation.from_geodetic(-70.749417 * u.deg, -30.244639 * u.deg, 2663.0 * u.m)


class DemoCamTranslator(StubTranslator):
    """Translates DemoCam headers for `astro_metadata_translator`."""

    name = INSTRUMENT
    supported_instrument = INSTRUMENT
    _observing_day_offset = TimeDelta(12 * 3600, format="sec", scale="tai")

    _const_map: ClassVar[dict[str, Any]] = {
        "boresight_rotation_coord": "sky",
        "observation_type": "science",
        "observation_reason": "survey",
        "has_simulated_content": True,
        "can_see_sky": True,
        "telescope": "Demo Telescope",
        "detector_group": "R00",
        "focus_z": 0.0 * u.m,
        "relative_humidity": 20.0,
        "pressure": 73_000.0 * u.Pa,
        "temperature": 283.0 * u.K,
    }
    _trivial_map: ClassVar[dict[str, Any]] = {
        "exposure_id": "EXPID",
        "visit_id": "EXPID",
        "observation_id": "OBSID",
        "detector_num": "DETNUM",
        "detector_serial": "DETNAME",
        "detector_unique_name": "DETNAME",
        "physical_filter": "FILTER",
        "exposure_time": ("EXPTIME", {"unit": u.s}),
        "exposure_time_requested": ("EXPTIME", {"unit": u.s}),
        "dark_time": ("DARKTIME", {"unit": u.s}),
        "object": "OBJECT",
        "science_program": "PROGRAM",
        "exposure_group": "GROUPID",
        "observation_counter": "SEQNUM",
        "group_counter_start": "SEQSTART",
        "group_counter_end": "SEQEND",
        "boresight_airmass": "AIRMASS",
    }

    @classmethod
    def can_translate(cls, header: Mapping[str, Any], filename: str | None = None) -> bool:
        return bool(header.get("INSTRUME") == INSTRUMENT)

    @cache_translation
    def to_datetime_begin(self) -> Time:
        return self._time("DATE-BEG")

    @cache_translation
    def to_datetime_end(self) -> Time:
        return self._time("DATE-END")

    @cache_translation
    def to_tracking_radec(self) -> SkyCoord:
        self._used_these_cards("RA", "DEC")
        return SkyCoord(self._header["RA"], self._header["DEC"], frame="icrs", unit="deg")

    @cache_translation
    def to_boresight_rotation_angle(self) -> Angle:
        self._used_these_cards("ROTSKY")
        return Angle(float(self._header["ROTSKY"]) * u.deg)

    @cache_translation
    def to_altaz_begin(self) -> AltAz:
        self._used_these_cards("AZ", "EL")
        return AltAz(
            az=self._header["AZ"] * u.deg,
            alt=self._header["EL"] * u.deg,
            obstime=self.to_datetime_begin(),
            location=_SITE,
        )

    @cache_translation
    def to_altaz_end(self) -> AltAz:
        return self.to_altaz_begin()

    @cache_translation
    def to_instrument(self) -> str:
        self._used_these_cards("INSTRUME")
        return INSTRUMENT

    @cache_translation
    def to_location(self) -> EarthLocation:
        return _SITE

    @cache_translation
    def to_detector_name(self) -> str:
        self._used_these_cards("DETNAME")
        return str(self._header["DETNAME"]).partition("_")[2]

    @cache_translation
    def to_detector_exposure_id(self) -> int:
        return int(self.to_exposure_id()) * 10 + int(self.to_detector_num())

    @cache_translation
    def to_observing_day(self) -> int:
        self._used_these_cards("DAYOBS")
        return int(self._header["DAYOBS"])

    @classmethod
    def observing_date_to_offset(cls, observing_date: Time) -> TimeDelta:
        return cls._observing_day_offset

    def _time(self, card: str) -> Time:
        self._used_these_cards(card)
        return Time(self._header[card], format="isot", scale="tai")


def translators() -> list[str]:
    """Name the translators of this module; importing it has registered them."""
    return [DemoCamTranslator.name]
