"""What the path of a raw says of it, in the layouts that are in use."""

from __future__ import annotations

__all__ = ["LsstKey", "RawKey", "parse_lsst_path", "parse_raw_path"]

import dataclasses
import re
from pathlib import PurePath

# <instrument>/<detector>/<group>/<snap>/<expid>/<filter>/<anything>.f*; the
# numbers are ASCII and no longer than the database's integers.
_GENERIC = re.compile(
    r"(?:^|/)(?P<instrument>[\w-]+)/(?P<detector>[0-9]{1,9})/(?P<group>[^/]+)/(?P<snap>[0-9]{1,9})"
    r"/(?P<exposure>[0-9]{1,18})/(?P<filter>[^/]+)/[^/]+\.f[^/]*\Z"
)
_NAME = r"(?P<raft>R[0-9]{2})_(?P<sensor>S[0-9A-Z]{2})\.f[^/]*\Z"
# <instrument>/<day>/<obs_id>/<obs_id>_R<rr>_S<ss>.fits
_LSST = re.compile(
    r"(?:^|/)(?P<instrument>LATISS|LSSTComCamSim|LSSTComCam|LSSTCam|LSST-TS8|ComCam|TS8)/[0-9]{8}"
    r"/(?P<obs_id>(?:AT|CC|MC|TS)_(?P<controller>[A-Z])_(?P<day>[0-9]{8})_(?P<number>[0-9]{6}))"
    r"/(?P=obs_id)_" + _NAME
)
# <instrument>/<day_obs>/<expid>/<expid>_<filter>_<detector>_R<rr>_S<ss>.fits
_IMSIM = re.compile(
    r"(?:^|/)(?P<instrument>LSSTCam-imSim)/[0-9]{8}/(?P<exposure>[0-9]{1,18})"
    r"/(?P=exposure)_(?P<filter>[^/]+)_(?P<detector>[0-9]{1,9})_" + _NAME
)
_BUCKET_NAMES = {"ComCam": "LSSTComCam", "TS8": "LSST-TS8"}
# The camera's own controller: its exposure IDs have no offset.
_OBSERVATORY = "O"


@dataclasses.dataclass(frozen=True)
class RawKey:
    """Identity of a raw."""

    instrument: str
    group: str
    detector: int
    snap: int
    exposure: int | None = None
    """`None`: only the header tells."""
    physical_filter: str | None = None
    """`None`: only the header tells."""


@dataclasses.dataclass(frozen=True)
class LsstKey:
    """What the path of an LSST camera's raw says; its group is in a file beside it."""

    instrument: str
    detector: str
    """Full name of the detector (``R22_S11``)."""
    exposure: int | None = None
    """`None`: only the header tells."""
    physical_filter: str | None = None
    """`None`: only the header tells."""


def parse_raw_path(path: PurePath) -> RawKey | None:
    """Read the generic layout of raw objects.

    Parameters
    ----------
    path : `pathlib.PurePath`
        Path of the file, absolute or relative to the source's root.

    Returns
    -------
    key : `RawKey` or `None`
        `None` if the path is not of this layout.
    """
    match = _GENERIC.search(path.as_posix())
    if match is None or path.name.startswith("."):
        return None
    return RawKey(
        instrument=match["instrument"],
        group=match["group"],
        detector=int(match["detector"]),
        snap=int(match["snap"]),
        exposure=int(match["exposure"]),
        physical_filter=match["filter"],
    )


def parse_lsst_path(path: PurePath) -> LsstKey | None:
    """Read the layouts of the LSST cameras and of their simulation.

    Parameters
    ----------
    path : `pathlib.PurePath`
        Path of the file, absolute or relative to the source's root.

    Returns
    -------
    key : `LsstKey` or `None`
        `None` if the path is of neither layout.
    """
    text = path.as_posix()
    match = _LSST.search(text)
    if match is not None:
        exposure = None
        if match["controller"] == _OBSERVATORY:
            exposure = int(match["day"]) * 100_000 + int(match["number"])
        instrument = match["instrument"]
        return LsstKey(
            _BUCKET_NAMES.get(instrument, instrument), f"{match['raft']}_{match['sensor']}", exposure
        )
    match = _IMSIM.search(text)
    if match is not None:
        name = f"{match['raft']}_{match['sensor']}"
        return LsstKey(match["instrument"], name, int(match["exposure"]), match["filter"])
    return None
