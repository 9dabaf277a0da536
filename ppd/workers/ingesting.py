"""Whose code ingests raws and defines visits: the site's or ppd's own."""

from __future__ import annotations

__all__ = ["Ingest", "OwnIngest", "choose_ingest"]

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

from lsst.daf.butler import Butler

from ..errors import ConfigurationError
from ..instruments.description import InstrumentDescription
from .ingest import RawExposure, ingest_raw
from .visits import define_visits

_LOG = logging.getLogger(__name__)


class Ingest(Protocol):
    """What makes raws and visits of files, in a child's repo."""

    def ingest(self, butler: Butler, raw: RawExposure, run: str) -> None:
        """Insert ``group``, ``day_obs`` and ``exposure`` of a checked raw, and ingest it."""

    def define_visits(
        self, butler: Butler, raws: Sequence[RawExposure], collections: Sequence[str]
    ) -> tuple[int, ...]:
        """Define the visits of exposures, and return those to process."""


class OwnIngest:
    """ppd's own: needs nothing but the instrument's description.

    Parameters
    ----------
    description : `ppd.instruments.description.InstrumentDescription`
        The instrument.
    """

    def __init__(self, description: InstrumentDescription):
        self._description = description

    def ingest(self, butler: Butler, raw: RawExposure, run: str) -> None:
        """Ingest a raw; see `ppd.workers.ingest.ingest_raw`."""
        ingest_raw(butler, raw, run, self._description)

    def define_visits(
        self, butler: Butler, raws: Sequence[RawExposure], collections: Sequence[str]
    ) -> tuple[int, ...]:
        """Define visits; see `ppd.workers.visits.define_visits`."""
        return define_visits(butler, raws, self._description)


def choose_ingest(kind: Literal["auto", "site", "own"], description: InstrumentDescription) -> Ingest:
    """Choose whose code ingests raws and defines visits.

    Called in the nursery too, so that children inherit what is imported.

    Parameters
    ----------
    kind : `str`
        The setting.
    description : `ppd.instruments.description.InstrumentDescription`
        The instrument.

    Returns
    -------
    ingest : `Ingest`
        The site's, or ppd's own.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if the site's is asked for and is not there.
    """
    if kind == "own":
        return OwnIngest(description)
    # Where it is not wanted, nothing of it is imported.
    from .site_ingest import SiteIngest, find_site_ingest

    found = find_site_ingest(description.instrument_class)
    if isinstance(found, SiteIngest):
        _LOG.debug("Raws are ingested by the site's own lsst.obs.base.")
        return found
    if kind == "site":
        raise ConfigurationError(f"ingest is site, but {found}.")
    _LOG.debug("Raws are ingested by ppd itself: %s.", found)
    return OwnIngest(description)
