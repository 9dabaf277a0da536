"""Copying datasets from the central repo into the cache's store."""

from __future__ import annotations

__all__ = ["FetchFailure", "copy_in", "full_is_an_error"]

import contextlib
import dataclasses
import errno
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy.exc
from lsst.daf.butler import Butler, DatasetRef

from ..crash_points import here
from ..errors import SharedMemoryError
from .stores import SHARED_FOLDER, SHARED_RECORDS


@dataclasses.dataclass(frozen=True)
class FetchFailure:
    """Why a dataset could not be fetched."""

    reason: str
    retry: bool
    """Whether another try may help."""


def copy_in(
    cache: Butler, root: Path, central: Butler, refs: list[DatasetRef]
) -> tuple[dict[uuid.UUID, int], dict[uuid.UUID, FetchFailure]]:
    """Copy datasets into the cache: registry entries and files.

    The middleware copies the files of one call in a pool of threads, whose
    size ``LSST_RESOURCES_NUM_WORKERS`` bounds.

    Parameters
    ----------
    cache : `lsst.daf.butler.Butler`
        The cache repo.
    root : `pathlib.Path`
        Its root.
    central : `lsst.daf.butler.Butler`
        Where to read from.
    refs : `list` [ `lsst.daf.butler.DatasetRef` ]
        What to copy; the cache has none of it.

    Returns
    -------
    sizes : `dict` [ `uuid.UUID`, `int` ]
        Bytes of each dataset that was copied.
    failed : `dict` [ `uuid.UUID`, `FetchFailure` ]
        Those that were not, and of which nothing is left in the cache.

    Raises
    ------
    ppd.errors.SharedMemoryError
        Raised if the cache's file system is full; nothing was copied.
    sqlalchemy.exc.DBAPIError
        Raised if central's database failed; nothing was copied.
    """
    try:
        with full_is_an_error(root):
            _transfer(cache, central, refs)
    except OSError as e:
        if len(refs) == 1:
            gone = isinstance(e, FileNotFoundError)
            reason = f"its file is gone: {e}" if gone else f"its file can't be read: {e}"
            return {}, {refs[0].id: FetchFailure(reason, retry=not gone)}
        # Halves find a bad one among many good ones soonest.
        middle = len(refs) // 2
        sizes, failed = copy_in(cache, root, central, refs[:middle])
        more, worse = copy_in(cache, root, central, refs[middle:])
        return sizes | more, failed | worse
    here("supervisor.transfer-not-checked")
    return _check(cache, root, refs)


def _transfer(cache: Butler, central: Butler, refs: list[DatasetRef]) -> None:
    """Copy all of them, or none."""
    try:
        cache.transfer_from(
            _Undocumented(central),  # type: ignore[arg-type]
            refs,
            transfer="copy",
            skip_missing=False,
            register_dataset_types=True,
            transfer_dimensions=True,
        )
    except ExceptionGroup as group:
        # One error for each file that could not be copied.
        errors = group.exceptions
        raise next((e for e in errors if _is_full(e)), errors[0]) from group


class _Undocumented:
    """A Butler, or its registry, that does not look up what people wrote about a run.

    It would cost two statements for every run that datasets come from.
    """

    def __init__(self, wrapped: Any):
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # The middleware asks whether it is a full Butler, and it is as good as one.
        return type(self._wrapped)

    @property
    def registry(self) -> Any:
        return _Undocumented(self._wrapped.registry)

    def getCollectionDocumentation(self, collection: str) -> str | None:
        return None


def _check(
    cache: Butler, root: Path, refs: list[DatasetRef]
) -> tuple[dict[uuid.UUID, int], dict[uuid.UUID, FetchFailure]]:
    """Compare the files with central's records; drop what differs."""
    stored = _stored(root, {ref.id.hex: ref.id for ref in refs})
    failed = {}
    for ref in refs:
        fault = _fault(stored.get(ref.id, []))
        if fault is not None:
            failed[ref.id] = FetchFailure(fault, retry=False)
    bad = [ref for ref in refs if ref.id in failed]
    if bad:
        cache.pruneDatasets(bad, disassociate=True, unstore=True, purge=True)
    sizes = {i: sum(size for _, size, _ in files) for i, files in stored.items() if i not in failed}
    return sizes, failed


def _stored(root: Path, ids: dict[str, uuid.UUID]) -> dict[uuid.UUID, list[tuple[str, int, int]]]:
    """Path, size and recorded size of the files of datasets.

    From the store's table in one query: asking the Butler for the paths of
    some thousand datasets, one by one, takes seconds.
    """
    with contextlib.closing(sqlite3.connect(f"file:{root / 'gen3.sqlite3'}?mode=ro", uri=True)) as connection:
        rows = connection.execute(f"SELECT dataset_id, path, file_size FROM {SHARED_RECORDS}").fetchall()
    found: dict[uuid.UUID, list[tuple[str, int, int]]] = {}
    for dataset, path, recorded in rows:
        if dataset in ids:
            size = (root / SHARED_FOLDER / path).stat().st_size
            found.setdefault(ids[dataset], []).append((path, size, -1 if recorded is None else recorded))
    return found


def _fault(files: list[tuple[str, int, int]]) -> str | None:
    """Say what is wrong with the files of a dataset, if anything is."""
    if not files:
        return "its file is gone: it is in the registry and no datastore has it"
    for path, size, recorded in files:
        if recorded >= 0 and size != recorded:
            return f"its file {path} has {size} bytes, its record says {recorded}"
    return None


@contextlib.contextmanager
def full_is_an_error(place: Path) -> Iterator[None]:
    """Say it plainly when a file system is full.

    Parameters
    ----------
    place : `pathlib.Path`
        Where on it.

    Raises
    ------
    ppd.errors.SharedMemoryError
        Raised for any error that says that there is no room.
    """
    try:
        yield
    except Exception as e:
        if not _is_full(e):
            raise
        raise SharedMemoryError(f"The cache's file system is full: {place}.") from e


def _is_full(error: Exception) -> bool:
    """Whether an error says that there is no room."""
    if isinstance(error, sqlalchemy.exc.DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
