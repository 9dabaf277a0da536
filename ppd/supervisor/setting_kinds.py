"""What a reload means for each setting, and the settings in force."""

from __future__ import annotations

__all__ = ["KINDS", "Kind", "SettingChange", "SettingsInForce", "compare", "in_force"]

import dataclasses
import enum
from typing import Any, cast

from ..config import Settings
from ..logs import mask_secrets

_MAX_TEXT = 200


class Kind(enum.StrEnum):
    """When a changed setting counts."""

    AT_ONCE = "at once"
    """The supervisor reads it each time that it needs it."""
    NURSERY = "for new visits"
    """A nursery and its children have read it: visits accepted before keep theirs."""
    RESTART = "needs a restart"
    """Something was built on it that ends with the supervisor."""


_AT_ONCE = (
    "alert_deadline child_log_days control_keys control_listen drain_grace export_age export_batch"
    " export_bytes export_timeout history_nights http_listen http_token_file http_visits image_timeout"
    " initialize_automatically inputs_timeout kill_grace main_timeout message_expiration"
    " nursery_max_age preprocess_timeout raw_keep_count raw_keep_seconds repo_retry_delay retries"
    " rollover_lead running slots spool_max_bytes spool_min_free stop_grace warm_ahead"
)
_NURSERY = (
    "apdb_config apdb_patience child_memory export_types hidden_from_tasks ingest inherit_bytes"
    " landlock log_burst log_format log_level log_levels main_pipelines pipeline_parameters"
    " preload_padding preprocessing_pipelines rotation_tolerance spool_wait worker_timeout"
)
_RESTART = (
    "cache_bytes central_repo config_path control_group heartbeat_interval heartbeat_timeout"
    " instrument instrument_description local_repos raw_bucket raw_dirs raw_microservice raw_observer"
    " raw_poll_max raw_poll_min raw_prefix raw_settle read_central_repo read_group redis_ca_file"
    " redis_claim_idle redis_deliveries redis_group redis_listen_timeout redis_retry_delay"
    " redis_stream redis_url s3_endpoint shm_dir shm_fallback shm_min_free skymap socket_dir spool_dir"
    " state_dir trace_endpoint transfer_workers"
)

KINDS: dict[str, Kind] = {
    **dict.fromkeys(_AT_ONCE.split(), Kind.AT_ONCE),
    **dict.fromkeys(_NURSERY.split(), Kind.NURSERY),
    **dict.fromkeys(_RESTART.split(), Kind.RESTART),
}
"""Of each setting."""


@dataclasses.dataclass(frozen=True)
class SettingChange:
    """One setting that is another than before."""

    name: str
    old: Any
    new: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}: {_text(self.old)} -> {_text(self.new)} ({self.kind})"


def compare(old: Settings, new: Settings) -> list[SettingChange]:
    """List what is different.

    Parameters
    ----------
    old, new : `ppd.config.Settings`
        The settings in force, and those that should be.
    """
    before, after = old.to_dict(), new.to_dict()
    # What nobody has classed is taken for the worst.
    return [
        SettingChange(name, before[name], after[name], KINDS.get(name, Kind.RESTART))
        for name in after
        if before[name] != after[name]
    ]


class SettingsInForce:
    """The settings as they are now: read like `ppd.config.Settings`, exchanged whole.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        Those of the start.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)

    def replace(self, settings: Settings) -> None:
        """Put others in force."""
        self._settings = settings

    @property
    def now(self) -> Settings:
        """Those in force, which do not change any more."""
        return self._settings


def in_force(holder: SettingsInForce) -> Settings:
    """Return the holder as what it can be read as."""
    return cast(Settings, holder)


def _text(value: Any) -> str:
    text = mask_secrets(str(value))
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
