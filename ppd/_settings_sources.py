"""Where settings come from: a YAML file and the environment, with places for mistakes."""

from __future__ import annotations

__all__ = ["ENVIRONMENT", "read_settings"]

import contextlib
import dataclasses
import difflib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from .config import PipelineNode, Settings
from .errors import ConfigurationError

_LOG = logging.getLogger(__name__)

ENVIRONMENT = {
    "RUBIN_INSTRUMENT": "instrument",
    "SKYMAP": "skymap",
    "CENTRAL_REPO": "central_repo",
    "READ_CENTRAL_REPO": "read_central_repo",
    "PREPROCESSING_PIPELINES_CONFIG": "preprocessing_pipelines",
    "MAIN_PIPELINES_CONFIG": "main_pipelines",
    "CONFIG_APDB": "apdb_config",
    "IMAGE_BUCKET": "raw_bucket",
    "S3_ENDPOINT_URL": "s3_endpoint",
    "RAW_MICROSERVICE": "raw_microservice",
    "LOCAL_REPOS": "local_repos",
    "IMAGE_TIMEOUT": "image_timeout",
    "WORKER_TIMEOUT": "worker_timeout",
    "MESSAGE_EXPIRATION": "message_expiration",
    "PRELOAD_PADDING": "preload_padding",
    "REPO_RETRY_DELAY": "repo_retry_delay",
    "EXPORT_TYPE_REGEXP": "export_types",
    "SERVICE_LOG_LEVELS": "log_levels",
    "REDIS_STREAM_HOST": "redis_url",
    "REDIS_STREAM_NAME": "redis_stream",
    "REDIS_STREAM_CONSUMER_GROUP": "redis_group",
    "REDIS_RETRY_DELAY": "redis_retry_delay",
    "FANNED_OUT_MSG_LISTEN_TIMEOUT": "redis_listen_timeout",
}
"""Setting by environment name; the names are prompt_processing's."""

_IN_YAML = ("PREPROCESSING_PIPELINES_CONFIG", "MAIN_PIPELINES_CONFIG", "EXPORT_TYPE_REGEXP")

# Of prompt_processing too, for what ppd does not do yet.
_NOT_YET = (
    "KAFKA_CLUSTER",
    "BUCKET_TOPIC",
    "USE_KAFKA_BUTLER_WRITER",
    "SASQUATCH_URL",
)

_PATHS = (
    "state_dir",
    "socket_dir",
    "shm_dir",
    "shm_fallback",
    "local_repos",
    "spool_dir",
    "http_token_file",
    "control_keys",
    "redis_ca_file",
)
_URIS = ("central_repo", "read_central_repo", "apdb_config")
_NODES = ("preprocessing_pipelines", "main_pipelines")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")

_Loc = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class _Source:
    """One YAML text or plain value, and how to call a place in it."""

    label: str
    is_file: bool
    base: Path
    """Folder that relative paths are relative to."""
    root: yaml.Node | None = None

    def place(self, loc: _Loc, key: bool = False) -> str:
        if self.root is None:
            return self.label
        mark = _find(self.root, loc, key).start_mark
        if self.is_file:
            return f"{self.label}:{mark.line + 1}:{mark.column + 1}"
        return f"{self.label}, line {mark.line + 1}, column {mark.column + 1}"


class _Unreadable(Exception):
    """Raised when a text is not YAML; the message has the place."""


def _find(node: yaml.Node, loc: _Loc, key: bool) -> yaml.Node:
    """Find the deepest node on the way to a location, or its key."""
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(node, yaml.MappingNode):
            wanted = (str(part), str(part).replace("_", "-"), str(part).replace("-", "_"))
            # Of a key given twice, YAML takes the last.
            pair = next(((k, v) for k, v in reversed(node.value) if k.value in wanted), None)
            if pair is None:
                return node
            node = pair[0] if key and last else pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return node
    return node


