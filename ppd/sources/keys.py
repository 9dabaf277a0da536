"""What the path of a raw says of it."""

from __future__ import annotations

__all__ = ["RawKey", "parse_raw_path"]

import dataclasses
import re
from pathlib import PurePath

# <instrument>/<detector>/<group>/<snap>/<expid>/<filter>/<anything>.f*; the
# numbers are ASCII and no longer than the database's integers.
_GENERIC = re.compile(
    r"(?:^|/)(?P<instrument>[\w-]+)/(?P<detector>[0-9]{1,9})/(?P<group>[^/]+)/(?P<snap>[0-9]{1,9})"
    r"/(?P<exposure>[0-9]{1,18})/(?P<filter>[^/]+)/[^/]+\.f[^/]*\Z"
)


@dataclasses.dataclass(frozen=True)
class RawKey:
    """Identity of a raw, as its path has it."""

    instrument: str
    group: str
    detector: int
    snap: int
    exposure: int
    physical_filter: str


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
