"""The inputs of one visit as a value: what each detector gets, what it lacks, and why."""

from __future__ import annotations

__all__ = ["VisitInputs", "describe_inputs"]

import dataclasses
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from lsst.daf.butler import DatasetRef, Timespan

from ..cache.transfer import FetchFailure
from .resolve import Reason, Resolution


@dataclasses.dataclass(frozen=True)
class VisitInputs:
    """What was found for some detectors of a visit."""

    collections: tuple[str, ...]
    """Where it was searched, in order."""
    resolution: Resolution
    failed: Mapping[uuid.UUID, FetchFailure]
    """Datasets that central's registry has and that could not be had."""
    optional: frozenset[str]
    """Dataset types that the pipelines can do without."""

    def lacking(self, detector: int) -> dict[str, tuple[str, bool]]:
        """Say what a detector lacks.

        Parameters
        ----------
        detector : `int`
            Detector ID.

        Returns
        -------
        lacking : `dict` [ `str`, `tuple` [ `str`, `bool` ] ]
            Reason by dataset type, and whether another try may help.  Of a
            type of which it has some, nothing is lacking.
        """
        own = self.resolution.detectors[detector]
        lacking = {name: (reason, False) for name, reason in own.missing.items()}
        lost = [i for i in own.ids if i in self.failed]
        if lost:
            refs = self.resolution.refs
            kept = {refs[i].datasetType.name for i in own.ids if i not in self.failed}
            for i in lost:
                if refs[i].datasetType.name not in kept:
                    fault = self.failed[i]
                    lacking[refs[i].datasetType.name] = (f"{refs[i].dataId}: {fault.reason}", fault.retry)
        return lacking


def describe_inputs(parts: Iterable[VisitInputs], detector: int | None = None) -> dict[str, Any]:
    """Describe the inputs of a visit as a JSON object.

    Parameters
    ----------
    parts : `~collections.abc.Iterable` [ `VisitInputs` ]
        What was found; of detectors in more than one part the last counts.
    detector : `int`, optional
        Only this detector's.

    Returns
    -------
    described : `dict`
        ``collections``, and by detector its ``inputs`` (dataset type, data
        ID, run, UUID, and why it was chosen) and what is ``missing``.
    """
    detectors: dict[str, Any] = {}
    collections: tuple[str, ...] = ()
    for part in parts:
        collections = part.collections
        lines: dict[uuid.UUID, dict[str, Any]] = {}
        for number, own in part.resolution.detectors.items():
            if detector not in (None, number):
                continue
            for i in own.ids:
                if i not in lines:
                    lines[i] = _line(part.resolution.refs[i], part.resolution.reasons[i], part.failed.get(i))
            missing = {
                name: {"reason": reason, "optional": name in part.optional}
                for name, (reason, _) in sorted(part.lacking(number).items())
            }
            inputs = sorted((lines[i] for i in own.ids), key=lambda x: (x["type"], str(x["data_id"])))
            detectors[str(number)] = {"inputs": inputs, "missing": missing}
    return {"collections": list(collections), "detectors": detectors}


def _line(ref: DatasetRef, reason: Reason, failure: FetchFailure | None) -> dict[str, Any]:
    line = {
        "type": ref.datasetType.name,
        "data_id": dict(ref.dataId.required),
        "run": ref.run,
        "id": str(ref.id),
        "why": _why(reason),
    }
    if failure is not None:
        line["failure"] = failure.reason
    return line


def _why(reason: Reason) -> str:
    if reason.kind == "certified":
        assert reason.timespan is not None
        return f"certified in {reason.collection} for {_span(reason.timespan)}, the first that has one"
    if reason.kind == "overlaps":
        return "overlaps the padded detector, from the first collection that has it"
    return "the first collection that has it"


def _span(timespan: Timespan) -> str:
    begin, end = (t.isot if hasattr(t, "isot") else None for t in (timespan.begin, timespan.end))
    if begin is None and end is None:
        return "all times"
    return f"{begin or 'ever'} to {end or 'ever'} TAI"
