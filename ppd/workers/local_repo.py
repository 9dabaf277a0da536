"""A child's own repo: a clone of the cache repo that it may write to."""

from __future__ import annotations

__all__ = ["clone_repo", "remove_repo"]

import logging
import shutil
from pathlib import Path

from lsst.daf.butler import Butler

from ..messages import CacheView
from .quick_open import Template

_LOG = logging.getLogger(__name__)


def clone_repo(folder: Path, view: CacheView, template: Template | None = None) -> Butler:
    """Make a child's repo and open it.

    Parameters
    ----------
    folder : `pathlib.Path`
        Folder to make; it must not exist.
    view : `ppd.messages.CacheView`
        The registry snapshot and the configuration that goes with it.
    template : `ppd.workers.quick_open.Template`, optional
        What the nursery has opened before the fork; opens the repo the quick
        way.

    Returns
    -------
    butler : `lsst.daf.butler.Butler`
        A writeable Butler.  Datasets of the cache are read where they are;
        what is put goes below ``folder``.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(view.snapshot, folder / "gen3.sqlite3")
    shutil.copyfile(view.config, folder / "butler.yaml")
    if template is not None:
        try:
            return template.open(folder)
        except Exception:
            # Whatever it is: the public way may still work.
            _LOG.exception("The repo can't be opened the quick way; it is opened the slow way.")
    return Butler.from_config(str(folder), writeable=True)


def remove_repo(folder: Path) -> None:
    """Remove a child's repo, whatever state it is in."""
    shutil.rmtree(folder, ignore_errors=True)
