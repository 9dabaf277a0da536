"""Alert packets in Rubin's schema."""

from __future__ import annotations

__all__ = ["PackageAlertsConfig", "PackageAlertsConnections", "PackageAlertsTask"]

import io
import os
import time
from pathlib import Path
from typing import Any

import fastavro
import lsst.alert.packet
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
from lsst.images import Image
from lsst.pex.config import Field, FieldValidationError
from lsst.pipe.base import (
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
)

from . import alert_stream
from .alert_stream import AlertStreamError, send_packets, to_wire
from .stamps import fits_stamp

_VISIT = ("instrument", "visit", "detector")
_GROUP = ("instrument", "group", "detector")

# Read on import: what is in memory before the fork, every child has for nothing.
_SCHEMA = lsst.alert.packet.Schema.from_uri(lsst.alert.packet.get_uri_to_latest_schema())
_PARSED = fastavro.parse_schema(_SCHEMA.definition)
_VERSION = ".".join(str(v) for v in lsst.alert.packet.get_latest_schema_version())


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
        doc="Pixels of the calibrated image.",
        name="preliminary_visit_image.image",
        storageClass="ImageV2",
        dimensions=_VISIT,
    )
    template = cT.Input(
        doc="Pixels of the template.",
        name="template_detector.image",
        storageClass="ImageV2",
        dimensions=_VISIT,
    )
    difference = cT.Input(
        doc="Pixels of the difference.",
        name="difference_image.image",
        storageClass="ImageV2",
        dimensions=_VISIT,
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
    kafkaTimeout = Field[float](doc="Seconds for the stream to take the alerts.", default=20.0)

    def validate(self) -> None:
        super().validate()
        # Better said by ppd-init than at night.
        if self.kafkaBootstrap and alert_stream.confluent_kafka is None:
            raise FieldValidationError(
                type(self).kafkaBootstrap, self, "confluent_kafka is needed for it and is not installed"
            )


class PackageAlertsTask(PipelineTask):
    """Writes one Avro file of alerts per detector-visit, and sends them to Kafka if configured.

    Notes
    -----
    The file comes first and the stream last.  Nothing can be taken back from
    a stream, so all that can fail must have gone well before the first alert
    is on it; writing the file is, and done again it gives the same file.

    There are alerts only of stored sources, so the APDB has this visit and
    detector by then.  Any failure from there on is *final* for ppd: the image
    is not processed again and no alert is sent twice, whether or not the
    stream has taken some.  What it did not take is in the file.
    """

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
        science: Image,
        template: Image,
        difference: Image,
        name: str,
    ) -> Struct:
        """Package and send alerts.

        Parameters
        ----------
        sources, objects : `astropy.table.Table`
            What was stored of this image.
        history : `astropy.table.Table` or `None`
            Earlier sources of the region.
        science, template, difference : `lsst.images.Image`
            Images to cut stamps from.
        name : `str`
            Stem of the file.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``summary``: how many alerts, in which files, when, of which
            version of the schema.

        Raises
        ------
        AlertStreamError
            Raised if Kafka is configured and did not take all alerts; they
            are in the file.
        """
        by_id = {int(o["diaObjectId"]): o for o in objects}
        alerts = [self._alert(s, by_id, history, (science, template, difference)) for s in sources]
        paths = []
        if alerts:
            path = self._write(alerts, name)
            paths.append(str(path))
            if self.config.kafkaBootstrap:
                self._send(alerts, path)
        self.metadata["alerts"] = len(alerts)
        return Struct(
            summary={"n_alerts": len(alerts), "paths": paths, "time": time.time(), "schema": _VERSION}
        )

    def _alert(
        self, source: Any, objects: dict[int, Any], history: Table | None, images: tuple[Image, ...]
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
            alert[f"cutout{key}"] = fits_stamp(image.array, x, y)
        return alert

    def _write(self, alerts: list[dict[str, Any]], name: str) -> Path:
        folder = Path(self.config.alertDirectory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.avro"
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as stream:
            fastavro.writer(stream, _PARSED, alerts, codec="deflate")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
        return path

    def _send(self, alerts: list[dict[str, Any]], path: Path) -> None:
        config = self.config
        packets = {}
        for alert in alerts:
            stream = io.BytesIO()
            fastavro.schemaless_writer(stream, _PARSED, alert)
            packets[str(alert["diaSourceId"])] = to_wire(stream.getvalue(), _SCHEMA.get_schema_id())
        try:
            send_packets(config.kafkaBootstrap, config.kafkaTopic, packets, config.kafkaTimeout)
        except AlertStreamError as e:
            raise AlertStreamError(f"{e}; all of them are in {path}") from e


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
