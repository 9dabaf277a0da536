"""The demo observatory with its central repo on PostgreSQL, to be read through a replica."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lsst.daf.butler import Butler, Config
from observatory import Observatory
from postgres_support import PostgresServer, make_butler_repo, primary, replica, replica_config

_TEMPLATE = "observatory"
"""Name of the database that others are copied from."""


@dataclasses.dataclass(frozen=True)
class PostgresObservatory(Observatory):
    """The demo observatory with copies of its central repo on PostgreSQL."""

    primary: PostgresServer
    replica: PostgresServer

    def copy_central(self, to: Path) -> Path:
        """Copy the central repo; what reads it through the replica is beside it."""
        root = super().copy_central(to)
        (root / "gen3.sqlite3").unlink()
        database = to.parent.name
        self.primary.create_database(database, template=_TEMPLATE)
        config = Config(str(root / "butler.yaml"))
        config["registry", "db"] = self.primary.url(database)
        config.dumpToUri(str(root / "butler.yaml"))
        self.replica.wait_until_caught_up()
        replica_config(root, self.replica, to.parent / "replica")
        return root


@contextlib.contextmanager
def postgres_observatory(observatory: Observatory, folder: Path) -> Iterator[PostgresObservatory]:
    """Run a primary, which has the observatory's central repo, and its replica.

    Parameters
    ----------
    observatory : `Observatory`
        What was simulated.
    folder : `pathlib.Path`
        Empty folder, for the servers' logs and the repo that is copied from.
    """
    with primary(folder) as first, replica(first, folder) as second:
        copy_to_postgres(Path(observatory.plan.central), first, folder / "central")
        yield PostgresObservatory(observatory.root, observatory.plan, first, second)


def copy_to_postgres(source: Path, server: PostgresServer, root: Path) -> None:
    """Copy a repo, with everything that it has, into the database to copy from."""
    make_butler_repo(server, _TEMPLATE, root, Config(str(source / "butler.yaml")))
    with (
        Butler.from_config(str(source)) as old,
        Butler.from_config(str(root), writeable=True) as new,
    ):
        listing = str(root / "export.yaml")
        types = list(old.registry.queryDatasetTypes("*"))
        with old.export(filename=listing) as export:
            for element in old.dimensions.elements:
                if element.has_own_table:
                    export.saveDimensionData(
                        element, old.query_dimension_records(element.name, explain=False)
                    )
            for dataset_type in types:
                refs = old.query_datasets(
                    dataset_type, collections="*", find_first=False, explain=False, limit=None
                )
                export.saveDatasets(refs, elements=[])
            for collection in old.collections.query("*"):
                export.saveCollection(collection)
        new.import_(directory=str(source), filename=listing, transfer="hardlink")
        for dataset_type in types:
            new.registry.registerDatasetType(dataset_type)