def _parse(text: str, place: Callable[[yaml.Mark], str]) -> tuple[yaml.Node | None, Any, list[str]]:
    """Parse YAML; duplicate keys are named, since YAML itself drops one."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as e:
        # It looks at all characters at once, and knows no lines.
        before = text[: e.position]
        line = before.count("\n")
        mark = yaml.Mark("", e.position, line, len(before) - before.rfind("\n") - 1, None, None)
        raise _Unreadable(f"{place(mark)}: not YAML: character U+{e.character:04X} is not allowed") from e
    try:
        root = loader.get_single_node()
        value = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as e:
        # Its constructors raise what they run into: KeyError for "!!bool x".
        mark = getattr(e, "problem_mark", None)
        problem = getattr(e, "problem", None) or str(e) or type(e).__name__
        raise _Unreadable(f"{place(mark or yaml.Mark('', 0, 0, 0, None, None))}: not YAML: {problem}") from e
    finally:
        loader.dispose()
    return root, value, list(_duplicates(root, place))


def _duplicates(root: yaml.Node | None, place: Callable[[yaml.Mark], str]) -> list[str]:
    found: list[str] = []
    todo, seen = [root], set[int]()
    while todo:
        node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for k, v in node.value:
                if isinstance(k, yaml.ScalarNode):
                    if k.value in keys:
                        found.append(f"{place(k.start_mark)}: {k.value} is given twice")
                    keys.add(k.value)
                todo.append(v)
    return found


def _read_file(path: Path) -> tuple[_Source, dict[str, Any], list[str]]:
    base = path.absolute().parent

    def place(mark: yaml.Mark) -> str:
        return f"{path}:{mark.line + 1}:{mark.column + 1}"

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise _Unreadable(f"{path}: can't be read: {getattr(e, 'strerror', None) or e}") from e
    root, value, mistakes = _parse(text, place)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise _Unreadable(f"{path}:1:1: must be a mapping of settings, not a {type(value).__name__}")
    if any(not isinstance(name, str) for name in value):
        mistakes += [
            f"{path}: {name!r} is not the name of a setting" for name in value if type(name) is not str
        ]
        value = {name: v for name, v in value.items() if isinstance(name, str)}
    return _Source(str(path), True, base, root), value, mistakes


def _read_variable(name: str, text: str) -> tuple[_Source, Any, list[str]]:
    label = f"environment {name}"
    if name not in _IN_YAML:
        return _Source(label, False, Path.cwd()), text, []

    def place(mark: yaml.Mark) -> str:
        return f"{label}, line {mark.line + 1}, column {mark.column + 1}"

    root, value, mistakes = _parse(text, place)
    return _Source(label, False, Path.cwd(), root), value, mistakes


class _Expander:
    """Expands variables and relative paths, noting what is undefined."""

    def __init__(self, environ: Mapping[str, str]):
        self._environ = environ
        self.mistakes: list[str] = []

    def field(self, name: str, value: Any, source: _Source) -> Any:
        at = (name,) if source.is_file else ()
        if name in _PATHS:
            return self._path(value, source, at)
        if name in _URIS:
            return self._uri(value, source, at)
        if name in ("raw_dirs", "hidden_from_tasks") and isinstance(value, list):
            return [self._path(v, source, (*at, i)) for i, v in enumerate(value)]
        if name == "pipeline_parameters" and isinstance(value, dict):
            return {k: self._variables(v, source, (*at, k)) for k, v in value.items()}
        if name in _NODES and isinstance(value, list):
            return [self._node(node, source, (*at, i)) for i, node in enumerate(value)]
        return value

    def _node(self, node: Any, source: _Source, at: _Loc) -> Any:
        if not isinstance(node, dict):
            return node
        node = dict(node)
        for name in ("binary-map", "binary_map"):
            if name in node:
                node[name] = self._path(node[name], source, (*at, name))
        if isinstance(node.get("pipelines"), list):
            paths = enumerate(node["pipelines"])
            node["pipelines"] = [self._path(v, source, (*at, "pipelines", i)) for i, v in paths]
        return node

    def _variables(self, value: Any, source: _Source, at: _Loc) -> Any:
        if not isinstance(value, str):
            return value

        def replace(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self._environ:
                self.mistakes.append(f"{source.place(at)}: environment variable {name} is not set")
                return match[0]
            return self._environ[name]

        return _VARIABLE.sub(replace, value)

    def _path(self, value: Any, source: _Source, at: _Loc) -> Any:
        value = self._variables(value, source, at)
        if not isinstance(value, str) or not value or _SCHEME.match(value):
            return value
        return self._absolute(value, source, at)

    def _uri(self, value: Any, source: _Source, at: _Loc) -> Any:
        value = self._variables(value, source, at)
        if not isinstance(value, str) or _SCHEME.match(value):
            return value
        # A bare word may be an alias in a repository index.
        is_path = bool(set("/\0") & set(value)) or value.startswith((".", "~"))
        with contextlib.suppress(OSError):  # a name that is too long, for example
            is_path = is_path or (source.base / value).exists()
        return self._absolute(value, source, at) if is_path else value

    def _absolute(self, value: str, source: _Source, at: _Loc) -> str:
        if "\0" in value:
            self.mistakes.append(f"{source.place(at)}: {value!r} is no path: it has a NUL character")
            return value
        try:
            return str(source.base / Path(value).expanduser())
        except RuntimeError:
            self.mistakes.append(f"{source.place(at)}: there is no user {value.partition('/')[0]}")
            return value


def read_settings(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Read the settings; see `ppd.config.load_settings`.

    Parameters
    ----------
    path : `pathlib.Path` or `None`
        The file.
    environ : `~collections.abc.Mapping` [ `str`, `str` ]
        The environment.

    Returns
    -------
    settings : `ppd.config.Settings`
        The settings.
    places : `dict` [ `str`, `str` ]
        Where each comes from that is given.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if anything is wrong.
    """
    mistakes: list[str] = []
    sources: dict[str, _Source] = {}
    raw: dict[str, Any] = {}
    complete = True
    file_source = _Source("environment", False, Path.cwd())
    if path is not None:
        try:
            file_source, raw, found = _read_file(path)
            mistakes += found
            sources = dict.fromkeys(raw, file_source)
        except _Unreadable as e:
            mistakes.append(str(e))
            complete = False
    for variable, name in ENVIRONMENT.items():
        # Orchestrators set variables to nothing when they mean "not set".
        if not environ.get(variable, "").strip():
            continue
        try:
            sources[name], raw[name], found = _read_variable(variable, environ[variable])
            mistakes += found
        except _Unreadable as e:
            mistakes.append(str(e))
            raw.pop(name, None)
            complete = False
    if "config_path" in raw:
        mistakes.append(f"{file_source.place(('config_path',), key=True)}: config_path is not a setting")
        del raw["config_path"]
    expander = _Expander(environ)
    fields = {name: expander.field(name, value, sources[name]) for name, value in raw.items()}
    mistakes += expander.mistakes
    settings = None
    try:
        settings = Settings.model_validate({**fields, "config_path": path and path.absolute()})
    except pydantic.ValidationError as e:
        for error in e.errors(include_url=False):
            text = _describe(error, sources, file_source, complete)
            if text is not None:
                mistakes.append(text)
    if mistakes or settings is None:
        # One a line, whatever the names in it are made of.
        lines = [" ".join(mistake.splitlines()) for mistake in mistakes]
        raise ConfigurationError("\n".join(["The configuration can't be used:", *lines]))
    unused = [name for name in _NOT_YET if environ.get(name)]
    if unused:
        _LOG.warning("Set in the environment, but ppd does not use them yet: %s.", ", ".join(unused))
    return settings, {n: s.place((n,) if s.is_file else (), key=True) for n, s in sources.items()}


