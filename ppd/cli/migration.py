"""``ppdctl config from-prompt-processing``: our configuration from that of ``prompt_processing``."""

from __future__ import annotations

__all__ = ["Migration", "migrate", "run_migration"]

import argparse
import contextlib
import dataclasses
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pydantic
import yaml

from .._setting_types import split_levels
from .._settings_sources import ENVIRONMENT
from ..config import Settings
from ..errors import ConfigurationError
from ..logs import mask_secrets
from .foreign_environment import ForeignEnvironment, read_foreign
from .options import print_json

# Names that only prompt_processing has, for what ppd has a setting for.
_ALSO = {"CALIB_REPO": "central_repo", "LSST_RESOURCES_NUM_WORKERS": "transfer_workers"}
_YAML_TEXTS = ("preprocessing_pipelines", "main_pipelines", "export_types")
_WORDS = (
    "instrument",
    "skymap",
    "central_repo",
    "read_central_repo",
    "apdb_config",
    "raw_bucket",
    "redis_url",
    "redis_stream",
    "redis_group",
)
_REQUIRED = {"instrument": "X", "central_repo": "X", "main_pipelines": [{"pipelines": []}]}

# The middleware or the tasks read these themselves; the children inherit them.
_STAYS = (
    "AP_KAFKA_PRODUCER_USERNAME",
    "AP_KAFKA_SERVER",
    "AP_KAFKA_TOPIC",
    "AWS_PROFILE",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "DAX_APDB_MONITOR_CONFIG",
    "LSST_DISABLE_BUCKET_VALIDATION",
    "LSST_RESOURCES_S3_PROFILE",
    "MP_SKY_URL",
    "PROMPT_PROCESSING_DIR",
    "SATTLE_URI_BASE",
)
_SECRETS = (
    "AP_KAFKA_PRODUCER_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "BUTLER_WRITER_KAFKA_PASSWORD",
    "LSST_DB_AUTH",
    "LSST_DB_AUTH_CREDENTIALS",
    "PGPASSFILE",
    "PGPASSWORD",
    "REDIS_PASSWORD",
    "REDIS_USERNAME",
    "SASQUATCH_TOKEN",
)

_NOT_CONSUMED = "ppd does not read this yet: see docs/thin.md for how raws come"
_WRITER = "ppd's own exporter writes to the central repo"
_METRICS = "ppd sends no metrics of pipelines"
_BY_BYTES = "the cache is bounded by bytes, for all detectors of the node: see cache_bytes"
_CLUSTER = "of the cluster, not of the service; one ppd serves all detectors of a node: see slots, running"
_APDB = "ppd wants the APDB's configuration file (apdb-cli create-sql), as apdb_config"
_REASONS = {
    "APDB_NAMESPACE": _APDB,
    "APDB_URL": _APDB,
    "BUCKET_NOTIFICATION_KAFKA_OFFSET_RESET": _NOT_CONSUMED,
    "BUCKET_TOPIC": _NOT_CONSUMED,
    "BUTLER_WRITER_KAFKA_CLUSTER": _WRITER,
    "BUTLER_WRITER_KAFKA_TOPIC": _WRITER,
    "BUTLER_WRITER_KAFKA_USERNAME": _WRITER,
    "CENTRAL_IERS_CACHE": "astropy finds its tables as it is configured to; ppd fetches none",
    "DAF_BUTLER_SASQUATCH_NAMESPACE": _METRICS,
    "DEBUG_CACHE_CALIBS": "calibs are always held; what has changed in central is seen at each visit",
    "DEBUG_EXPORT_OUTPUTS": "set export_types: [] to export nothing",
    "FILTERS_WITH_CALIBS": _BY_BYTES,
    "KAFKA_CLUSTER": _NOT_CONSUMED,
    "LOCAL_REPO_CACHE_SIZE": _BY_BYTES,
    "LOCAL_REPO_CONFIG": "a child's repo is a clone of the cache's",
    "PATCHES_PER_IMAGE": _BY_BYTES,
    "REFCATS_PER_IMAGE": _BY_BYTES,
    "SASQUATCH_URL": _METRICS,
    "USE_KAFKA_BUTLER_WRITER": _WRITER,
    "WORKER_COUNT": _CLUSTER,
    "WORKER_GRACE_PERIOD": "see stop_grace and kill_grace, and what systemd or Kubernetes allows",
    "WORKER_RESTART_FREQ": "a child lives for one detector-visit",
}
# Values that say "as ppd does anyway".
_MOOT = {("DEBUG_EXPORT_OUTPUTS", "1"), ("DEBUG_CACHE_CALIBS", "1"), ("USE_KAFKA_BUTLER_WRITER", "0")}
_OF_VALUES = {"resources": "see child_memory and slots", "sasquatch": _METRICS, "butler_writer": _WRITER}
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclasses.dataclass(frozen=True)
class Migration:
    """What became of a foreign configuration."""

    text: str
    """The file, with a sentence on each setting."""
    settings: dict[str, Any]
    stays: dict[str, str]
    """Variables that go on to be read from the environment."""
    secrets: tuple[str, ...]
    """What has to be given as a file or a credential; no value of it is kept here."""
    left: dict[str, str]
    """Why something is not carried over, by what it is."""
    needed: tuple[str, ...]
    """Settings without which the file can't be used."""
    variables: tuple[str, ...]
    """Variables that paths in the file have."""


