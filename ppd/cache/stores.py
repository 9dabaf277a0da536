"""Configurations of the cache's two stores, as the cache and its clones use them."""

from __future__ import annotations

__all__ = ["SHARED_FOLDER", "SHARED_RECORDS", "site_formatters", "store_config", "write_child_config"]

from collections.abc import Mapping
from pathlib import Path

from lsst.daf.butler import ButlerConfig, Config

_CHAINED = "lsst.daf.butler.datastores.chainedDatastore.ChainedDatastore"
_FILE = "lsst.daf.butler.datastores.fileDatastore.FileDatastore"
# `Butler.makeRepo` gives the stores of a chain these folders, whatever root
# the configuration asks for.
SHARED_FOLDER = "FileDatastore_1"
SHARED_RECORDS = "shared_datastore_records"
"""Table of the cache's registry that says which file holds which dataset."""


def store_config(formatters: Mapping[str, object] | None) -> Config:
    """Configure the cache's two chained stores.

    Parameters
    ----------
    formatters : `~collections.abc.Mapping` or `None`
        Formatters that are not the middleware's own choice.

    Returns
    -------
    config : `lsst.daf.butler.Config`
        For `lsst.daf.butler.Butler.makeRepo`.
    """
    extra = {"formatters": dict(formatters)} if formatters else {}
    stores = [
        {
            "datastore": {
                "cls": _FILE,
                "name": name,
                "root": f"<butlerRoot>/{name}",
                # Records of two stores in one registry must not share a table.
                "records": {"table": f"{name}_datastore_records"},
                "create": True,
                "constraints": constraint,
                **extra,
            }
        }
        for name, constraint in (("local", {"reject": ["all"]}), ("shared", {"accept": ["all"]}))
    ]
    config = Config()
    config["datastore"] = {"cls": _CHAINED, "datastores": stores}
    return config


def write_child_config(cache: Path, path: Path) -> None:
    """Write the ``butler.yaml`` of all clones: the cache's, the roles of its stores swapped.

    Parameters
    ----------
    cache : `pathlib.Path`
        Root of the cache repo.
    path : `pathlib.Path`
        Where to write it.
    """
    config = Config(str(cache / "butler.yaml"))
    stores = config["datastore", "datastores"]
    roots = ("<butlerRoot>/local", str(cache / SHARED_FOLDER))
    constraints: tuple[dict, dict] = ({"accept": ["all"]}, {"reject": ["all"]})
    for store, root, constraint in zip(stores, roots, constraints, strict=True):
        store["root"] = root
        store["constraints"] = constraint
    config["datastore", "datastores"] = stores
    with path.open("w") as stream:
        config.dump(stream)
    path.chmod(0o600)


def site_formatters(uri: str) -> dict[str, object]:
    """Read what a repo's own configuration says about formatters.

    Parameters
    ----------
    uri : `str`
        The repo, or its configuration file.

    Returns
    -------
    formatters : `dict`
        Empty if the repo uses the middleware's choice.  Of chained stores,
        the first that says something counts.
    """
    path = ButlerConfig(uri).configFile
    if path is None:
        return {}
    store = Config(path).get("datastore", Config())
    for part in (store, *store.get("datastores", ())):
        own = Config(part).get("formatters") or Config(part).get(("datastore", "formatters"))
        if own:
            return Config(own).toDict()
    return {}
