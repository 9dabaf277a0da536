"""Reading a DemoCam raw as an image."""

from __future__ import annotations

__all__ = ["DemoCamRawFormatter"]

import contextlib
from typing import Any

import astropy.io.fits
import astropy.units as u
from astropy.io.fits import VerifyError
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
        metadata = {}
        for card in header.cards:
            # A card that can't be read spoils no image; the translator has read what it needs.
            with contextlib.suppress(VerifyError, ValueError):
                if card.keyword not in skip:
                    metadata[card.keyword] = card.value
        return Image(pixels.astype("float32"), unit=u.adu, metadata=metadata)
