"""Reading a DemoCam raw as an image."""

from __future__ import annotations

__all__ = ["DemoCamRawFormatter"]

from typing import Any

import astropy.io.fits
import astropy.units as u
from lsst.daf.butler import FormatterV2
from lsst.images import Image


class DemoCamRawFormatter(FormatterV2):
    """Reads the pixels of a raw, overscan and all, with its header as metadata."""

    can_read_from_local_file = True
    supported_extensions = frozenset({".fits", ".fits.gz", ".fits.fz"})
    default_extension = ".fits"

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        with astropy.io.fits.open(path, memmap=False) as hdus:
            pixels, header = hdus[0].data, hdus[0].header
        skip = ("SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "EXTEND", "BZERO", "BSCALE", "")
        metadata = {k: v for k, v in header.items() if k not in skip}
        return Image(pixels.astype("float32"), unit=u.adu, metadata=metadata)
