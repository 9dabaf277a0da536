"""Alert packets in Rubin's schema."""

from __future__ import annotations

__all__ = ["PackageAlertsConfig", "PackageAlertsConnections", "PackageAlertsTask"]

import io
import os
import time
from pathlib import Path
from typing import Any

import astropy.io.fits
import fastavro
import lsst.alert.packet
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
from lsst.images import MaskedImage
from lsst.pex.config import Field
from lsst.pipe.base import (
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
)

_VISIT = ("instrument", "visit", "detector")
_GROUP = ("instrument", "group", "detector")
_HALF = 15


class PackageAlertsConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Connections of `PackageAlertsTask`."""

    sources = cT.Input(
        doc="Stored sources.", name="dia_source_detector", storageClass="ArrowAstropy", dimensions=_VISIT
    )
    objects = cT.Input(
        doc="Their objects.", name="dia_object_detector", storageClass="ArrowAstropy", dimensions=_VISIT
    )
    history = cT.Input(
        doc="Earlier sources of the region.",
        name="preloaded_dia_sources",
        storageClass="ArrowAstropy",
        dimensions=_GROUP,
        minimum=0,
    )
    science = cT.Input(
        doc="Calibrated image.",
        name="preliminary_visit_image",
        storageClass="MaskedImageV2",
        dimensions=_VISIT,
    )
    template = cT.Input(
        doc="Template.", name="template_detector", storageClass="MaskedImageV2", dimensions=_VISIT
    )
    difference = cT.Input(
        doc="Difference.", name="difference_image", storageClass="MaskedImageV2", dimensions=_VISIT
    )
    summary = cT.Output(
        doc="How many alerts went where, and when.",
        name="alert_summary",
        storageClass="StructuredDataDict",
        dimensions=_VISIT,
    )


class PackageAlertsConfig(PipelineTaskConfig, pipelineConnections=PackageAlertsConnections):
    """Config of `PackageAlertsTask`."""

    alertDirectory = Field[str](doc="Where alert files go.", optional=False)
    kafkaBootstrap = Field[str](doc="Kafka servers; empty: none.", default="")
    kafkaTopic = Field[str](doc="Topic for alerts.", default="demo-alerts")


class PackageAlertsTask(PipelineTask):
    """Writes one Avro file of alerts per detector-visit, and sends them to Kafka if configured."""

    ConfigClass = PackageAlertsConfig
    _DefaultName = "packageAlerts"

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        inputs = butlerQC.get(inputRefs)
        data_id = butlerQC.quantum.dataId
        inputs.setdefault("history", None)
        name = f"{data_id['instrument']}_{data_id['visit']}_{data_id['detector']:03d}"
        butlerQC.put(self.run(**inputs, name=name), outputRefs)

    def run(
        self,
        sources: Table,
        objects: Table,
        history: Table | None,
        science: MaskedImage,
        template: MaskedImage,
        difference: MaskedImage,
        name: str,
    ) -> Struct:
        """Package and send alerts.

        Parameters
        ----------
        sources, objects : `astropy.table.Table`
            What was stored of this image.
        history : `astropy.table.Table` or `None`
            Earlier sources of the region.
        science, template, difference : `lsst.images.MaskedImage`
            Images to cut stamps from.
        name : `str`
            Stem of the file.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``summary``.
        """
        schema = lsst.alert.packet.Schema.from_uri(lsst.alert.packet.get_uri_to_latest_schema())
        by_id = {int(o["diaObjectId"]): o for o in objects}
        alerts = [self._alert(s, by_id, history, (science, template, difference)) for s in sources]
        paths = []
        if alerts:
            paths.append(str(self._write(alerts, schema, name)))
            if self.config.kafkaBootstrap:
                self._produce(alerts, schema)
        self.metadata["alerts"] = len(alerts)
        version = ".".join(str(v) for v in lsst.alert.packet.get_latest_schema_version())
        return Struct(
            summary={"n_alerts": len(alerts), "paths": paths, "time": time.time(), "schema": version}
        )

    def _alert(
        self, source: Any, objects: dict[int, Any], history: Table | None, images: tuple[MaskedImage, ...]
    ) -> dict[str, Any]:
        identity = int(source["diaObjectId"])
        earlier = []
        if history is not None and identity:
            earlier = [_source(row) for row in history if int(row["diaObjectId"]) == identity]
        x, y = float(source["x"]), float(source["y"])
        alert: dict[str, Any] = {
            "diaSourceId": int(source["diaSourceId"]),
            "diaSource": _source(source),
            "prvDiaSources": earlier or None,
            "diaObject": _object(objects[identity]) if identity in objects else None,
        }
        for key, image in zip(("Science", "Template", "Difference"), images, strict=True):
            alert[f"cutout{key}"] = _cutout(image, x, y)
        return alert

    def _write(self, alerts: list[dict[str, Any]], schema: Any, name: str) -> Path:
        folder = Path(self.config.alertDirectory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.avro"
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as stream:
            fastavro.writer(stream, schema.definition, alerts, codec="deflate")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
        return path

    def _produce(self, alerts: list[dict[str, Any]], schema: Any) -> None:
        # Only where a site has configured it is its library needed.
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.config.kafkaBootstrap})
        faults: list[str] = []
        for alert in alerts:
            stream = io.BytesIO()
            fastavro.schemaless_writer(stream, schema.definition, alert)
            producer.produce(
                self.config.kafkaTopic,
                key=str(alert["diaSourceId"]),
                value=stream.getvalue(),
                on_delivery=lambda error, _: faults.append(str(error)) if error else None,
            )
        left = producer.flush(20.0)
        if left or faults:
            raise RuntimeError(f"{left + len(faults)} alerts were not delivered: {faults[:1]}")


def _source(row: Any) -> dict[str, Any]:
    """Fill a diaSource record with what was measured; the schema's defaults are null."""
    record: dict[str, Any] = {
        "psfNdata": 0,
        "trailNdata": 0,
        "dipoleNdata": 0,
        "bboxSize": 0,
    }
    names = row.colnames
    for name in ("diaSourceId", "visit", "detector", "psfNdata"):
        if name in names:
            record[name] = int(row[name])
    for name in (
        "midpointMjdTai",
        "exposureTime",
        "ra",
        "dec",
        "x",
        "y",
        "psfFlux",
        "psfFluxErr",
        "psfChi2",
        "snr",
        "scienceFlux",
        "templateFlux",
        "reliability",
        "timeProcessedMjdTai",
    ):
        if name in names and np.isfinite(float(row[name])):
            record[name] = float(row[name])
    for name in ("isNegative", "isDipole"):
        if name in names:
            record[name] = bool(row[name])
    record["band"] = str(row["band"])
    for name in ("diaObjectId", "ssObjectId"):
        if name in names and int(row[name]):
            record[name] = int(row[name])
    return record


