"""What a child puts into its repo before pre-processing."""

from __future__ import annotations

__all__ = ["put_preload_products"]

import astropy.time
from lsst.daf.butler import Butler, Timespan
from lsst.pipe.base.utils import RegionTimeInfo

from ..config import Settings
from ..instruments.description import InstrumentDescription
from ..messages import Job
from ..visit import BareVisit


def put_preload_products(
    butler: Butler, visit: BareVisit, job: Job, settings: Settings, description: InstrumentDescription
) -> None:
    """Insert the ``group`` record and put ``regionTimeInfo``.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo.
    visit : `ppd.visit.BareVisit`
        The announcement; without a position there is no region and nothing
        is put.
    job : `ppd.messages.Job`
        Gives the preload run.
    settings : `ppd.config.Settings`
        Gives the padding.
    description : `ppd.instruments.description.InstrumentDescription`
        Gives the focal plane.
    """
    instrument, group, detector = job.key.instrument, job.key.group, job.key.detector
    record = butler.dimensions["group"].RecordClass(instrument=instrument, name=group)
    butler.registry.insertDimensionData("group", record, skip_existing=True)
    if visit.ra is None or visit.dec is None or visit.rotation is None:
        return
    region = description.focal_plane.regions(
        visit.ra, visit.dec, visit.rotation, settings.preload_padding, detectors=(detector,)
    )[detector]
    # The start is a plan and the duration a script's; both are generous.
    begin = astropy.time.Time(visit.startTime or visit.private_sndStamp, format="unix_tai", scale="tai")
    end = begin + astropy.time.TimeDelta(max(visit.duration, 1.0), format="sec", scale="tai")
    info = RegionTimeInfo(region=region, timespan=Timespan(begin, end))
    butler.put(
        info,
        "regionTimeInfo",
        instrument=instrument,
        group=group,
        detector=detector,
        run=job.runs["NoPipeline"],
    )
