"""Where the central repo has inputs."""

from __future__ import annotations

__all__ = ["InputCollections", "find_collections"]

import contextlib
import dataclasses
from collections.abc import Mapping

from lsst.daf.butler import Butler, CollectionInfo, CollectionType, MissingCollectionError

from ..errors import ConfigurationError

# In order of search.  Rubin's umbrella holds all the others in some repos,
# and lacks the templates in others.
_NAMES = (
    "{instrument}/defaults",
    "{instrument}/calib",
    "{instrument}/templates",
    "skymaps",
    "refcats",
    "pretrained_models",
)


@dataclasses.dataclass(frozen=True)
class InputCollections:
    """Collections that are searched for inputs, and what they are made of."""

    search: tuple[str, ...]
    """Those to search, in order."""
    chains: Mapping[str, tuple[str, ...]]
    """Children of every chain among them or within them, innermost first."""
    calibrations: tuple[str, ...]
    """Calibration collections among them or within them."""
    runs: tuple[str, ...]
    """Runs among those to search."""
    tagged: tuple[str, ...] = ()
    """Tagged collections among them or within them."""


def find_collections(butler: Butler, instrument: str) -> InputCollections:
    """Find the collections with inputs, as prompt_processing names them.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo.
    instrument : `str`
        Short name.

    Returns
    -------
    found : `InputCollections`
        Those that the repo has; what is within another is not searched twice.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if the repo has none of them.
    """
    names = [name.format(instrument=instrument) for name in _NAMES]
    search: list[str] = []
    infos: dict[str, CollectionInfo] = {}
    for name in names:
        if name not in infos:
            with contextlib.suppress(MissingCollectionError):
                _walk(butler, name, infos)
                search.append(name)
    if not search:
        raise ConfigurationError(f"The central repo has none of the collections {', '.join(names)}.")
    of_type = {kind: [n for n, i in infos.items() if i.type is kind] for kind in CollectionType}
    return InputCollections(
        search=tuple(search),
        chains={n: infos[n].children for n in reversed(of_type[CollectionType.CHAINED])},
        calibrations=tuple(of_type[CollectionType.CALIBRATION]),
        runs=tuple(n for n in search if infos[n].type is CollectionType.RUN),
        tagged=tuple(of_type[CollectionType.TAGGED]),
    )


def _walk(butler: Butler, name: str, infos: dict[str, CollectionInfo]) -> None:
    """Add a collection and all within it, each after every chain that holds it."""
    level = [name]
    while level:
        for info in butler.collections.query_info(level, flatten_chains=False):
            infos.pop(info.name, None)
            infos[info.name] = info
        level = [child for parent in level for child in infos[parent].children or ()]
