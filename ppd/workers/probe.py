"""A child of the nursery that tries what the nursery is about to do."""

from __future__ import annotations

__all__ = ["QUICK", "REHEARSAL", "Probe"]

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsst.daf.butler import Butler, DatasetRef

from ..messages import PrepareNursery
from .local_repo import clone_repo, remove_repo
from .parting import fork_apart
from .quick_open import Template

if TYPE_CHECKING:
    from .rehearsal import Rehearsal

_SECONDS = 60.0

QUICK = ""
"""What the quick way of opening a repo has, in results, in the place of a dataset type."""
REHEARSAL = "#rehearsal"
"""What the rehearsal has."""


class Probe:
    """The probe and what it has found so far.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        On a clone of the cache repo, with no connection open.
    folder : `pathlib.Path`
        Root of that clone.
    request : `ppd.messages.PrepareNursery`
        Gives the view to clone once more.
    refs : `list` [ `lsst.daf.butler.DatasetRef` ]
        Datasets to read, one of each type.
    rehearsal : `ppd.workers.rehearsal.Rehearsal`, optional
        What to rehearse.

    Notes
    -----
    A reader that starts threads ends the probe's usefulness, and one that
    crashes ends the probe: types that it did not come to are for another.
    """

    def __init__(
        self,
        butler: Butler,
        folder: Path,
        request: PrepareNursery,
        refs: list[DatasetRef],
        rehearsal: Rehearsal | None = None,
    ):
        self._other = folder.with_name(folder.name + "-probe")
        self._names = [QUICK, *([REHEARSAL] if rehearsal else []), *(ref.datasetType.name for ref in refs)]
        self._deadline = time.monotonic() + _SECONDS
        self._data = b""
        self._read, write = os.pipe()
        self._pid = fork_apart()
        if not self._pid:
            try:
                os.close(self._read)
                for name, fault in _try_all(butler, folder, self._other, request, refs, rehearsal):
                    os.write(write, json.dumps([name, fault]).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(write)

    def poll(self) -> dict[str, str | None] | None:
        """Return the result, once the probe has ended.

        Returns
        -------
        result : `dict` [ `str`, `str` or `None` ] or `None`
            A fault, or `None`, by dataset type, by `QUICK` for the quick way of
            opening a repo and by `REHEARSAL`.  `None`: it is at work.
        """
        if time.monotonic() > self._deadline:
            self.kill()
            return self._result("it takes too long")
        while select.select([self._read], [], [], 0)[0]:
            data = os.read(self._read, 1 << 16)
            if not data:
                os.close(self._read)
                os.waitpid(self._pid, 0)
                return self._result("its reader ends the process")
            self._data += data
        return None

    def kill(self) -> None:
        """End the probe."""
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._read)
        remove_repo(self._other)

    def _result(self, fault: str) -> dict[str, str | None]:
        result: dict[str, str | None] = dict(json.loads(line) for line in self._data.splitlines())
        rest = [name for name in self._names if name not in result]
        if rest and not any(f and _THREADS in f for f in result.values()):
            result[rest[0]] = fault
        return result


_THREADS = "starts threads"


def _try_all(
    butler: Butler,
    folder: Path,
    other: Path,
    request: PrepareNursery,
    refs: list[DatasetRef],
    rehearsal: Rehearsal | None,
) -> Iterator[tuple[str, str | None]]:
    yield QUICK, _try_quick(butler, folder, other, request)
    if rehearsal is not None:
        fault = _try_rehearsal(rehearsal, other, request)
        threads = _threads()
        yield REHEARSAL, f"the rehearsal {_THREADS} ({threads})" if threads and not fault else fault
        if threads:
            return
    for ref in refs:
        fault = None
        try:
            butler.get(ref)
        except Exception as e:
            fault = f"{type(e).__name__}: {e}"
        threads = _threads()
        if threads:
            # Of what comes after it, nothing can be told any more.
            yield ref.datasetType.name, f"its reader {_THREADS} ({threads})"
            return
        yield ref.datasetType.name, fault


def _threads() -> int:
    """How many threads there are beside the first."""
    return sum(1 for _ in Path("/proc/self/task").iterdir()) - 1


def _try_rehearsal(rehearsal: Rehearsal, other: Path, request: PrepareNursery) -> str | None:
    """Rehearse in a repo of its own; say what is wrong with it."""
    try:
        with clone_repo(other, request.view) as butler:
            for _ in rehearsal.run(butler, other):
                pass
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    finally:
        remove_repo(other)
    return None


def _try_quick(butler: Butler, folder: Path, other: Path, request: PrepareNursery) -> str | None:
    """Open a repo the quick way and the public way; say what differs."""
    try:
        template = Template(butler, folder)
        public = clone_repo(other, request.view)
        quick = template.open(other)
        for look in (_roots, _types, _collections):
            if look(quick) != look(public):
                return f"{look.__name__} differ"
        run = "ppd/probe"
        quick.collections.register(run)
        if not public.collections.query(run):
            return "what is written does not arrive"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    finally:
        remove_repo(other)
    return None


def _roots(butler: Butler) -> Any:
    return {name: str(root) for name, root in butler.get_datastore_roots().items()}


def _types(butler: Butler) -> Any:
    return sorted(str(t) for t in butler.registry.queryDatasetTypes())


def _collections(butler: Butler) -> Any:
    return sorted(map(str, butler.collections.query_info("*")))
