"""Associating detections with what is known, and storing them in the APDB."""

from __future__ import annotations

__all__ = ["AssociateApdbConfig", "AssociateApdbConnections", "AssociateApdbTask"]

import time
from typing import Any

import lsst.pipe.base.connectionTypes as cT
import numpy as np
import pandas
from astropy.table import Table
from astropy.time import Time
from lsst.dax.apdb import Apdb, ApdbTables
from lsst.pex.config import Field
from lsst.pipe.base import (
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
)
from scipy.spatial import cKDTree

from .database import open_apdb, retried

_VISIT = ("instrument", "visit", "detector")
_GROUP = ("instrument", "group", "detector")
_TAI_MINUS_UTC = 37.0


class AssociateApdbConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `AssociateApdbTask`."""

    candidates = cT.Input(
        doc="Candidates.", name="dia_source_unfiltered", storageClass="ArrowAstropy", dimensions=_VISIT
    )
    summary = cT.Input(
        doc="Summary of the image: its time.",
        name="preliminary_visit_summary",
        storageClass="StructuredDataDict",
        dimensions=_VISIT,
    )
    # Without them every source is a new object; that is better than no alert.
    objects = cT.Input(
        doc="Known objects of the region.",
        name="preloaded_dia_objects",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
        minimum=0,
    )
    movers = cT.Input(
        doc="Known moving objects of the region.",
        name="preloaded_ss_objects",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
        minimum=0,
    )
    sources = cT.Output(
        doc="Sources as stored in the APDB.",
        name="dia_source_detector",
        storageClass="ArrowAstropy",
        dimensions=_VISIT,
    )
    updated = cT.Output(
        doc="Objects that got a source.",
        name="dia_object_detector",
        storageClass="ArrowAstropy",
        dimensions=_VISIT,
    )


class AssociateApdbConfig(PipelineTaskConfig, pipelineConnections=AssociateApdbConnections):
    """Config of `AssociateApdbTask`."""

    apdbConfigUrl = Field[str](doc="URI of the APDB's configuration.", optional=False)
    minReliability = Field[float](doc="Candidates below are dropped.", default=0.5)
    matchRadius = Field[float](doc="Match radius to objects, arcsec.", default=1.0)
    moverRadius = Field[float](doc="Match radius to predicted movers, arcsec.", default=2.5)


class AssociateApdbTask(PipelineTask):
    """Matches sources with objects and stores both."""

    ConfigClass = AssociateApdbConfig
    _DefaultName = "associateApdb"

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        inputs = butlerQC.get(inputRefs)
        data_id = butlerQC.quantum.dataId
        result = self.run(
            candidates=inputs["candidates"],
            summary=inputs["summary"],
            objects=inputs.get("objects"),
            movers=inputs.get("movers"),
            visit=int(data_id["visit"]),
            detector=int(data_id["detector"]),
            band=str(data_id["band"]),
        )
        butlerQC.put(result, outputRefs)

    def run(
        self,
        candidates: Table,
        summary: dict,
        objects: Table | None,
        movers: Table | None,
        visit: int,
        detector: int,
        band: str,
    ) -> Struct:
        """Associate and store.

        Parameters
        ----------
        candidates : `astropy.table.Table`
            Measured candidates.
        summary : `dict`
            Gives begin and length of the exposure, and of when its sky is.
        objects, movers : `astropy.table.Table` or `None`
            What pre-processing found; `None` if it failed.
        visit, detector : `int`
            Data ID.
        band : `str`
            Band.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``sources`` and ``updated`` objects.
        """
        exposure_time = float(summary["exposure_time"])
        middle = Time(summary["begin_tai"], format="isot", scale="tai").mjd + exposure_time / 2 / 86400.0
        sources = candidates[candidates["reliability"] >= self.config.minReliability]
        sources["visit"] = np.full(len(sources), visit, dtype=np.int64)
        sources["detector"] = np.full(len(sources), detector, dtype=np.int32)
        sources["band"] = np.full(len(sources), band, dtype="U1")
        sources["midpointMjdTai"] = np.full(len(sources), middle)
        sources["exposureTime"] = np.full(len(sources), exposure_time)
        sources["timeProcessedMjdTai"] = np.full(
            len(sources), Time(time.time() + _TAI_MINUS_UTC, format="unix_tai", scale="tai").mjd
        )
        sky_middle = Time(summary["sky_tai"], format="isot", scale="tai").mjd
        moving = _nearest(sources, _moved(movers, sky_middle), self.config.moverRadius)
        known = _nearest(sources, objects, self.config.matchRadius)
        ss_ids = np.zeros(len(sources), dtype=np.int64)
        object_ids = np.zeros(len(sources), dtype=np.int64)
        # Sources come in order of significance: the better one takes what two match.
        taken: set[int] = set()
        for i in range(len(sources)):
            mover = int(movers["ssObjectId"][moving[i]]) if movers is not None and moving[i] >= 0 else 0
            old = int(objects["diaObjectId"][known[i]]) if objects is not None and known[i] >= 0 else 0
            if mover and mover not in taken:
                ss_ids[i] = mover
                taken.add(mover)
            elif old and old not in taken:
                object_ids[i] = old
                taken.add(old)
            else:
                # A new object is called after its first source.
                object_ids[i] = int(sources["diaSourceId"][i])
        sources["ssObjectId"], sources["diaObjectId"] = ss_ids, object_ids
        updated = _updated_objects(sources, objects, middle)
        self._store(sources, updated, middle)
        for name, value in (
            ("stored", len(sources)),
            ("movers", int((ss_ids > 0).sum())),
            ("new_objects", int((updated["nDiaSources"] == 1).sum()) if len(updated) else 0),
        ):
            self.metadata[name] = value
        return Struct(sources=sources, updated=updated)

    def _store(self, sources: Table, updated: Table, middle: float) -> None:
        if not len(sources):
            return
        apdb = open_apdb(self.config.apdbConfigUrl)
        visit_time = Time(middle, format="mjd", scale="tai")
        source_frame = _frame(apdb, ApdbTables.DiaSource, sources)
        for name in ("ssObjectId", "diaObjectId"):
            # 0 stands for none in the tables; the APDB has NULL for it.
            source_frame[name] = pandas.array([int(v) if v else None for v in sources[name]], dtype="Int64")
        object_frame = _frame(apdb, ApdbTables.DiaObject, updated)
        retried(lambda: apdb.store(visit_time, object_frame, source_frame))


def _nearest(sources: Table, others: Table | None, radius: float) -> np.ndarray:
    """Index of the nearest other within a radius (arcsec) for each source, or -1."""
    index = np.full(len(sources), -1)
    if others is None or not len(others) or not len(sources):
        return index
    limit = 2.0 * np.sin(np.radians(radius / 3600.0) / 2.0)
    distance, found = cKDTree(_vectors(others)).query(_vectors(sources), distance_upper_bound=limit)
    near = np.isfinite(distance)
    index[near] = found[near]
    return index


def _vectors(table: Table) -> np.ndarray:
    ra, dec = np.radians(np.asarray(table["ra"])), np.radians(np.asarray(table["dec"]))
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def _moved(movers: Table | None, mjd: float) -> Table | None:
    """Move predictions from the announced time to that of the simulated sky."""
    if movers is None or not len(movers):
        return movers
    hours = (mjd - np.asarray(movers["mjd_tai"])) * 24.0
    moved = movers.copy()
    moved["dec"] = np.asarray(movers["dec"]) + np.asarray(movers["pm_dec"]) * hours / 3600.0
    cosine = np.cos(np.radians(np.asarray(movers["dec"])))
    moved["ra"] = np.asarray(movers["ra"]) + np.asarray(movers["pm_ra_cosdec"]) * hours / 3600.0 / cosine
    return moved


def _updated_objects(sources: Table, objects: Table | None, middle: float) -> Table:
    """Make the new state of every object that got a source."""
    rows = []
    before = {int(o["diaObjectId"]): o for o in objects} if objects is not None else {}
    for source in sources:
        identity = int(source["diaObjectId"])
        if not identity:
            continue
        old = before.get(identity)
        n = int(old["nDiaSources"]) if old is not None else 0
        first = float(old["firstDiaSourceMjdTai"]) if old is not None else middle
        # A running mean, on the small angle between the two positions.
        shift = (float(source["ra"]) - float(old["ra"]) + 180.0) % 360.0 - 180.0 if old is not None else 0.0
        ra = float(old["ra"]) + shift / (n + 1) if old is not None else float(source["ra"])
        dec = (
            (float(old["dec"]) * n + float(source["dec"])) / (n + 1)
            if old is not None
            else float(source["dec"])
        )
        band = str(source["band"])
        rows.append((identity, middle, ra % 360.0, dec, n + 1, first, middle, band, float(source["psfFlux"])))
    names = (
        "diaObjectId",
        "validityStartMjdTai",
        "ra",
        "dec",
        "nDiaSources",
        "firstDiaSourceMjdTai",
        "lastDiaSourceMjdTai",
        "lastBand",
        "lastPsfFlux",
    )
    kinds: tuple[Any, ...] = (np.int64, float, float, float, np.int32, float, float, "U1", float)
    if not rows:
        return Table({name: np.array([], dtype=kind) for name, kind in zip(names, kinds, strict=True)})
    return Table(rows=rows, names=names, dtype=kinds)


def _frame(apdb: Apdb, table: ApdbTables, rows: Table) -> pandas.DataFrame:
    """Make a frame that fits the APDB's schema; what it requires and nobody measured is 0."""
    definition = apdb.tableDef(table)
    assert definition is not None
    data: dict[str, Any] = {}
    for column in definition.columns:
        if column.name in rows.colnames:
            data[column.name] = np.asarray(rows[column.name])
        elif not column.nullable and column.name != "pixelId":
            data[column.name] = np.zeros(len(rows), dtype=np.int32)
    return pandas.DataFrame(data)
