"""A site's own ingest and visit definition: the tasks of ``lsst.obs.base``, where they are installed.

Imported only where they are wanted; the import is made in the nursery, the
tasks in the children, since they hold a Butler.
"""

from __future__ import annotations

__all__ = ["SiteIngest", "find_site_ingest"]

import functools
import importlib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from lsst.daf.butler import Butler
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath
from lsst.utils import doImportType

from ..errors import InvalidRawError, one_line
from .ingest import RawExposure
from .visits import visits_to_process

_LOG = logging.getLogger(__name__)

_NEEDED = ("Instrument", "RawIngestTask", "RawIngestConfig", "DefineVisitsTask", "DefineVisitsConfig")


class SiteIngest:
    """Ingests raws and defines visits as the instrument's own software does.

    Parameters
    ----------
    base : `types.ModuleType`
        The module ``lsst.obs.base``.
    """

    def __init__(self, base: ModuleType):
        self._base: Any = base

    def ingest(self, butler: Butler, raw: RawExposure, run: str) -> None:
        """Insert the exposure's records and ingest the raw, by hard link where that works.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            The child's repo.
        raw : `ppd.workers.ingest.RawExposure`
            The raw, which has been checked.
        run : `str`
            Run for raws.

        Raises
        ------
        ppd.errors.InvalidRawError
            Raised if the site's task finds something else in it than one raw
            of the exposure and detector that its header names.
        """
        try:
            refs = self._ingest(butler, raw, run, "hardlink")
        except OSError:
            # Another file system, or one that has no hard links.
            refs = self._ingest(butler, raw, run, "copy")
        found = [(int(ref.dataId["exposure"]), int(ref.dataId["detector"])) for ref in refs]
        if found not in ([(raw.exposure, raw.detector)], []):
            raise InvalidRawError(
                f"Raw {raw.path}: the site's ingest made (exposure, detector) {found} of it, "
                f"its header says {(raw.exposure, raw.detector)}."
            )

    def _ingest(self, butler: Butler, raw: RawExposure, run: str, transfer: str) -> list[Any]:
        config = self._base.RawIngestConfig()
        self._instrument(butler, raw).applyConfigOverrides(self._base.RawIngestTask._DefaultName, config)
        config.transfer = transfer
        config.failFast = True  # an error, not a line in the log
        task = self._base.RawIngestTask(config=config, butler=butler)
        refs: list[Any] = task.run(
            [ResourcePath(str(raw.path))], run=run, skip_existing_exposures=True, track_file_attrs=False
        )
        return refs

    def define_visits(
        self, butler: Butler, raws: Sequence[RawExposure], collections: Sequence[str]
    ) -> tuple[int, ...]:
        """Define the visits of a group's exposures, in the visit systems of the instrument.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            The child's repo; the exposures' records are in it.
        raws : sequence of `ppd.workers.ingest.RawExposure`
            A raw of each exposure.
        collections : sequence of `str`
            Where the camera is looked for.

        Returns
        -------
        visits : `tuple` [ `int` ]
            IDs of the visits to process; none if no exposure is of the sky.
        """
        instrument = self._instrument(butler, raws[0])
        config = self._base.DefineVisitsConfig()
        instrument.applyConfigOverrides(self._base.DefineVisitsTask._DefaultName, config)
        task = self._base.DefineVisitsTask(config=config, butler=butler)
        name = raws[0].info.instrument
        task.run(
            [{"instrument": name, "exposure": raw.exposure} for raw in raws], collections=list(collections)
        )
        return visits_to_process(butler, name, [raw.exposure for raw in raws])

    def _instrument(self, butler: Butler, raw: RawExposure) -> Instrument:
        return Instrument.fromName(raw.info.instrument, butler.registry)


@functools.cache
def find_site_ingest(instrument_class: str | None) -> SiteIngest | str:
    """Import a site's ingest.

    Parameters
    ----------
    instrument_class : `str` or `None`
        Fully qualified name of the instrument's class.

    Returns
    -------
    ingest : `SiteIngest` or `str`
        The ingest, or why there is none.
    """
    try:
        base = importlib.import_module("lsst.obs.base")
    except ModuleNotFoundError as e:
        return f"lsst.obs.base is not installed ({e})"
    except Exception as e:
        _LOG.exception("lsst.obs.base is installed, but can't be imported.")
        return f"lsst.obs.base can't be imported ({type(e).__name__}: {one_line(e)})"
    missing = [name for name in _NEEDED if not hasattr(base, name)]
    if missing:
        return f"lsst.obs.base has no {', '.join(missing)}"
    if instrument_class is None:
        return "the instrument's description names no instrument_class"
    try:
        found = doImportType(instrument_class)
    except Exception as e:
        return f"the instrument's class {instrument_class} can't be imported ({one_line(e)})"
    if not issubclass(found, base.Instrument):
        return f"{instrument_class} is no instrument of lsst.obs.base"
    return SiteIngest(base)
