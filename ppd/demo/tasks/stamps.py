"""Stamps for alerts: small FITS images, made quickly."""

from __future__ import annotations

__all__ = ["STAMP_SIDE", "fits_stamp"]

import astropy.io.fits
import numpy as np

_HALF = 15
_BLOCK = 2880

STAMP_SIDE = 2 * _HALF + 1
"""Rows and columns of a stamp, pixels."""


def fits_stamp(image: np.ndarray, x: float, y: float) -> bytes:
    """Cut a stamp out of an image.

    Parameters
    ----------
    image : `numpy.ndarray`
        The image, nJy.
    x, y : `float`
        Where the stamp's middle is, pixels.

    Returns
    -------
    stamp : `bytes`
        A FITS file of `STAMP_SIDE` squared pixels; those outside the image
        are NaN.
    """
    stamp = np.full((STAMP_SIDE, STAMP_SIDE), np.nan, dtype=">f4")
    column, row = round(x) - _HALF, round(y) - _HALF
    ny, nx = image.shape
    ya, yb, xa, xb = max(0, row), min(ny, row + STAMP_SIDE), max(0, column), min(nx, column + STAMP_SIDE)
    if xa < xb and ya < yb:
        stamp[ya - row : yb - row, xa - column : xb - column] = image[ya:yb, xa:xb]
    data = stamp.tobytes()
    return _HEADER + data + bytes(-len(data) % _BLOCK)


def _header() -> bytes:
    hdu = astropy.io.fits.PrimaryHDU(np.zeros((STAMP_SIDE, STAMP_SIDE), dtype=np.float32))
    hdu.header["BUNIT"] = "nJy"
    return hdu.header.tostring().encode("ascii")


# The same for all stamps, and most of the time that it takes to make one.
_HEADER = _header()
