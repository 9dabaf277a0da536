"""What ppd is told of the site's DemoCam."""

from __future__ import annotations

from ppd.demo import democam
from ppd.instruments.description import InstrumentDescription


def describe() -> InstrumentDescription:
    """Describe DemoCam with the name of its class."""
    return democam.describe().model_copy(update={"instrument_class": "site_democam.SiteDemoCam"})


def describe_absent() -> InstrumentDescription:
    """Describe it with a class that is not installed."""
    return democam.describe().model_copy(update={"instrument_class": "nowhere.Cam"})
