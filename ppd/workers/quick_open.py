"""Opening a child's repo by what the nursery has opened before the fork.

Opening a Butler takes 65 ms of processor time, nearly all of it for what is
the same in every child: merged configuration, dimension universe, table
definitions.  A template, opened once on a repo of the same kind, is cloned
after the fork and pointed at the child's own files.

The public interface does not carry the last step.  What is touched beyond it
is in `_point_at` and `_records_of`, tried on ``lsst-daf-butler`` 30.2026.4300
with SQLAlchemy 2.1.9.  The nursery finds out in a process of its own whether it
works with what is installed; where it does not, and whenever it fails in a
child, the repo is opened the public way.
"""

from __future__ import annotations

__all__ = ["Template"]

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler
from lsst.resources import ResourcePath


class Template:
    """A Butler whose repo's files are gone, to be cloned for other repos.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        Writeable, on a clone of the cache repo.  It is the template's from
        now on; its files may be removed.
    folder : `pathlib.Path`
        Root of that repo.
    """

    def __init__(self, butler: Butler, folder: Path):
        self._butler = butler
        self._folder = folder
        self._used_in: int | None = None
        # Definitions of dataset types' tables are read when they are first met.
        for dataset_type in butler.registry.queryDatasetTypes():
            butler.get_dataset_type(dataset_type.name)
        self._counts = _count_records(butler, folder)
        cache = _records_of(butler)
        cache.preload_cache()
        self._records = cache._records
        # Or each clone would get a copy of its own.
        cache.reset()
        # No connection may be open when the process forks.
        butler.registry.resetConnectionPool()

    def open(self, folder: Path) -> Butler:
        """Open the repo in a folder; once in each process.

        Parameters
        ----------
        folder : `pathlib.Path`
            Repo of the same kind as the template's, with other content.

        Returns
        -------
        butler : `lsst.daf.butler.Butler`
            A writeable Butler.

        Raises
        ------
        Exception
            Raised, as whatever it may be, if the installed middleware can't
            be used so.
        """
        if self._used_in == os.getpid():
            # The first would become the second.
            raise RuntimeError("a template opens one repo in each process")
        self._used_in = os.getpid()
        (folder / "local").mkdir(exist_ok=True)
        butler = self._butler.clone()
        _point_at(butler, self._folder, folder)
        # What the template knew of its own repo is not true of this one.  If
        # this were still the template's, it would fail here: its files are gone.
        butler.registry.refresh()
        if self._counts == _count_records(butler, folder):
            # Instrument, detectors, filters: reading their records again takes longer
            # than all the rest.  Nothing changes them in place.
            _records_of(butler)._records = self._records
        roots = {str(root) for root in butler.get_datastore_roots().values()}
        if any(Path(ResourcePath(root).ospath).is_relative_to(self._folder) for root in roots):
            raise RuntimeError("a store of the clone is still the template's")
        return butler


def _records_of(butler: Butler) -> Any:
    """The cache of those dimension records that every Butler reads at its first use."""
    return butler._registry.dimension_record_cache  # type: ignore[attr-defined]


def _count_records(butler: Butler, folder: Path) -> dict[str, int]:
    """Number of records of each dimension element that Butlers keep in memory."""
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'gen3.sqlite3'}?mode=ro", uri=True)) as registry:
        return {
            element.name: registry.execute(f'SELECT count(*) FROM "{element.name}"').fetchone()[0]
            for element in butler.dimensions.elements
            if element.is_cached and element.has_own_table
        }


def _point_at(butler: Butler, old: Path, new: Path) -> None:
    """Make a clone of a Butler on one repo a Butler on another."""
    from lsst.daf.butler._location import LocationFactory

    database = butler._registry._db  # type: ignore[attr-defined]
    filename = str(new / "gen3.sqlite3")
    # The engine stays, with the statements that it has compiled; its pool is new.
    database._engine.pool._creator = lambda: _connect(filename)
    database._engine.dispose()
    database.filename = filename
    for store in butler._datastore.datastores:  # type: ignore[attr-defined]
        path = Path(store.root.ospath)
        if path.is_relative_to(old):
            store.root = ResourcePath(str(new / path.relative_to(old)), forceDirectory=True)
            store.locationFactory = LocationFactory(store.root)


def _connect(filename: str) -> sqlite3.Connection:
    """Connect to a child's registry."""
    connection = sqlite3.connect(f"file:{filename}?mode=rwc", check_same_thread=False, uri=True)
    # It has to outlive its process, which a killed one's successor looks into, but no
    # power failure: a child need not wait for the disk at each of some fifty commits.
    connection.execute("PRAGMA synchronous=OFF")
    return connection