def _describe(error: Any, sources: Mapping[str, _Source], file_source: _Source, complete: bool) -> str | None:
    """Say what is wrong and where; `None` when it follows from another mistake."""
    loc: _Loc = tuple(part for part in error["loc"] if part != "[key]")
    kind = error["type"]
    if kind == "default_factory_not_called":
        return None
    name = ".".join(str(part) for part in loc)
    if kind == "missing" and len(loc) == 1:
        if not complete:
            return None
        variable = next((v for v, f in ENVIRONMENT.items() if f == loc[0]), None)
        return f"{file_source.label}: {name} is missing" + (f" (or set {variable})" if variable else "")
    # A default may be refused too; then the mistake has no place of its own.
    source = sources.get(str(loc[0]), dataclasses.replace(file_source, root=None))
    within = loc if source.is_file else loc[1:]
    place = source.place(within, key=kind == "extra_forbidden")
    if kind == "missing":
        return f"{place}: {name} is missing"
    if kind == "extra_forbidden":
        model = Settings if len(loc) == 1 else PipelineNode
        known = [f.alias or n for n, f in model.model_fields.items()]
        near = difflib.get_close_matches(str(loc[-1]), known, 1)
        return f"{place}: {name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
    return f"{place}: {name}: {error['msg'].removeprefix('Value error, ')}"