def _object(row: Any) -> dict[str, Any]:
    record = {
        "diaObjectId": int(row["diaObjectId"]),
        "validityStartMjdTai": float(row["validityStartMjdTai"]),
        "ra": float(row["ra"]),
        "dec": float(row["dec"]),
        "nDiaSources": int(row["nDiaSources"]),
        "firstDiaSourceMjdTai": float(row["firstDiaSourceMjdTai"]),
        "lastDiaSourceMjdTai": float(row["lastDiaSourceMjdTai"]),
    }
    for band in "ugrizy":
        record[f"{band}_psfFluxNdata"] = int(str(row["lastBand"]) == band)
    return record


def _cutout(image: MaskedImage, x: float, y: float) -> bytes:
    """Cut a stamp of 31×31 pixels, as FITS; outside the image it is NaN."""
    stamp = np.full((2 * _HALF + 1, 2 * _HALF + 1), np.nan, dtype=np.float32)
    ix, iy = round(x), round(y)
    ny, nx = image.image.array.shape
    xa, xb, ya, yb = max(0, ix - _HALF), min(nx, ix + _HALF + 1), max(0, iy - _HALF), min(ny, iy + _HALF + 1)
    if xa < xb and ya < yb:
        into = slice(ya - iy + _HALF, yb - iy + _HALF), slice(xa - ix + _HALF, xb - ix + _HALF)
        stamp[into] = image.image.array[ya:yb, xa:xb]
    stream = io.BytesIO()
    hdu = astropy.io.fits.PrimaryHDU(stamp)
    hdu.header["BUNIT"] = "nJy"
    hdu.writeto(stream)
    return stream.getvalue()
