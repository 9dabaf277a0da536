"""Pre-processing: what is known of a field before its image comes."""

from __future__ import annotations

__all__ = ["LoadDiaCatalogsTask", "PredictMoversTask"]

from typing import Any

import lsst.pipe.base.connectionTypes as cT
import numpy as np
import pandas
from astropy.table import Table
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.utils import RegionTimeInfo
from lsst.sphgeom import LonLat, UnitVector3d

from .database import open_apdb, retried

_GROUP = ("instrument", "group", "detector")

OBJECT_COLUMNS = ("diaObjectId", "ra", "dec", "nDiaSources", "firstDiaSourceMjdTai", "lastDiaSourceMjdTai")
SOURCE_COLUMNS = (
    "diaSourceId",
    "diaObjectId",
    "visit",
    "detector",
    "midpointMjdTai",
    "ra",
    "dec",
    "x",
    "y",
    "psfFlux",
    "psfFluxErr",
    "snr",
    "isNegative",
    "reliability",
    "band",
    "timeProcessedMjdTai",
)


class PredictMoversConnections(PipelineTaskConnections, dimensions=_GROUP):
    """Connections of `PredictMoversTask`."""

    info = cT.Input(
        doc="Where the detector will look, and when.",
        name="regionTimeInfo",
        storageClass="RegionTimeInfo",
        dimensions=_GROUP,
    )
    orbits = cT.PrerequisiteInput(
        doc="Motion of known objects.", name="solar_system_orbits", storageClass="ArrowAstropy", dimensions=()
    )
    predicted = cT.Output(
        doc="Known moving objects in the region at the time.",
        name="preloaded_ss_objects",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
    )


class PredictMoversConfig(PipelineTaskConfig, pipelineConnections=PredictMoversConnections):
    """Config of `PredictMoversTask`."""


class PredictMoversTask(PipelineTask):
    """Moves the catalog's objects to the time of the visit."""

    ConfigClass = PredictMoversConfig
    _DefaultName = "predictMovers"

    def run(self, info: RegionTimeInfo, orbits: Table) -> Struct:
        """Predict positions.

        Parameters
        ----------
        info : `lsst.pipe.base.utils.RegionTimeInfo`
            Padded region of the detector and time of the visit.
        orbits : `astropy.table.Table`
            Epoch (MJD, TAI), position (degrees) and rates (arcsec per hour).

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``predicted``: ssObjectId, ra, dec (degrees), rates and
            uncertainty (arcsec) of those inside.
        """
        begin, end = info.timespan.begin.tai.mjd, info.timespan.end.tai.mjd
        hours = (0.5 * (begin + end) - np.asarray(orbits["epoch_mjd_tai"])) * 24.0
        dec = np.asarray(orbits["dec"]) + np.asarray(orbits["pm_dec"]) * hours / 3600.0
        cosine = np.cos(np.radians(np.asarray(orbits["dec"])))
        ra = np.asarray(orbits["ra"]) + np.asarray(orbits["pm_ra_cosdec"]) * hours / 3600.0 / cosine
        inside = np.array(
            [
                info.region.contains(UnitVector3d(LonLat.fromDegrees(float(a) % 360.0, float(d))))
                for a, d in zip(ra, dec, strict=True)
            ],
            dtype=bool,
        )
        predicted = Table(
            {
                "ssObjectId": np.asarray(orbits["ssObjectId"], dtype=np.int64)[inside],
                "ra": (ra % 360.0)[inside],
                "dec": dec[inside],
                "pm_ra_cosdec": np.asarray(orbits["pm_ra_cosdec"])[inside],
                "pm_dec": np.asarray(orbits["pm_dec"])[inside],
                "mjd_tai": np.full(int(inside.sum()), 0.5 * (begin + end)),
                "uncertainty_arcsec": np.asarray(orbits["uncertainty_arcsec"])[inside],
            }
        )
        self.metadata["predicted"] = len(predicted)
        return Struct(predicted=predicted)


class LoadDiaCatalogsConnections(PipelineTaskConnections, dimensions=_GROUP):
    """Connections of `LoadDiaCatalogsTask`."""

    info = cT.Input(
        doc="Where the detector will look, and when.",
        name="regionTimeInfo",
        storageClass="RegionTimeInfo",
        dimensions=_GROUP,
    )
    objects = cT.Output(
        doc="The APDB's objects in the region.",
        name="preloaded_dia_objects",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
    )
    sources = cT.Output(
        doc="Their sources.",
        name="preloaded_dia_sources",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
    )


class LoadDiaCatalogsConfig(PipelineTaskConfig, pipelineConnections=LoadDiaCatalogsConnections):
    """Config of `LoadDiaCatalogsTask`."""

    apdbConfigUrl = Field[str](doc="URI of the APDB's configuration.", optional=False)


class LoadDiaCatalogsTask(PipelineTask):
    """Reads the APDB's objects and sources of a region."""

    ConfigClass = LoadDiaCatalogsConfig
    _DefaultName = "loadDiaCatalogs"

    def run(self, info: RegionTimeInfo) -> Struct:
        """Read objects and sources.

        Parameters
        ----------
        info : `lsst.pipe.base.utils.RegionTimeInfo`
            Padded region of the detector and time of the visit.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``objects`` and ``sources``: tables, possibly without rows.
        """
        apdb = open_apdb(self.config.apdbConfigUrl)
        objects = retried(lambda: apdb.getDiaObjects(info.region))
        ids = [int(i) for i in objects["diaObjectId"]]
        sources = None
        if ids:
            # Sources are read by object: the region's edge cuts no history off.
            sources = retried(lambda: apdb.getDiaSources(info.region, ids, info.timespan.begin))
        self.metadata["objects"] = len(ids)
        self.metadata["sources"] = 0 if sources is None else len(sources)
        return Struct(objects=_table(objects, OBJECT_COLUMNS), sources=_table(sources, SOURCE_COLUMNS))


_KINDS: dict[str, Any] = {
    "diaObjectId": np.int64,
    "diaSourceId": np.int64,
    "visit": np.int64,
    "detector": np.int32,
    "nDiaSources": np.int32,
    "isNegative": bool,
    "band": str,
}


def _table(frame: pandas.DataFrame | None, columns: tuple[str, ...]) -> Table:
    """Make a table with the same columns whether there are rows or not."""
    data = {}
    for name in columns:
        kind = _KINDS.get(name, float)
        if frame is None or not len(frame):
            data[name] = np.array([], dtype="U1" if kind is str else kind)
        else:
            values = frame[name]
            if kind in (np.int64, np.int32, bool):
                values = values.fillna(0)
            data[name] = np.asarray(values, dtype="U1" if kind is str else kind)
    return Table(data)
