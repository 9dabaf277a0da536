"""The configuration of a ppd that has a simulated night's folder to itself."""

from __future__ import annotations

__all__ = ["write_config"]

import socket
from pathlib import Path

import yaml

from ..config import Settings, load_settings
from .camera import INSTRUMENT
from .night import NightPlan
from .skymap import SKYMAP

_PIPELINES = Path(__file__).parent / "pipelines"


def write_config(folder: Path, plan: NightPlan, sockets: Path | None = None) -> Settings:
    """Write ``ppd.yaml``, and make the folder that raws come into.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where the night is; journal, spool, raws and alerts go there too. An
        absolute path.
    plan : `ppd.demo.night.NightPlan`
        The night.
    sockets : `pathlib.Path`, optional
        Folder of sockets, if it is not below ``state``.

    Returns
    -------
    settings : `ppd.config.Settings`
        What ppd will read.
    """
    # What tasks write into is there before them: what is new beside the configuration they can't open.
    for name in ("alerts", "cache", "raws"):
        (folder / name).mkdir(exist_ok=True)
    config = {
        "instrument": INSTRUMENT,
        "skymap": SKYMAP,
        "central_repo": plan.central,
        "preprocessing_pipelines": [{"survey": "DEMO", "pipelines": [str(_PIPELINES / "Preprocess.yaml")]}],
        "main_pipelines": [
            {
                "survey": "DEMO",
                "pipelines": [str(_PIPELINES / f"{n}.yaml") for n in ("ApPipe", "SingleFrame", "Isr")],
            }
        ],
        "apdb_config": plan.apdb_config,
        "pipeline_parameters": {"alert_dir": str(folder / "alerts")},
        "state_dir": str(folder / "state"),
        "shm_fallback": str(folder / "cache"),
        "raw_dirs": [str(folder / "raws")],
        "cache_bytes": "1 GiB",
        "shm_min_free": "64 MiB",
        "log_format": "text",
        "http_listen": _free_address(),
    }
    if sockets is not None:
        config["socket_dir"] = str(sockets)
    path = folder / "ppd.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "raws").mkdir(exist_ok=True)
    # The demo's own file counts, not what the environment names.
    return load_settings(path, {})


def _free_address() -> str:
    """The page's usual address, or another if somebody has it."""
    usual: str = Settings.model_fields["http_listen"].default
    host, port = usual.rsplit(":", 1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return f"{host}:0"
    return usual