def migrate(foreign: ForeignEnvironment) -> Migration:
    """Make our configuration of a foreign one.

    Parameters
    ----------
    foreign : `ppd.cli.foreign_environment.ForeignEnvironment`
        What was read.

    Returns
    -------
    migration : `Migration`
        The file's text, and what is not in it.
    """
    left: dict[str, str] = {}
    texts: dict[str, str] = {}
    values: dict[str, Any] = {}
    names = {**_ALSO, **ENVIRONMENT}  # of two for one setting, the one that we have too
    for variable, name in names.items():
        text = foreign.variables.get(variable, "")
        if not text.strip():
            continue
        try:
            values[name] = _value(name, text)
            texts[name] = text
        except yaml.YAMLError as e:
            left[f"{variable} ({name})"] = f"not YAML: {' '.join(str(e).split())}"
    for name, reason in _refused(values).items():
        left[f"{name}: {_short(texts[name])}"] = reason
        del values[name], texts[name]
    for variable, text in foreign.variables.items():
        if variable in _REASONS and text.strip() and (variable, text) not in _MOOT:
            left[f"{variable} ({_short(text)})"] = _REASONS[variable]
    for key in dict.fromkeys(_section(key) for key in foreign.strange):
        left[key] = _OF_VALUES.get(key, _CLUSTER)
    stays = {v: t for v, t in foreign.variables.items() if v in _STAYS and t.strip()}
    if str(values.get("central_repo", "")).startswith("s3:") and "s3_endpoint" in texts:
        stays["S3_ENDPOINT_URL"] = texts["s3_endpoint"]  # the middleware reads it for the repo
    secrets = [*foreign.secrets, *(v for v in _SECRETS if foreign.variables.get(v, "").strip())]
    return Migration(
        text=_write(values, texts),
        settings=values,
        stays=stays,
        secrets=tuple(dict.fromkeys(secrets)),
        left=left,
        needed=tuple(name for name in _REQUIRED if name not in values),
        variables=tuple(
            dict.fromkeys(a or b for text in map(str, values.values()) for a, b in _VARIABLE.findall(text))
        ),
    )


def _value(name: str, text: str) -> Any:
    if name in _YAML_TEXTS:
        return yaml.safe_load(text)
    if name == "log_levels":
        with contextlib.suppress(ValueError):
            return split_levels(text)
    if name in _WORDS:
        return text.strip()
    number = yaml.safe_load(text) if re.fullmatch(r"\s*[\d.]+\s*", text) else None
    return number if isinstance(number, int | float) else text.strip()


def _refused(values: dict[str, Any]) -> dict[str, str]:
    """Say which values our settings don't take, and why; relations between settings too."""
    try:
        Settings.model_validate({**_REQUIRED, **values})
    except pydantic.ValidationError as e:
        return {
            str(error["loc"][0]): error["msg"].removeprefix("Value error, ")
            for error in e.errors(include_url=False)
            if error["loc"] and error["loc"][0] in values
        }
    return {}


def _section(key: str) -> str:
    """The part of the charts' values that a key belongs to."""
    first, _, rest = key.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first in ("s3", "registry") and rest else first


def _short(text: str) -> str:
    line = " ".join(mask_secrets(text).split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _write(values: dict[str, Any], texts: dict[str, str]) -> str:
    parts = ["# Made from a configuration of prompt_processing by ppdctl config from-prompt-processing.\n"]
    for name, field in Settings.model_fields.items():
        if name in _REQUIRED and name not in values:
            parts.append(f"{_comment(field.description)}# {name}:   # it is needed, and was not found\n")
        elif name in values:
            parts.append(_comment(field.description) + _entry(name, values[name], texts[name]))
    return "\n".join(parts)


def _comment(description: str | None) -> str:
    return (
        textwrap.fill(
            (description or "").replace("`", "").replace("\n", " "),
            78,
            initial_indent="# ",
            subsequent_indent="# ",
        )
        + "\n"
    )


def _entry(name: str, value: Any, text: str) -> str:
    if name in _YAML_TEXTS:
        # As it was, with its comments, if it means the same in its new place.
        block = f"{name}:\n{textwrap.indent(text.strip(chr(10)), '  ')}\n"
        try:
            if yaml.safe_load(block) == {name: value}:
                return block
        except yaml.YAMLError:
            pass
    return yaml.safe_dump({name: value}, sort_keys=False, width=100, allow_unicode=True)


# The command


def run_migration(arguments: argparse.Namespace) -> int:
    """Run ``ppdctl config from-prompt-processing``."""
    foreign = ForeignEnvironment()
    for name in arguments.files:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigurationError(f"{name} can't be read: {e}") from e
        foreign.update(read_foreign(text, name))
    made = migrate(foreign)
    if arguments.output is not None:
        try:
            with arguments.output.open("x") as stream:
                stream.write(made.text)
        except OSError as e:
            raise ConfigurationError(f"{arguments.output} can't be written: {e.strerror}") from e
    if arguments.json:
        error = f"needed, and not found: {', '.join(made.needed)}" if made.needed else None
        code = "ok" if error is None else "incomplete"
        print_json(dataclasses.asdict(made), ok=error is None, code=code, error=error)
    else:
        if arguments.output is None:
            print(made.text, end="")
        print("\n".join(_tell(made)), file=sys.stderr)
    return 1 if made.needed else 0


def _tell(made: Migration) -> list[str]:
    lines = [f"{len(made.settings)} settings are carried over."]
    if made.needed:
        lines.append(f"Needed, and not found: {', '.join(made.needed)}.")
    if made.variables:
        lines.append(f"Paths have variables, which ppd's environment must have: {', '.join(made.variables)}.")
    if made.stays:
        lines.append("For ppd's environment; the middleware and the tasks read it themselves:")
        lines += [f"  {name}={value}" for name, value in made.stays.items()]
    if made.secrets:
        lines.append("Secrets, for files or credentials (docs/deployment.md):")
        lines += [f"  {name}" for name in made.secrets]
    if made.left:
        lines.append("Not carried over:")
        lines += [f"  {what}: {reason}" for what, reason in made.left.items()]
    return lines
