"""Mask planes of the demo observatory's images."""

from __future__ import annotations

__all__ = ["DIFFERENCE_SCHEMA", "SCIENCE_SCHEMA", "any_of"]

from collections.abc import Iterable

import numpy as np
from lsst.images import Mask, MaskPlane, MaskSchema

_PLANES = (
    MaskPlane("BAD", "Defect of the detector."),
    MaskPlane("SAT", "Saturated, or next to it."),
    MaskPlane("CR", "Hit by a cosmic ray."),
    MaskPlane("NO_DATA", "Nothing was measured here."),
)

SCIENCE_SCHEMA = MaskSchema(list(_PLANES))
"""Planes of single images."""

DIFFERENCE_SCHEMA = MaskSchema(
    [
        *_PLANES,
        MaskPlane("SAT_TEMPLATE", "Saturated in the template."),
        MaskPlane("DETECTED", "Part of a positive detection."),
        MaskPlane("DETECTED_NEGATIVE", "Part of a negative detection."),
    ]
)
"""Planes of difference images."""


def any_of(mask: Mask, planes: Iterable[str]) -> np.ndarray:
    """Tell which pixels have one of some planes set.

    Parameters
    ----------
    mask : `lsst.images.Mask`
        The mask.
    planes : iterable of `str`
        Names of planes.

    Returns
    -------
    found : `numpy.ndarray`
        `bool`, the mask's shape.
    """
    found = np.zeros(tuple(mask.bbox.shape), dtype=bool)
    for plane in planes:
        found |= mask.get(plane)
    return found
