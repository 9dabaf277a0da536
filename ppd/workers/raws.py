"""Taking raws: from what was announced of one to its exposure in the child's repo."""

from __future__ import annotations

__all__ = ["RawTaker", "Taken"]

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lsst.daf.butler import Butler

from ..config import Settings
from ..crash_points import here
from ..errors import InvalidRawError
from ..instruments.description import InstrumentDescription
from ..logs import bind
from ..messages import Job, RawArrived
from ..visit import BareVisit
from .announced import missed_field, missed_filter, missed_rotation
from .fetch import FetchError, fetch_raw
from .ingest import RawExposure, read_raw
from .ingesting import choose_ingest

_LOG = logging.getLogger(__name__)

Refusal = Literal["raw_refused", "raw_repeated", "exposure_dropped", "raw_not_fetched"]


@dataclasses.dataclass(frozen=True)
class Taken:
    """What became of one raw."""

    event: Refusal | Literal["ingested"]
    reason: str = ""


class RawTaker:
    """The raws of one detector-visit, as they are ingested.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo.
    job : `ppd.messages.Job`
        The detector-visit.
    visit : `ppd.visit.BareVisit`
        Its announcement.
    settings : `ppd.config.Settings`
        The tolerances.
    description : `ppd.instruments.description.InstrumentDescription`
        The instrument.
    run : `str`
        Run for raws.
    tell : callable
        Called with the name of an event and its details.
    """

    def __init__(
        self,
        butler: Butler,
        job: Job,
        visit: BareVisit,
        settings: Settings,
        description: InstrumentDescription,
        run: str,
        tell: Callable[..., None],
    ):
        self._butler = butler
        self._key = job.key
        self._folder = Path(job.local_repo) / "raws"
        self._visit = visit
        self._settings = settings
        self._description = description
        self._run = run
        self._tell = tell
        self._uris: dict[int, str] = {}
        self.exposures: dict[int, RawExposure] = {}
        """What was ingested, by exposure ID."""
        self.mismatches: list[str] = []
        """Where headers of ingested raws disagree with the announcement."""
        self.refusals: list[Taken] = []
        """What was not ingested, and why."""

    @property
    def not_fetched(self) -> int:
        """How many raws could not be had, which another attempt may get."""
        return sum(r.event == "raw_not_fetched" for r in self.refusals)

    def take(self, message: RawArrived) -> Taken:
        """Take a raw: fetch, check, ingest.

        Parameters
        ----------
        message : `ppd.messages.RawArrived`
            The raw.

        Returns
        -------
        taken : `Taken`
            What became of it; it has been told.
        """
        taken, exposure = self._take(message)
        if taken.event == "raw_repeated" and self._is_copy(message, exposure):
            _LOG.info("%s is another copy of exposure %s, which is here already.", message.uri, exposure)
            return taken
        detail: dict[str, Any] = {"uri": message.uri, "snap": message.snap}
        if exposure is not None:
            detail["exposure"] = exposure
            if taken.event == "ingested":
                # What alerts are timed from; UTC, as the supervisor's clock has it.
                detail["shutter_closed"] = float(self.exposures[exposure].info.datetime_end.unix)
        if taken.event != "ingested":
            self.refusals.append(taken)
            _LOG.error("%s: %s", taken.event.replace("_", " ").capitalize(), taken.reason)
            detail["reason"] = taken.reason[:500]
        self._tell(taken.event, **detail)
        return taken

    def _take(self, message: RawArrived) -> tuple[Taken, int | None]:
        if message.exposure in self.exposures:
            # Not worth the fetching.
            return _repeated(message, message.exposure), message.exposure
        try:
            path = fetch_raw(message, self._folder, self._settings.s3_endpoint)
            here("child.raw-fetched")
            key = self._key
            raw = read_raw(path, key.instrument, key.group, key.detector, exposure=message.exposure)
        except FetchError as e:
            return Taken("raw_not_fetched", str(e)), None
        except InvalidRawError as e:
            return Taken("raw_refused", str(e)), None
        if raw.exposure in self.exposures:
            return _repeated(message, raw.exposure), raw.exposure
        astray = self._astray(raw)
        if astray is not None:
            return Taken("exposure_dropped", f"exposure {raw.exposure}: {astray}"), raw.exposure
        physical_filter = raw.info.physical_filter
        if not self._butler.query_dimension_records(
            "physical_filter",
            instrument=self._key.instrument,
            physical_filter=physical_filter,
            explain=False,
        ):
            reason = f"Raw {message.uri}: its filter {physical_filter!r} is unknown."
            return Taken("raw_refused", reason), raw.exposure
        bind(exposure=raw.exposure)
        mismatch = missed_filter(raw, self._visit)
        if mismatch is not None:
            self.mismatches.append(mismatch)
            _LOG.warning("Exposure %d: %s; it is processed as what it is.", raw.exposure, mismatch)
        choose_ingest(self._settings.ingest, self._description).ingest(self._butler, raw, self._run)
        here("child.raw-ingested")
        self.exposures[raw.exposure] = raw
        self._uris[raw.exposure] = message.uri
        return Taken("ingested"), raw.exposure

    def _is_copy(self, message: RawArrived, exposure: int | None) -> bool:
        """Whether an exposure is in a directory and in a bucket: that is no mistake."""
        first = self._uris.get(exposure or 0, message.uri)
        return ("://" in first) != ("://" in message.uri)

    def _astray(self, raw: RawExposure) -> str | None:
        """Say whether an exposure looks elsewhere than was announced."""
        settings, plane = self._settings, self._description.focal_plane
        return missed_rotation(raw, self._visit, settings.rotation_tolerance) or missed_field(
            raw, self._visit, plane, self._key.detector, settings.preload_padding
        )


def _repeated(message: RawArrived, exposure: int | None) -> Taken:
    return Taken("raw_repeated", f"exposure {exposure} came twice; {message.uri} is ignored")
