"""The pictures of the report: focal-plane mosaics and cut-outs."""

from __future__ import annotations

__all__ = ["Cutout", "ImageStore", "as_data_uri", "cutouts", "mosaic"]

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import astropy.io.fits
import numpy as np
from lsst.daf.butler import Butler
from PIL import Image as PillowImage

from .camera import CAMERA, INSTRUMENT, focal_plane
from .matching import DetectorResult
from .night import NightPlan, PlannedVisit

TILE = 180
"""Side of a detector in a mosaic, pixels."""

GAP = 6
"""Gap between detectors in a mosaic, pixels."""

_HALF = 15
_ZOOM = 3


class ImageStore:
    """Reads the images of a night: raws where they landed, the rest from central.

    Parameters
    ----------
    plan : `ppd.demo.night.NightPlan`
        The night.
    butler : `lsst.daf.butler.Butler`
        Central repo.
    collection : `str` or `None`
        Output chain; `None`: there are no outputs.
    """

    def __init__(self, plan: NightPlan, butler: Butler, collection: str | None):
        self._plan = plan
        self._butler = butler
        self._collection = collection

    def raw(self, visit: PlannedVisit, detector: int) -> np.ndarray | None:
        """Imaging pixels of a raw, each amplifier's overscan subtracted, ADU."""
        path = Path(self._plan.staged) / visit.raws[detector]
        if not path.exists():
            return None
        pixels = astropy.io.fits.getdata(path).astype(float)
        image = np.empty((CAMERA.side, CAMERA.side))
        for amp in CAMERA.amplifiers:
            over = pixels[:, amp.overscan_x0 : amp.overscan_x0 + amp.overscan_width]
            part = pixels[:, amp.raw_x0 : amp.raw_x0 + amp.width]
            image[:, amp.x0 : amp.x0 + amp.width] = part - np.median(over)
        return image

    def processed(self, name: str, visit: PlannedVisit, detector: int) -> np.ndarray | None:
        """An image that a pipeline made, or `None` if it did not."""
        if self._collection is None:
            return None
        ref = self._butler.find_dataset(
            name,
            instrument=INSTRUMENT,
            visit=visit.exposure,
            detector=detector,
            collections=self._collection,
        )
        if ref is None:
            return None
        return np.asarray(self._butler.get(ref).image.array, dtype=float)


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Three stamps around one detection."""

    images: tuple[str, str, str]
    """Science, template and difference as data URIs."""
    label: str


def as_data_uri(gray: np.ndarray, *, smooth: bool) -> str:
    """Encode a picture for a page.

    Parameters
    ----------
    gray : `numpy.ndarray`
        8-bit gray values; row 0 at the bottom.
    smooth : `bool`
        Whether a lossy format will do.

    Returns
    -------
    uri : `str`
        ``data:`` URI.
    """
    stream = io.BytesIO()
    kind = "JPEG" if smooth else "PNG"
    options = {"quality": 82} if smooth else {"optimize": True}
    PillowImage.fromarray(gray[::-1]).save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def mosaic(tiles: dict[int, np.ndarray | None], *, difference: bool) -> str:
    """Lay detectors out as in the focal plane.

    Parameters
    ----------
    tiles : `dict` [ `int`, `numpy.ndarray` or `None` ]
        Image by detector; `None`: there is none.
    difference : `bool`
        Stretch linearly about zero instead of from the sky up.

    Returns
    -------
    uri : `str`
        The picture.
    """
    side = 3 * TILE + 2 * GAP
    canvas = np.full((side, side), 40, dtype=np.uint8)
    for detector, image in tiles.items():
        x, y = tile_corner(detector)
        if image is not None:
            canvas[y : y + TILE, x : x + TILE] = _stretch(_shrink(image), difference)
    return as_data_uri(canvas, smooth=True)


def tile_corner(detector: int) -> tuple[int, int]:
    """Lower left corner of a detector in a mosaic, pixels from the lower left."""
    plane = focal_plane()
    outline = plane.outline(detector)
    columns = sorted({round(d.x_min, 6) for d in plane.detectors})
    rows = sorted({round(d.y_min, 6) for d in plane.detectors})
    pitch = TILE + GAP
    return columns.index(round(outline.x_min, 6)) * pitch, rows.index(round(outline.y_min, 6)) * pitch


def cutouts(
    results: Sequence[DetectorResult], plan: NightPlan, store: ImageStore, *, true: bool, count: int
) -> list[Cutout]:
    """Cut out the most significant detections that are true, or that are not.

    Parameters
    ----------
    results : sequence of `ppd.demo.matching.DetectorResult`
        All detections.
    plan : `ppd.demo.night.NightPlan`
        The night.
    store : `ImageStore`
        Where images come from.
    true : `bool`
        Which of the two.
    count : `int`
        How many at most; of true ones, one per place on the sky.

    Returns
    -------
    cutouts : `list` [ `Cutout` ]
        Most significant first.
    """
    rows = [
        (float(row["snr"]), r, row)
        for r in results
        for row in r.detections[np.asarray(r.detections["true"]) == true]
    ]
    rows.sort(key=lambda item: -item[0])
    by_exposure = {v.exposure: v for v in plan.visits}
    seen: set[tuple[int, int]] = set()
    made: list[Cutout] = []
    for snr, result, row in rows:
        place = (round(float(row["ra"]) * 1800), round(float(row["dec"]) * 1800))
        if true and place in seen:
            continue
        seen.add(place)
        visit = by_exposure[result.exposure]
        stamps = []
        for name in ("preliminary_visit_image", "template_detector", "difference_image"):
            image = store.processed(name, visit, result.detector)
            stamps.append(_stamp(image, float(row["x"]), float(row["y"]), name == "difference_image"))
        label = f"visit {visit.exposure % 1000}, detector {result.detector}, {result.band}: S/N {snr:.0f}"
        made.append(Cutout((stamps[0], stamps[1], stamps[2]), label))
        if len(made) == count:
            break
    return made


def _stamp(image: np.ndarray | None, x: float, y: float, difference: bool) -> str:
    stamp = np.zeros((2 * _HALF + 1, 2 * _HALF + 1))
    if image is not None:
        ix, iy = round(x), round(y)
        xa, xb = max(0, ix - _HALF), min(image.shape[1], ix + _HALF + 1)
        ya, yb = max(0, iy - _HALF), min(image.shape[0], iy + _HALF + 1)
        into = slice(ya - iy + _HALF, yb - iy + _HALF), slice(xa - ix + _HALF, xb - ix + _HALF)
        stamp[into] = image[ya:yb, xa:xb]
    gray = _stretch(stamp, difference)
    return as_data_uri(np.kron(gray, np.ones((_ZOOM, _ZOOM), dtype=np.uint8)), smooth=False)


def _shrink(image: np.ndarray) -> np.ndarray:
    """Bring an image to the size of a tile, by area: nothing small gets lost."""
    picture = PillowImage.fromarray(image.astype(np.float32), mode="F")
    return np.asarray(picture.resize((TILE, TILE), PillowImage.Resampling.BOX))


def _stretch(image: np.ndarray, difference: bool) -> np.ndarray:
    middle = float(np.median(image))
    sigma = max(1.48 * float(np.median(np.abs(image - middle))), 1e-6)
    if difference:
        scaled = 0.5 + (image - middle) / (16.0 * sigma)
    else:
        # An inverse hyperbolic sine shows faint and bright at once (Lupton et al. 2004).
        scaled = np.arcsinh((image - middle + sigma) / (2.0 * sigma)) / np.arcsinh(60.0)
    return (255.0 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)
