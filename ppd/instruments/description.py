"""What ppd needs to know of an instrument, and where it looks for it."""

from __future__ import annotations

__all__ = ["InstrumentDescription", "find_description"]

import functools
from importlib.metadata import entry_points

import pydantic
from lsst.utils import doImport

from ..errors import ConfigurationError
from ..focalplane import FocalPlane

_GROUP = "ppd.instruments"


class InstrumentDescription(pydantic.BaseModel):
    """An instrument as far as ppd has to know it."""

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    """Short name, as in the Butler ``instrument`` dimension."""

    focal_plane: FocalPlane
    """Where each science detector lies."""

    raw_formatter: str
    """Fully qualified name of the Butler formatter that reads a raw file."""

    raw_storage_class: str
    """Storage class of the ``raw`` dataset type."""

    instrument_class: str | None = None
    """Fully qualified name of its `lsst.obs.base` class; with it, a site's own ingest can be used."""

    region_padding: float = 10.0
    """Padding of ``visit_detector_region``, arcsec: raw pointings are off by a little."""


@functools.cache
def find_description(name: str, where: str | None = None) -> InstrumentDescription:
    """Find the description of an instrument.

    Parameters
    ----------
    name : `str`
        Short instrument name.
    where : `str`, optional
        ``package.module:function`` that returns the description, for an
        instrument that no installed package announces.

    Returns
    -------
    description : `InstrumentDescription`
        The description.

    Raises
    ------
    ConfigurationError
        Raised if nothing describes this instrument, or if what does is of
        another name.

    Notes
    -----
    Installed packages announce instruments in the entry-point group
    ``ppd.instruments``; the entry's name is the instrument's.
    """
    if where:
        function = doImport(where.replace(":", "."))
    else:
        found = [e for e in entry_points(group=_GROUP) if e.name == name]
        if not found:
            known = ", ".join(sorted(e.name for e in entry_points(group=_GROUP))) or "none"
            raise ConfigurationError(
                f"No description of instrument {name!r} is installed (known: {known}); "
                "install one or set instrument_description to package.module:function."
            )
        function = found[0].load()
    description = function()  # type: ignore[operator]
    if not isinstance(description, InstrumentDescription) or description.name != name:
        raise ConfigurationError(f"{where or _GROUP} does not describe instrument {name!r}.")
    return description
