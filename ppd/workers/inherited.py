"""What the nursery reads before the fork, for all its children to inherit."""

from __future__ import annotations

__all__ = ["Inherited"]

import gc
import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base import InMemoryDatasetHandle

from ..messages import NurseryPrepared, PrepareNursery
from .local_repo import clone_repo, remove_repo
from .probe import QUICK, REHEARSAL, Probe
from .quick_open import Template

if TYPE_CHECKING:
    from .rehearsal import Rehearsal

_LOG = logging.getLogger(__name__)

# At the start, with what is fetched ahead, and with what the first visit needs.
_MAX_REHEARSALS = 4


class Inherited:
    """Objects and an opened Butler, held in the nursery, shared by copy-on-write.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where local repos are made.
    rehearsal : `ppd.workers.rehearsal.Rehearsal`, optional
        What to do once in the repo that is opened.

    Notes
    -----
    The work is done in small steps between forks, so that no child waits for
    it.  Some readers start threads (Arrow's does), and a process with threads
    can't be forked safely: so a child of the nursery, the probe, reads one
    dataset of each type first, and a type that fails there is not read here.
    """

    def __init__(self, folder: Path, rehearsal: Rehearsal | None = None):
        self._folder = folder / f"ppd-nursery-{os.getpid()}"
        self._objects: dict[uuid.UUID, InMemoryDatasetHandle] = {}
        self._sizes: dict[uuid.UUID, int] = {}
        self.template: Template | None = None
        self._rehearsal = rehearsal
        self._rehearsing: Iterator[str | None] | None = None
        self._rehearsals = 0
        self._missing: list[str] = []
        self._unsafe = False
        self._opened: Butler | None = None
        self._request: PrepareNursery | None = None
        self._next: PrepareNursery | None = None
        self._begun = 0.0
        self._butler: Butler | None = None
        self._waiting: list[DatasetRef] = []
        self._probe: Probe | None = None
        self._tried_quick = False
        self._template_due = False
        self._safe: dict[str, bool] = {}
        self._trouble: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether there is more to do."""
        return self._request is not None

    @property
    def pause(self) -> float:
        """Seconds until the next step makes sense."""
        return 1.0 if self._request is None else 0.02 if self._probe is not None else 0.0

    def begin(self, request: PrepareNursery) -> None:
        """Begin to read what is asked for, after what is at hand."""
        if self._request is not None:
            self._next = request
            return
        self._request, self._begun, self._trouble = request, time.monotonic(), []

    def step(self) -> NurseryPrepared | None:
        """Do a little of the work.

        Returns
        -------
        report : `ppd.messages.NurseryPrepared` or `None`
            What was done, when all is.
        """
        assert self._request is not None
        try:
            if self._butler is None:
                self._open(self._request)
            elif self._probe is not None:
                self._await_probe(self._probe)
            elif self._rehearsing is not None:
                self._rehearse(self._rehearsing)
            elif self._waiting and self._next is None:
                self._read(self._waiting.pop(0), self._request.max_bytes)
            else:
                return self._finish(self._request)
        except Exception as e:
            # Readers are other people's code, and nothing here is needed.
            _LOG.exception("Inputs can't be read ahead.")
            self._trouble.append(f"{type(e).__name__}: {e}")
            return self._finish(self._request)
        return None

    def handle(self, ref: DatasetRef) -> InMemoryDatasetHandle | None:
        """Return a handle on a dataset if it was read; what it gives is a copy."""
        return self._objects.get(ref.id)

    def close(self) -> None:
        """End what is at work, and leave no file, not even a killed probe's."""
        self._next = None
        self._clean_up()
        for path in self._folder.parent.glob(f"{self._folder.name}*"):
            remove_repo(path)

    def _open(self, request: PrepareNursery) -> None:
        self._butler = clone_repo(self._folder, request.view)
        wanted = {uuid.UUID(i) for i in request.datasets}
        for i in self._objects.keys() - wanted:
            del self._objects[i], self._sizes[i]
        for i in wanted - self._objects.keys():
            ref = self._butler.get_dataset(i)
            if ref is not None:
                self._waiting.append(ref)
        self._butler.registry.resetConnectionPool()
        if self._missing and self._rehearsals < _MAX_REHEARSALS:
            # The cache may have by now what was missing, such as a dataset type.
            self._tried_quick = False
        self._start_probe(request, self._butler)

    def _await_probe(self, probe: Probe) -> None:
        result = probe.poll()
        if result is None:
            return
        assert self._request is not None and self._butler is not None
        self._probe = None
        if QUICK in result and self._template_due:
            self._template_due = False
            self._open_template(self._request, result[QUICK], result.get(REHEARSAL))
        for name, fault in result.items():
            if name not in (QUICK, REHEARSAL):
                self._safe[name] = fault is None
                if fault is not None:
                    self._trouble.append(f"{name}: {fault}")
        self._waiting = [r for r in self._waiting if self._safe.get(r.datasetType.name, True)]
        self._start_probe(self._request, self._butler)

    def _start_probe(self, request: PrepareNursery, butler: Butler) -> None:
        unknown = {r.datasetType.name: r for r in self._waiting if r.datasetType.name not in self._safe}
        if unknown or not self._tried_quick:
            # A rehearsal that starts threads or crashes is not tried again.
            rehearsal = None if self._tried_quick or self._unsafe else self._rehearsal
            self._template_due |= not self._tried_quick
            self._probe = Probe(butler, self._folder, request, list(unknown.values()), rehearsal)
            self._tried_quick = True

    @property
    def _template_folder(self) -> Path:
        return self._folder.with_name(self._folder.name + "-template")

    def _open_template(self, request: PrepareNursery, fault: str | None, unsafe: str | None) -> None:
        if fault is not None:
            self._trouble.append(f"children open their repos the slow way: {fault}")
            return
        self._opened = clone_repo(self._template_folder, request.view)
        self._missing = []
        self._rehearsals += 1
        if unsafe is not None:
            self._unsafe = True
            self._trouble.append(f"children begin slowly: {unsafe}")
        if self._rehearsal is None or self._unsafe:
            self._rehearsing = iter(())
        else:
            self._rehearsing = self._rehearsal.run(self._opened, self._template_folder)

    def _rehearse(self, pieces: Iterator[str | None]) -> None:
        """Rehearse another piece; after the last one, children may use what was opened."""
        assert self._opened is not None
        for missing in pieces:
            if missing is not None:
                self._missing.append(missing)
                _LOG.info("Not rehearsed: %s", missing)
            return
        self._rehearsing = None
        self.template = Template(self._opened, self._template_folder)
        self._opened = None
        remove_repo(self._template_folder)

    def _read(self, ref: DatasetRef, max_bytes: int) -> None:
        assert self._butler is not None
        if sum(self._sizes.values()) >= max_bytes:
            self._trouble.append(f"{len(self._waiting) + 1} datasets are too many for {max_bytes} bytes")
            self._waiting = []
            return
        before = _unique_bytes()
        inputs = self._butler.get(ref)
        self._butler.registry.resetConnectionPool()
        self._objects[ref.id] = InMemoryDatasetHandle(
            inputs, storageClass=ref.datasetType.storageClass, dataId=ref.dataId, copy=True
        )
        self._sizes[ref.id] = max(0, _unique_bytes() - before)

    def _finish(self, request: PrepareNursery) -> NurseryPrepared:
        self._clean_up()
        # What was made now is older than every child to come: their garbage
        # collector need not look at it, which would copy its pages.
        gc.collect()
        gc.freeze()
        report = NurseryPrepared(
            holder=request.holder,
            held=len(self._objects),
            bytes=sum(self._sizes.values()),
            seconds=time.monotonic() - self._begun,
            quick=self.template is not None,
            trouble="; ".join(self._trouble)[:2000],
        )
        if self._next is not None:
            following, self._next = self._next, None
            self.begin(following)
        return report

    def _clean_up(self) -> None:
        self._request, self._waiting, self._rehearsing = None, [], None
        if self._opened is not None:
            self._opened.close()
            self._opened = None
            remove_repo(self._template_folder)
        if self._probe is not None:
            self._probe.kill()
            self._probe = None
        if self._butler is not None:
            self._butler.close()
            self._butler = None
        remove_repo(self._folder)


def _unique_bytes() -> int:
    """Memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
