"""Reading how a ``prompt_processing`` service is set up: values of its charts, or its environment."""

from __future__ import annotations

__all__ = ["VALUES", "ForeignEnvironment", "read_foreign"]

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..errors import ConfigurationError

VALUES = {
    "instrument.name": "RUBIN_INSTRUMENT",
    "instrument.pipelines.main": "MAIN_PIPELINES_CONFIG",
    "instrument.pipelines.preprocessing": "PREPROCESSING_PIPELINES_CONFIG",
    "instrument.skymap": "SKYMAP",
    "instrument.preloadPadding": "PRELOAD_PADDING",
    "instrument.exportTypes": "EXPORT_TYPE_REGEXP",
    "instrument.centralRepo": "CENTRAL_REPO",
    "instrument.calibRepo": "CALIB_REPO",
    "instrument.readRepo": "READ_CENTRAL_REPO",
    "instrument.localRepoConfig": "LOCAL_REPO_CONFIG",
    "instrument.transferScale": "LSST_RESOURCES_NUM_WORKERS",
    "instrument.repoWait": "REPO_RETRY_DELAY",
    "cache.baseSize": "LOCAL_REPO_CACHE_SIZE",
    "cache.refcatsPerImage": "REFCATS_PER_IMAGE",
    "cache.patchesPerImage": "PATCHES_PER_IMAGE",
    "cache.maxFilters": "FILTERS_WITH_CALIBS",
    "s3.imageBucket": "IMAGE_BUCKET",
    "s3.endpointUrl": "S3_ENDPOINT_URL",
    "s3.disableBucketValidation": "LSST_DISABLE_BUCKET_VALIDATION",
    "s3.aws_profile": "AWS_PROFILE",
    "s3.checksum": "AWS_REQUEST_CHECKSUM_CALCULATION",
    "raw_microservice": "RAW_MICROSERVICE",
    "mpSky_service": "MP_SKY_URL",
    "iers_cache": "CENTRAL_IERS_CACHE",
    "sattle.uri_base": "SATTLE_URI_BASE",
    "imageNotifications.kafkaClusterAddress": "KAFKA_CLUSTER",
    "imageNotifications.topic": "BUCKET_TOPIC",
    "imageNotifications.consumerOffsetReset": "BUCKET_NOTIFICATION_KAFKA_OFFSET_RESET",
    "imageNotifications.imageTimeout": "IMAGE_TIMEOUT",
    "apdb.config": "CONFIG_APDB",
    "apdb.url": "APDB_URL",
    "apdb.namespace": "APDB_NAMESPACE",
    "alerts.username": "AP_KAFKA_PRODUCER_USERNAME",
    "alerts.server": "AP_KAFKA_SERVER",
    "alerts.topic": "AP_KAFKA_TOPIC",
    "logLevel": "SERVICE_LOG_LEVELS",
    "sasquatch.endpointUrl": "SASQUATCH_URL",
    "sasquatch.namespace": "DAF_BUTLER_SASQUATCH_NAMESPACE",
    "keda.redisStreams.host": "REDIS_STREAM_HOST",
    "keda.redisStreams.streamName": "REDIS_STREAM_NAME",
    "keda.redisStreams.consumerGroup": "REDIS_STREAM_CONSUMER_GROUP",
    "keda.redisStreams.retry": "REDIS_RETRY_DELAY",
    "keda.redisStreams.msgListenTimeout": "FANNED_OUT_MSG_LISTEN_TIMEOUT",
    "keda.redisStreams.expiration": "MESSAGE_EXPIRATION",
    "worker.restart": "WORKER_RESTART_FREQ",
    "worker.timeout": "WORKER_TIMEOUT",
    "worker.grace_period": "WORKER_GRACE_PERIOD",
    "containerConcurrency": "WORKER_COUNT",
    "butler_writer.enabled": "USE_KAFKA_BUTLER_WRITER",
    "butler_writer.kafka_cluster": "BUTLER_WRITER_KAFKA_CLUSTER",
    "butler_writer.kafka_username": "BUTLER_WRITER_KAFKA_USERNAME",
    "butler_writer.kafka_topic": "BUTLER_WRITER_KAFKA_TOPIC",
    "debug.exportOutputs": "DEBUG_EXPORT_OUTPUTS",
    "debug.cacheCalibs": "DEBUG_CACHE_CALIBS",
    "debug.monitorDaxApdb": "DAX_APDB_MONITOR_CONFIG",
}
"""Environment name by the key of the charts' values that sets it."""

# What a flag of the chart puts into the environment, if that is not 0 or 1.
_FLAGS = {"DAX_APDB_MONITOR_CONFIG": ("logging:lsst.dax.apdb.monitor", "")}

