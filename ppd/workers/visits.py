"""From exposures to visits: definition and regions, in the child's repo."""

from __future__ import annotations

__all__ = ["define_visit"]

from lsst.daf.butler import Butler
from lsst.sphgeom import ConvexPolygon

from ..instruments.description import InstrumentDescription
from .ingest import RawExposure


def define_visit(butler: Butler, raw: RawExposure, description: InstrumentDescription) -> int:
    """Define the visit of an exposure, as Rubin's one-to-one system does.

    After this, ``visit``, ``visit_definition``, ``visit_system_membership``
    and the ``visit_detector_region`` of this child's detector are in the
    repo.  The visit has the exposure's ID and, as name, its observation ID.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The child's repo; the exposure's records are in it.
    raw : `ppd.workers.ingest.RawExposure`
        A raw of the exposure.
    description : `ppd.instruments.description.InstrumentDescription`
        Gives the focal plane.

    Returns
    -------
    visit : `int`
        The visit's ID.

    Notes
    -----
    An exposure that is alone in its sequence is a visit of every other visit
    system too, as in LSSTCam's ``by-seq-start-end``.
    """
    registry = butler.registry
    instrument = raw.info.instrument
    universe = butler.dimensions
    exposure = butler.query_dimension_records("exposure", instrument=instrument, exposure=raw.exposure)[0]
    regions = description.focal_plane.regions(*raw.pointing, padding=description.region_padding)
    corners = [v for region in regions.values() for v in region.getVertices()]

    systems = butler.query_dimension_records("visit_system", instrument=instrument, explain=False)
    if not systems:
        one_to_one = universe["visit_system"].RecordClass(instrument=instrument, id=0, name="one-to-one")
        registry.insertDimensionData("visit_system", one_to_one, skip_existing=True)
        systems = [one_to_one]
    alone = exposure.seq_start == exposure.seq_end

    shared = set(universe["visit"].RecordClass.fields.names) & set(
        universe["exposure"].RecordClass.fields.names
    )
    values = {name: getattr(exposure, name) for name in shared if name not in ("id", "name")}
    visit = universe["visit"].RecordClass(
        **values, id=exposure.id, name=exposure.obs_id, region=ConvexPolygon.convexHull(corners)
    )
    registry.insertDimensionData("visit", visit, skip_existing=True)
    registry.insertDimensionData(
        "visit_definition",
        universe["visit_definition"].RecordClass(instrument=instrument, exposure=exposure.id, visit=visit.id),
        skip_existing=True,
    )
    for system in systems:
        if alone or system.name == "one-to-one":
            registry.insertDimensionData(
                "visit_system_membership",
                universe["visit_system_membership"].RecordClass(
                    instrument=instrument, visit_system=system.id, visit=visit.id
                ),
                skip_existing=True,
            )
    registry.insertDimensionData(
        "visit_detector_region",
        universe["visit_detector_region"].RecordClass(
            instrument=instrument, visit=visit.id, detector=raw.detector, region=regions[raw.detector]
        ),
        skip_existing=True,
    )
    return int(visit.id)
