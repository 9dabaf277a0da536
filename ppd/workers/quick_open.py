"""Opening a child's repo by what the nursery has opened before the fork.

Opening a Butler takes 65 ms of processor time, nearly all of it for what is
the same in every child: merged configuration, dimension universe, table
definitions.  A template, opened once on a repo of the same kind, is cloned
after the fork and pointed at the child's own files.

The public interface does not carry the last step.  What is touched beyond it
is in `_point_at`, tried on the versions in `TRIED_ON`.  The nursery finds out
in a process of its own whether it works with what is installed; where it does
not, and whenever it fails in a child, the repo is opened the public way.
"""

from __future__ import annotations

__all__ = ["TRIED_ON", "Template"]

from pathlib import Path

from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

TRIED_ON = ("30.2026.4300",)
"""Versions of ``lsst-daf-butler`` on which the quick way was tried."""


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
        # Definitions of dataset types' tables are read when they are first met.
        for dataset_type in butler.registry.queryDatasetTypes():
            butler.get_dataset_type(dataset_type.name)
        # No connection may be open when the process forks.
        butler.registry.resetConnectionPool()

    def open(self, folder: Path) -> Butler:
        """Open the repo in a folder.

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
        (folder / "local").mkdir(exist_ok=True)
        butler = self._butler.clone()
        _point_at(butler, self._folder, folder)
        # What the template knew of its own repo is not true of this one.  If
        # this were still the template's, it would fail here: its files are gone.
        butler.registry.refresh()
        roots = {str(root) for root in butler.get_datastore_roots().values()}
        if any(Path(ResourcePath(root).ospath).is_relative_to(self._folder) for root in roots):
            raise RuntimeError("a store of the clone is still the template's")
        return butler


def _point_at(butler: Butler, old: Path, new: Path) -> None:
    """Make a clone of a Butler on one repo a Butler on another."""
    from lsst.daf.butler._location import LocationFactory

    database = butler._registry._db  # type: ignore[attr-defined]
    database._engine = type(database).makeEngine(f"sqlite:///{new / 'gen3.sqlite3'}", writeable=True)
    database.filename = str(new / "gen3.sqlite3")
    for store in butler._datastore.datastores:  # type: ignore[attr-defined]
        path = Path(store.root.ospath)
        if path.is_relative_to(old):
            store.root = ResourcePath(str(new / path.relative_to(old)), forceDirectory=True)
            store.locationFactory = LocationFactory(store.root)
