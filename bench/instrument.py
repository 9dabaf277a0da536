"""LSSTCam without its compiled stack: the benchmark reads no raw."""

from __future__ import annotations

__all__ = ["describe"]

from ppd.instruments import lsstcam
from ppd.instruments.description import InstrumentDescription


def describe() -> InstrumentDescription:
    """Describe LSSTCam with a formatter that is installed everywhere."""
    formatter = "lsst.daf.butler.formatters.pickle.PickleFormatter"
    return lsstcam.describe().model_copy(update={"raw_formatter": formatter})
