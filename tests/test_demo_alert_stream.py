"""Sending alerts to Kafka: a real client against librdkafka's own mock cluster."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import lsst.alert.packet
import pytest
from demo_support import PIPELINES, Field, alert_inputs, alert_task, shared_field
from lsst.pex.config import FieldValidationError

from ppd.config import Settings
from ppd.demo.tasks import alert_stream
from ppd.demo.tasks.alert_stream import AlertStreamError, from_wire, send_packets, to_wire
from ppd.pipelines import load_pipeline

kafka = pytest.importorskip("confluent_kafka")

SECONDS = 15.0


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """Address of a broker that lives in this process as long as its producer."""
    owner = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    try:
        (metadata,) = owner.list_topics(timeout=SECONDS).brokers.values()
        yield f"{metadata.host}:{metadata.port}"
    finally:
        owner.purge()
        owner.flush(1.0)
        owner.close()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where a connection is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def _consume(broker: str, topic: str, count: int) -> dict[str, bytes]:
    """Read messages of a topic from its beginning, by key."""
    consumer = kafka.Consumer({"bootstrap.servers": broker, "group.id": "test", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=SECONDS).topics[topic].partitions
        consumer.assign([kafka.TopicPartition(topic, p, kafka.OFFSET_BEGINNING) for p in partitions])
        messages: dict[str, bytes] = {}
        deadline = time.monotonic() + SECONDS
        while len(messages) < count and time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None:
                assert message.error() is None
                messages[message.key().decode()] = message.value()
        # And nothing more.
        assert consumer.poll(0.3) is None
        return messages
    finally:
        consumer.close()


def _of_file(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        return list(fastavro.reader(stream))


def test_packets_arrive(broker: str) -> None:
    packets = {str(n): bytes([n]) * 2000 for n in range(40)}
    send_packets(broker, "bytes", packets, timeout=SECONDS)
    assert _consume(broker, "bytes", len(packets)) == packets


@pytest.mark.slow
def test_alerts_arrive_and_are_those_of_the_file(field: Field, broker: str, tmp_path: Path) -> None:
    task = alert_task(tmp_path, kafkaBootstrap=broker, kafkaTopic="alerts", kafkaTimeout=SECONDS)
    summary = task.run(**alert_inputs(field, "sent")).summary
    alerts = {str(a["diaSourceId"]): a for a in _of_file(tmp_path / "sent.avro")}
    assert len(alerts) == summary["n_alerts"] >= 5
    messages = _consume(broker, "alerts", len(alerts))
    assert messages.keys() == alerts.keys()
    schema = lsst.alert.packet.Schema.from_uri(lsst.alert.packet.get_uri_to_latest_schema())
    for key, message in messages.items():
        packet, schema_id = from_wire(message)
        assert schema_id == schema.get_schema_id()
        assert fastavro.schemaless_reader(io.BytesIO(packet), schema.definition) == alerts[key]


def test_a_stream_that_is_not_there(field: Field, nobody: str, tmp_path: Path) -> None:
    """It fails in time, and the alerts are in the file."""
    task = alert_task(tmp_path, kafkaBootstrap=nobody, kafkaTimeout=2.0)
    begin = time.monotonic()
    with pytest.raises(AlertStreamError, match=r"were not taken.*sent\.avro"):
        task.run(**alert_inputs(field, "sent"))
    assert 1.0 < time.monotonic() - begin < 8.0
    assert len(_of_file(tmp_path / "sent.avro")) >= 5


def test_a_message_that_is_too_large_fails_at_once(broker: str) -> None:
    begin = time.monotonic()
    with pytest.raises(AlertStreamError, match="too large"):
        send_packets(broker, "large", {"1": b"x" * 2_000_000}, timeout=SECONDS)
    assert time.monotonic() - begin < SECONDS / 2


def test_without_a_stream_there_is_just_the_file(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_stream, "confluent_kafka", None)  # as where it is not installed
    assert alert_task(tmp_path).run(**alert_inputs(field, "sent")).summary["n_alerts"] >= 5
    with pytest.raises(FieldValidationError, match="not installed"):
        alert_task(tmp_path, kafkaBootstrap="broker:9092")
    with pytest.raises(AlertStreamError, match="not installed"):
        send_packets("broker:9092", "alerts", {"1": b"x"}, timeout=1.0)


def test_wire_format() -> None:
    message = to_wire(b"packet", 1101)
    assert message[:5] == b"\x00\x00\x00\x04\x4d"
    assert from_wire(message) == (b"packet", 1101)
    for wrong in (b"", b"\x00\x00", b"\x01\x00\x00\x04\x4dpacket"):
        with pytest.raises(ValueError, match="wire format"):
            from_wire(wrong)


def test_the_pipeline_takes_servers_and_topic_from_the_settings(tmp_path: Path) -> None:
    pipeline = str(PIPELINES / "ApPipe.yaml")
    fields = {
        "instrument": "DemoCam",
        "central_repo": str(tmp_path),
        "main_pipelines": [{"pipelines": [pipeline]}],
        "state_dir": str(tmp_path / "state"),
        "raw_dirs": [str(tmp_path)],
        "apdb_config": "apdb.yaml",
    }
    parameters = {"alert_dir": "/alerts", "alert_kafka": "one:9092,two:9092", "alert_topic": "tonight"}
    for given, expected in (({}, ("", "demo-alerts")), (parameters, ("one:9092,two:9092", "tonight"))):
        settings = Settings.from_dict({**fields, "pipeline_parameters": given})
        graph = load_pipeline(pipeline, settings).to_graph()
        config = graph.tasks["packageAlerts"].config
        assert (config.kafkaBootstrap, config.kafkaTopic) == expected
        assert config.alertDirectory == given.get("alert_dir", "alerts")