# Secrets that the charts take from the vault without a value that says so.
_ALWAYS_SECRET = ("LSST_DB_AUTH",)
_SECRETS_IF = {
    "s3.auth_env": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "s3.cred_file_auth": ("AWS_SHARED_CREDENTIALS_FILE",),
    "alerts.username": ("AP_KAFKA_PRODUCER_PASSWORD",),
    "registry.centralRepoFile": ("central_repo_file (a Butler configuration, at central_repo's path)",),
}

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)\Z", re.DOTALL)
_MAX_DEPTH = 30


@dataclasses.dataclass
class ForeignEnvironment:
    """What was found, whatever way it was written."""

    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    """Values by environment name."""
    secrets: list[str] = dataclasses.field(default_factory=list)
    """What comes from a vault or a secret."""
    strange: dict[str, str] = dataclasses.field(default_factory=dict)
    """Values of keys of a chart that set no variable."""

    def update(self, other: ForeignEnvironment) -> None:
        """Put another over it, as later files of values are put over earlier ones."""
        self.variables |= other.variables
        self.strange |= other.strange
        self.secrets += [name for name in other.secrets if name not in self.secrets]


def read_foreign(text: str, name: str) -> ForeignEnvironment:
    """Read values of a Helm chart, the output of ``env``, or Kubernetes' lists of variables.

    Parameters
    ----------
    text : `str`
        What the file has.
    name : `str`
        Its name, for messages.

    Returns
    -------
    found : `ForeignEnvironment`
        What it says.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if it is none of these.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and _ASSIGNMENT.match(lines[0]):
        return _read_dump(text)
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigurationError(
            f"{name}: neither YAML nor the output of env: {' '.join(str(e).split())}"
        ) from e
    found = ForeignEnvironment()
    known = False
    for document in documents:
        entries = document if _is_entries(document) else list(_entries(document, 0))
        if entries:
            found.update(_read_entries(entries))
            known = True
        elif isinstance(document, dict) and (values := _values_in(document)) is not None:
            found.update(_read_values(values))
            known = True
    if not known:
        raise ConfigurationError(
            f"{name}: it has neither values of a prompt_processing chart nor environment variables"
        )
    return found


def _read_dump(text: str) -> ForeignEnvironment:
    """Read what ``env`` prints: a value goes on until a line begins the next variable."""
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        match = _ASSIGNMENT.match(line)
        if match is not None:
            last = match[1]
            found[last] = match[2]
        elif last:
            found[last] += f"\n{line}"
    return ForeignEnvironment(found)


def _is_entries(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in value)
        and any("value" in e or "valueFrom" in e for e in value)
    )


def _entries(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Variables of all containers of a manifest, but not of those that only prepare it."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "env" and _is_entries(part):
                yield from part
            elif key != "initContainers":
                yield from _entries(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part, depth + 1)


def _read_entries(entries: list[dict[str, Any]]) -> ForeignEnvironment:
    found = ForeignEnvironment()
    for entry in entries:
        if "secretKeyRef" in (entry.get("valueFrom") or {}):
            found.secrets.append(entry["name"])
        elif entry.get("value") is not None:
            found.variables[entry["name"]] = str(entry["value"])
    return found


def _values_in(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the chart's own values: Phalanx has them below the chart's name."""
    if isinstance(document.get("instrument"), dict):
        return document
    for name, part in document.items():
        if isinstance(part, dict) and (
            str(name).startswith("prompt-") or isinstance(part.get("instrument"), dict)
        ):
            return part
    return None


def _read_values(values: Mapping[str, Any]) -> ForeignEnvironment:
    found = ForeignEnvironment(secrets=list(_ALWAYS_SECRET))
    flat = dict(_flatten(values, "", 0))
    for key, value in flat.items():
        # The older chart has but one kind of pipelines.
        variable = VALUES.get("instrument.pipelines.main" if key == "instrument.pipelines" else key)
        if variable is None:
            if value not in (None, "", [], {}) and key not in _SECRETS_IF:
                found.strange[key] = str(value)
        elif isinstance(value, bool):
            found.variables[variable] = _FLAGS.get(variable, ("1", "0"))[0 if value else 1]
        elif isinstance(value, list):
            found.variables[variable] = yaml.safe_dump(value)
        else:
            found.variables[variable] = "" if value is None else str(value)
    for key, names in _SECRETS_IF.items():
        if flat.get(key):
            found.secrets += names
    return found


def _flatten(value: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        key = f"{prefix}{name}"
        if isinstance(part, dict) and part and depth < _MAX_DEPTH:
            yield from _flatten(part, f"{key}.", depth + 1)
        else:
            yield key, part
