"""Settings: what one ppd service is told, from a YAML file and the environment."""

from __future__ import annotations

__all__ = ["PipelineNode", "Settings", "SkyRange", "find_config", "load_settings", "parse_size"]

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from ._config_file import find_config
from ._setting_types import (
    Bytes,
    Count,
    Frozen,
    Grace,
    Level,
    Listen,
    Name,
    PipelineNode,
    RedisUrl,
    Regex,
    Seconds,
    SkyRange,
    Url,
    parse_size,
    split_levels,
)

_UNIX_PATH_BYTES = 107
# The longest name that ppd gives to a socket in its socket directory.
_SOCKET_NAME_BYTES = 20


def _stream_of(data: Mapping[str, Any]) -> str:
    # An instrument that is no name is a mistake of its own.
    return f"instrument:{data.get('instrument', '').lower()}"


class Settings(Frozen):
    """All that one ppd service can be told, with a sentence on each."""

    config_path: Path | None = None
    """The file that the settings were read from; set by `load_settings`, not in the file."""

    instrument: Name
    """Short name of the instrument, as in the Butler ``instrument`` dimension (RUBIN_INSTRUMENT)."""

    instrument_description: str | None = None
    """``package.module:function`` that describes an instrument no installed package announces."""

    skymap: str | None = None
    """Name of the sky map that templates are on (SKYMAP)."""

    central_repo: Name
    """URI or alias of the central repo that outputs are written to (CENTRAL_REPO)."""

    read_central_repo: str | None = None
    """URI or alias of a read replica for input queries; the write repo when absent (READ_CENTRAL_REPO)."""

    preprocessing_pipelines: tuple[PipelineNode, ...] = ()
    """Which pipelines run before the raw arrives (PREPROCESSING_PIPELINES_CONFIG)."""

    main_pipelines: tuple[PipelineNode, ...]
    """Which pipelines run on the raw (MAIN_PIPELINES_CONFIG)."""

    pipeline_parameters: dict[str, str] = pydantic.Field(default_factory=dict)
    """Values for parameters of pipelines, given to each pipeline that declares the parameter."""

    apdb_config: str | None = None
    """URI of the APDB's configuration, also given to pipelines as ``apdb_config`` (CONFIG_APDB)."""

    apdb_patience: Grace = 10.0
    """Seconds for which an APDB that does not answer is asked again before it counts as changed."""

    state_dir: Path = Path("/var/lib/ppd")
    """Folder for what must outlive a restart: journal, spool, sockets, logs of children."""

    socket_dir: Path = pydantic.Field(
        default_factory=lambda data: data["state_dir"] / "sockets", validate_default=True
    )
    """Folder of the ZeroMQ sockets; ``sockets`` in `state_dir` when absent."""

    control_group: str | None = None
    """Group whose members may ask ppd for everything, beside its own user and root."""

    read_group: str | None = None
    """Group whose members may look (``ppdctl status``, ``visits``, ``history`` …) and change nothing."""

    control_listen: Listen = None
    """``HOST:PORT`` for ``ppdctl --connect`` from other machines, with CURVE keys alone; absent: none."""

    control_keys: Path | None = None
    """Folder that ``ppdctl keys`` has made: ppd's own key, and who may come. For `control_listen`."""

    landlock: Literal["auto", "require", "off"] = "auto"
    """Whether the kernel keeps tasks from files that aren't theirs; ``require``: don't begin without."""

    hidden_from_tasks: tuple[Path, ...] = ()
    """What they can't open, beside configuration, credentials, journal and a central repo in a folder."""

    shm_dir: Path = Path("/dev/shm")
    """Shared memory that holds the cache repo."""

    shm_fallback: Path | None = None
    """Folder for the cache when shared memory is absent, full or too small."""

    cache_bytes: Bytes = 4 * 2**30
    """The cache's size limit, bytes."""

    inherit_bytes: Bytes = 64 * 2**20
    """Memory for small inputs that are read once, before the fork, for all children; 0: none is."""

    transfer_workers: Count = 8
    """How many files are fetched from the central repo at once."""

    warm_ahead: bool = True
    """Whether calibs and other lasting inputs of all detectors are fetched when there is time."""

    nursery_max_age: Seconds = 43200.0
    """Seconds after which a fresh nursery takes the place of the old one, without a gap."""

    shm_min_free: Bytes = 256 * 2**20
    """Bytes that must be free where the cache goes."""

    local_repos: Path = pydantic.Field(default_factory=lambda data: data["state_dir"] / "local")
    """Folder of the children's local repos (LOCAL_REPOS); ``local`` in `state_dir` when absent."""

    spool_dir: Path = pydantic.Field(default_factory=lambda data: data["state_dir"] / "spool")
    """Folder of outputs that wait for export; ``spool`` in `state_dir` when absent."""

    spool_max_bytes: Bytes = 20 * 2**30
    """The spool's size limit, bytes."""

    spool_min_free: Bytes = 256 * 2**20
    """Bytes that must be free on the spool's file system for a visit to be accepted."""

    spool_wait: Seconds = 3600.0
    """Seconds that a child waits for room in the spool before its outputs are lost."""

    redis_url: RedisUrl | None = None
    """Redis server of a stream of visits: ``redis://host:port/db``, ``rediss://`` for TLS, ``unix:///path``,
    or just a host; none when absent (REDIS_STREAM_HOST). Its password is in REDIS_PASSWORD."""

    redis_stream: Name = pydantic.Field(default_factory=_stream_of, validate_default=True)
    """Name of the stream; ``instrument:`` and the instrument in small letters when absent
    (REDIS_STREAM_NAME)."""

    redis_group: Name = "ppd"
    """Consumer group of the stream, made if it is not there (REDIS_STREAM_CONSUMER_GROUP)."""

    redis_ca_file: Path | None = None
    """Certificates of the authorities that the Redis server's is checked by; the system's when absent."""

    redis_retry_delay: Seconds = 30.0
    """Longest pause before a Redis server that is away is tried again (REDIS_RETRY_DELAY)."""

    redis_listen_timeout: Seconds = 300.0
    """Seconds without an entry after which the connection is made anew (FANNED_OUT_MSG_LISTEN_TIMEOUT)."""

    redis_claim_idle: Annotated[float, pydantic.Field(ge=1, allow_inf_nan=False)] = 60.0
    """Seconds after which an entry that another consumer was given and has not confirmed is taken over."""

    redis_deliveries: Annotated[int, pydantic.Field(ge=2, lt=2**31)] = 5
    """How often an entry is delivered that ppd has died of, or failed at; then it is set aside."""

    raw_dirs: tuple[Path, ...] = ()
    """Folders that are watched for raws."""

    raw_settle: Seconds = 1.0
    """Seconds for which a raw written in place must not change before it counts as complete."""

    raw_observer: Literal["auto", "inotify", "polling"] = "auto"
    """How raws are noticed; ``auto``: by inotify, and by polling on network file systems."""

    raw_bucket: Annotated[str, pydantic.Field(pattern=r"^[^/\s]+$")] | None = None
    """S3 bucket that raws come into (IMAGE_BUCKET); credentials are found as boto3 does."""

    raw_prefix: str = ""
    """What keys of raws begin with, before the instrument."""

    s3_endpoint: Url | None = None
    """URL of the S3 service of raws (S3_ENDPOINT_URL); AWS when absent."""

    raw_microservice: Url | None = None
    """Presence service that is asked for raws before the bucket is listed (RAW_MICROSERVICE)."""

    raw_poll_min: Seconds = 0.5
    """Seconds between two looks for a raw in the bucket when it is expected."""

    raw_poll_max: Seconds = 5.0
    """Seconds between two looks when it is early or late, or when the bucket is in trouble."""

    raw_keep_seconds: Seconds = 3600.0
    """Seconds for which a raw that came before its visit is remembered."""

    raw_keep_count: Count = 10_000
    """How many such raws are remembered."""

    ingest: Literal["auto", "site", "own"] = "auto"
    """Whose code ingests raws and defines visits; ``auto``: the site's `lsst.obs.base` where it is."""

    image_timeout: Seconds = 20.0
    """Seconds to wait for a raw beyond twice the visit's duration (IMAGE_TIMEOUT)."""

    worker_timeout: Seconds = 900.0
    """Seconds that a child may take in all (WORKER_TIMEOUT)."""

    inputs_timeout: Seconds = 900.0
    """Seconds that may pass until a visit's inputs are found and fetched."""

    preprocess_timeout: Seconds = 120.0
    """Seconds that pre-processing may take; then the main pipeline goes on without it."""

    main_timeout: Seconds | None = None
    """Seconds that a main pipeline may take; only `worker_timeout` counts when absent."""

    message_expiration: Seconds = 3600.0
    """Age in seconds from which a nextVisit message is refused (MESSAGE_EXPIRATION)."""

    preload_padding: Grace = 30.0
    """Padding of detector polygons for input queries, arcsec (PRELOAD_PADDING)."""

    repo_retry_delay: Grace = 30.0
    """Mean seconds before the central repo is tried again (REPO_RETRY_DELAY)."""

    export_types: tuple[Regex, ...] = (".*",)
    """Regular expressions of the dataset types to export, matched whole (EXPORT_TYPE_REGEXP)."""

    alert_deadline: Seconds = 60.0
    """Seconds from a raw's arrival to its alerts; who can't make it any more makes way for others."""

    slots: Count = 32
    """How many children may live at once."""

    running: Count | None = None
    """How many children may execute pipelines at once; one per core when absent."""

    retries: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 1
    """How often a detector-visit is tried again after a retriable failure."""

    child_memory: Annotated[Bytes, pydantic.Field(ge=2**24)] | None = None
    """Bytes that a child's tasks may use beyond what it inherits; no limit when absent."""

    kill_grace: Grace = 5.0
    """Seconds that a child has to end after SIGTERM, before SIGKILL."""

    heartbeat_interval: Seconds = 2.0
    """Seconds between a child's heartbeats."""

    heartbeat_timeout: Seconds = 30.0
    """Seconds of silence after which a child counts as hung."""

    export_batch: Count = 200
    """How many detector-visits go into one export at most; fewer where that takes long."""

    export_bytes: Bytes = 2 * 2**30
    """How many bytes go into one export, but for a single detector-visit that has more."""

    export_age: Grace = 1.0
    """Seconds that an output may wait for others to be exported with it."""

    export_timeout: Seconds = 300.0
    """Seconds that one export may take before the exporter is killed and the export done anew."""

    rotation_tolerance: Grace = 1.0
    """Degrees that an exposure's rotation may differ from the announced one."""

    stop_grace: Grace = 10.0
    """Seconds that children at work have to finish when ppd is told to stop."""

    drain_grace: Grace = 30.0
    """Seconds that the spool has to drain after that; what is left is exported by the next start."""

    initialize_automatically: bool = False
    """Whether the supervisor starts ppd-init itself when a new day or deployment begins."""

    rollover_lead: Seconds = 1800.0
    """Seconds before a day begins at which it should be prepared, or ppd says so; 12 hours at most."""

    child_log_days: Count = 7
    """For how many days of work the children's logs are kept."""

    history_nights: Count = 30
    """For how many nights the journal keeps what is over, for ``ppdctl history`` and ``show``."""

    trace_endpoint: Url | None = None
    """URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces; there are none when absent."""

    http_listen: Listen = "127.0.0.1:8642"
    """Where the status page is served, host:port; port 0: any that is free; empty: not at all."""

    http_token_file: Path | None = None
    """File with the token that lets the page pause, resume and cancel; without it the page only shows."""

    http_visits: bool = False
    """Whether visits may be announced at that address: POST /next-visit, by whoever can reach it."""

    log_level: Level = "INFO"
    """Level of ppd's and the middleware's log."""

    log_format: Literal["auto", "text", "json", "journal"] = "auto"
    """Text for people, JSON for programs, systemd's journal; ``auto``: as standard error is, else JSON."""

    log_burst: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 200
    """How many log records that are alike are written in ten seconds, others being counted; 0: all."""

    log_levels: Annotated[dict[str, Level], pydantic.BeforeValidator(split_levels)] = pydantic.Field(
        default_factory=dict
    )
    """Levels of single loggers, ``.`` being the root (SERVICE_LOG_LEVELS, ``logger=LEVEL`` pairs)."""

    @pydantic.field_validator("main_pipelines")
    @classmethod
    def _at_least_one(cls, value: tuple[PipelineNode, ...]) -> tuple[PipelineNode, ...]:
        if not value:
            raise ValueError("must have at least one node")
        return value

    @pydantic.field_validator("socket_dir")
    @classmethod
    def _short_enough(cls, value: Path) -> Path:
        length = len(os.fsencode(value.absolute())) + 1 + _SOCKET_NAME_BYTES
        if length > _UNIX_PATH_BYTES:
            raise ValueError(
                f"{value} is too long: with a socket's name it takes {length} bytes of the "
                f"{_UNIX_PATH_BYTES} that a socket's path may have; set socket_dir to a shorter path"
            )
        return value

    @pydantic.field_validator("heartbeat_timeout")
    @classmethod
    def _longer_than_interval(cls, value: float, info: pydantic.ValidationInfo) -> float:
        if value <= info.data.get("heartbeat_interval", 0):
            raise ValueError("must be longer than heartbeat_interval")
        return value

    @pydantic.field_validator("raw_prefix")
    @classmethod
    def _as_folder(cls, value: str) -> str:
        return f"{value.strip('/')}/" if value.strip("/") else ""

    @pydantic.field_validator("raw_poll_max")
    @classmethod
    def _not_shorter(cls, value: float, info: pydantic.ValidationInfo) -> float:
        if value < info.data.get("raw_poll_min", 0):
            raise ValueError("must not be shorter than raw_poll_min")
        return value

    @pydantic.field_validator("raw_microservice")
    @classmethod
    def _with_bucket(cls, value: str | None, info: pydantic.ValidationInfo) -> str | None:
        if value is not None and info.data.get("raw_bucket", "") is None:
            raise ValueError("needs raw_bucket: the service only tells keys in it")
        return value

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters for pipelines, ``apdb_config`` among them."""
        if self.apdb_config is None:
            return dict(self.pipeline_parameters)
        return {"apdb_config": self.apdb_config, **self.pipeline_parameters}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the settings that `to_dict` was called on."""
        return cls.model_validate(data)


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the settings from a file and the environment.

    Parameters
    ----------
    path : `pathlib.Path` or `None`
        YAML file with `Settings` fields; `None`: environment only.
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        The environment, whose prompt_processing names win over the file.

    Returns
    -------
    settings : `Settings`
        The settings; relative paths of the file made relative to its folder.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if anything is wrong; the message names every mistake with its
        place, one a line.
    """
    from ._settings_sources import read_settings

    return read_settings(path, environ)[0]
