"""The alert stream: sending packets to Kafka."""

from __future__ import annotations

__all__ = ["AlertStreamError", "from_wire", "send_packets", "to_wire"]

import struct
import time
from collections.abc import Mapping

# Only a site with a stream needs the client; imported here, before the fork,
# it costs no child anything.  Its threads begin with a producer.
try:
    import confluent_kafka
except ImportError:
    confluent_kafka = None

_HEADER = struct.Struct(">bI")
_MAGIC = 0


class AlertStreamError(RuntimeError):
    """Raised when packets did not reach the stream, all or some of them."""


def to_wire(packet: bytes, schema_id: int) -> bytes:
    """Put the header of Confluent's wire format before a packet, as Rubin's stream has it."""
    return _HEADER.pack(_MAGIC, schema_id) + packet


def from_wire(message: bytes) -> tuple[bytes, int]:
    """Take a message apart into packet and schema ID.

    Raises
    ------
    ValueError
        Raised if the message is not in Confluent's wire format.
    """
    if len(message) < _HEADER.size or message[0] != _MAGIC:
        raise ValueError("the message does not begin with the header of Confluent's wire format")
    _, schema_id = _HEADER.unpack_from(message)
    return message[_HEADER.size :], schema_id


def send_packets(servers: str, topic: str, packets: Mapping[str, bytes], timeout: float) -> None:
    """Send packets and wait until the brokers have them.

    Parameters
    ----------
    servers : `str`
        Kafka's bootstrap servers.
    topic : `str`
        Topic.
    packets : `~collections.abc.Mapping` [ `str`, `bytes` ]
        Messages by key.
    timeout : `float`
        Seconds for all of it.

    Raises
    ------
    AlertStreamError
        Raised if a message was not acknowledged by all replicas in time.
        Others may be on the stream, and there they stay.
    """
    if confluent_kafka is None:
        raise AlertStreamError("confluent_kafka is not installed")
    begin = time.monotonic()
    faults: list[str] = []
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": servers,
            # The library's own retries write no message twice.
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.timeout.ms": max(1, int(1000 * 0.9 * timeout)),
        }
    )

    def note(error: object, message: object) -> None:
        if error is not None:
            faults.append(str(error))

    try:
        for key, value in packets.items():
            producer.produce(topic, key=key, value=value, on_delivery=note)
        left = producer.flush(max(0.0, timeout - (time.monotonic() - begin)))
    except (confluent_kafka.KafkaException, BufferError) as e:
        raise AlertStreamError(f"{servers}, topic {topic}: {e}") from e
    finally:
        # Nothing may come to the stream after the failure was reported; and
        # without this, closing would wait for it without end.
        producer.purge()
        producer.flush(1.0)
        producer.close()
    if left or faults:
        # What was purged is among the faults: no message counts twice.
        reason = "time-out" if left else faults[0]
        lost = f"{max(left, len(faults))} of {len(packets)} alerts"
        raise AlertStreamError(f"{lost} were not taken by {servers}, topic {topic}: {reason}")
