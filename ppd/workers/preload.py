"""What a child puts into its repo before pre-processing."""

from __future__ import annotations

__all__ = ["put_preload_products", "rehearse"]

import astropy.time
import astropy.units as u
from lsst.daf.butler import Butler, Timespan
from lsst.pipe.base.utils import RegionTimeInfo
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from ..config import Settings
from ..instruments.description import InstrumentDescription
from ..messages import Job
from ..visit import BareVisit


def rehearse(butler: Butler) -> None:
    """Do once, in a repo that is thrown away, what every child does in its own.

    What is read, compiled and kept at the first time is then there for all
    that are forked later.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable Butler.
    """
    (detector,) = butler.query_dimension_records("detector", explain=False, limit=1)
    record = butler.dimensions["group"].RecordClass(instrument=detector.instrument, name="rehearsal")
    butler.registry.insertDimensionData("group", record, skip_existing=True)
    now = astropy.time.Time.now().tai
    corners = [UnitVector3d(LonLat.fromDegrees(*x)) for x in ((0, 0), (1, 0), (0, 1))]
    info = RegionTimeInfo(region=ConvexPolygon(corners), timespan=Timespan(now, now + 1.0 * u.s))
    ref = butler.put(
        info,
        "regionTimeInfo",
        instrument=detector.instrument,
        group="rehearsal",
        detector=detector.id,
        run="ppd/rehearsal",
    )
    butler.get(ref)


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
    if visit.pointing is None:
        return
    plane = description.focal_plane
    region = plane.regions(*visit.pointing, settings.preload_padding, (detector,))[detector]
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
