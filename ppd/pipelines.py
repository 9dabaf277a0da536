"""Which pipelines for which visit, and what a pipeline reads and writes."""

from __future__ import annotations

__all__ = [
    "PipelineNode",
    "all_pipelines",
    "by_position",
    "choose",
    "load_pipeline",
    "pipeline_inputs",
    "read_pipeline",
    "summarize",
]

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import PipelineNode, Settings, SkyRange
from .errors import ConfigurationError
from .messages import InputType, PipelineSummary
from .visit import BareVisit

if TYPE_CHECKING:
    from lsst.pipe.base import Pipeline
    from lsst.pipe.base.pipeline_graph import PipelineGraph

_FRAMES = {"C": "icrs", "G": "galactic", "E": "geocentricmeanecliptic"}


def all_pipelines(nodes: Iterable[PipelineNode]) -> tuple[str, ...]:
    """Return every pipeline that some visit may need.

    Parameters
    ----------
    nodes : `~collections.abc.Iterable` [ `ppd.config.PipelineNode` ]
        The pipelines configuration.

    Returns
    -------
    paths : `tuple` [ `str` ]
        Each path once, in order of first mention.
    """
    return tuple(dict.fromkeys(path for node in nodes for path in node.pipelines))


def by_position(nodes: Iterable[PipelineNode]) -> bool:
    """Whether a detector's position matters for which pipelines it gets."""
    return any(_is_spatial(node) and node.coord_type == "detector" for node in nodes)


def choose(
    nodes: Iterable[PipelineNode],
    visit: BareVisit,
    detector_position: tuple[float, float] | None = None,
) -> tuple[str, ...]:
    """Choose the pipelines for a visit or a detector of it.

    Parameters
    ----------
    nodes : `~collections.abc.Iterable` [ `ppd.config.PipelineNode` ]
        The pipelines configuration; the first node that matches wins.
    visit : `ppd.visit.BareVisit`
        The visit.
    detector_position : `tuple` [ `float`, `float` ], optional
        Right ascension and declination of the detector's centre, ICRS
        degrees; `None` when not known.

    Returns
    -------
    paths : `tuple` [ `str` ]
        In order of preference; empty when the node lists none or no node
        matches.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if a sky map can't be used.

    Notes
    -----
    A node with a spatial key never matches where the position it wants is
    not known.
    """
    boresight = None if visit.ra is None or visit.dec is None else (visit.ra, visit.dec)
    for node in nodes:
        if node.survey is not None and node.survey != visit.survey:
            continue
        position = boresight if node.coord_type == "boresight" else detector_position
        if _is_inside(node, position):
            return node.pipelines
    return ()


def _is_spatial(node: PipelineNode) -> bool:
    return not (node.ra is None and node.dec is None and node.binary_map is None)


def _is_inside(node: PipelineNode, position: tuple[float, float] | None) -> bool:
    if not _is_spatial(node):
        return True
    if position is None:
        return False
    ra, dec = position
    if node.ra is not None and not _in_wrapped(node.ra, ra):
        return False
    if node.dec is not None and not node.dec.min <= dec <= node.dec.max:
        return False
    return node.binary_map is None or _SkyMap.read(node.binary_map).is_set(ra, dec)


def _in_wrapped(bounds: SkyRange, angle: float) -> bool:
    if bounds.max - bounds.min >= 360.0:
        return True
    width = (bounds.max - bounds.min) % 360.0
    return (angle - bounds.min) % 360.0 <= width


class _SkyMap:
    """A yes-or-no HEALPix map of the whole sky."""

    def __init__(self, values: np.ndarray, nest: bool, frame: str):
        self._values = values
        self._nest = nest
        self._frame = frame

    @staticmethod
    @functools.cache
    def read(path: Path) -> _SkyMap:
        """Read a map, once per process."""
        from astropy.io import fits

        try:
            with fits.open(path, memmap=False) as hdus:
                hdu = hdus[1]
                header = hdu.header
                # Maps are often written in rows of 1024 pixels.
                values = np.asarray(hdu.data.field(0)).ravel()
        except (OSError, IndexError, AttributeError) as e:
            raise ConfigurationError(f"Sky map {path} can't be read: {e}.") from e
        fault = _map_fault(values, header)
        if fault:
            raise ConfigurationError(f"Sky map {path}: {fault}.")
        if values.dtype.kind == "f":
            values = values.astype(int)
        return _SkyMap(
            values, header["ORDERING"].strip() == "NESTED", _FRAMES[header.get("COORDSYS", "C").strip()]
        )

    def is_set(self, ra: float, dec: float) -> bool:
        """Whether the map is 1 at a position, ICRS degrees."""
        import hpgeom

        if self._frame != "icrs":
            from astropy.coordinates import SkyCoord

            native = SkyCoord(ra, dec, unit="deg").transform_to(self._frame).spherical
            ra, dec = float(native.lon.deg), float(native.lat.deg)
        nside = hpgeom.npixel_to_nside(self._values.size)
        pixel = hpgeom.angle_to_pixel(nside, ra, dec, nest=self._nest)
        return bool(self._values[pixel] == 1)


def _map_fault(values: np.ndarray, header: Any) -> str | None:
    if header.get("ORDERING", "").strip() not in ("RING", "NESTED"):
        return "ORDERING must be RING or NESTED"
    if header.get("INDXSCHM", "IMPLICIT").strip() != "IMPLICIT":
        return "only implicit indexing is understood"
    if header.get("COORDSYS", "C").strip() not in _FRAMES:
        return "COORDSYS must be C, G or E"
    nside = np.sqrt(values.size / 12)
    if values.size < 12 or nside != int(nside) or int(nside) & (int(nside) - 1):
        return f"{values.size} pixels are not a whole sky"
    if values.dtype.kind not in "buif" or not np.isin(values, (0, 1, 16)).all():
        return "only the values 0, 1 and 16 (unknown) are understood"
    return None


def read_pipeline(path: str) -> Pipeline:
    """Read a pipeline file as it is.

    Parameters
    ----------
    path : `str`
        Path or URI of the file.

    Returns
    -------
    pipeline : `lsst.pipe.base.Pipeline`
        The pipeline, imports merged in.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if the file can't be read or is not a pipeline.
    """
    from lsst.pipe.base import Pipeline

    try:
        return Pipeline.from_uri(path)
    except FileNotFoundError as e:
        raise ConfigurationError(f"Pipeline {path} can't be read: {e}.") from e
    except Exception as e:
        # The middleware raises whatever its YAML reader or its own checks do.
        raise ConfigurationError(f"Pipeline {path} is not a pipeline: {type(e).__name__}: {e}.") from e


def load_pipeline(path: str, settings: Settings) -> Pipeline:
    """Read a pipeline file and give it the configured parameters.

    Parameters
    ----------
    path : `str`
        Path or URI of the file.
    settings : `ppd.config.Settings`
        The configuration, whose parameters are given to the pipeline where
        it declares them.

    Returns
    -------
    pipeline : `lsst.pipe.base.Pipeline`
        The pipeline.

    Raises
    ------
    ppd.errors.ConfigurationError
        Raised if the file can't be read or is not a pipeline.
    """
    import yaml

    pipeline = read_pipeline(path)
    declared = (yaml.safe_load(str(pipeline)) or {}).get("parameters") or {}
    for name, value in settings.parameters.items():
        if name in declared:
            pipeline.addConfigOverride("parameters", name, value)
    return pipeline


def pipeline_inputs(graph: PipelineGraph) -> tuple[InputType, ...]:
    """List the dataset types that a pipeline reads and does not write.

    Parameters
    ----------
    graph : `lsst.pipe.base.pipeline_graph.PipelineGraph`
        The pipeline's graph, resolved or not.

    Returns
    -------
    inputs : `tuple` [ `ppd.messages.InputType` ]
        Sorted by name; components stand under their parent's name, and
        init-inputs are among them.

    Notes
    -----
    An input is optional when every task that reads it can do without. It is
    a prerequisite when any task looks it up outside the quantum graph.
    """
    merged: dict[str, InputType] = {}
    tasks = graph.tasks.values()
    written = {e.parent_dataset_type_name for task in tasks for e in task.iter_all_outputs()}
    written |= {e.parent_dataset_type_name for task in tasks for e in task.init.iter_all_outputs()}
    for task in tasks:
        connections = task.get_connections()
        for edge in (*task.init.iter_all_inputs(), *task.iter_all_inputs()):
            name = edge.parent_dataset_type_name
            if name in written:
                continue
            is_init = edge.connection_name in task.init.inputs
            connection = getattr(connections, edge.connection_name)
            found = InputType(
                name=name,
                dimensions=() if is_init else tuple(sorted(connection.dimensions)),
                storage_class=edge.storage_class_name,
                is_calibration=bool(getattr(connection, "isCalibration", False)),
                is_prerequisite=edge.is_prerequisite,
                optional=not is_init and connection.minimum == 0,
                multiple=bool(connection.multiple),
            )
            merged[name] = _merge(merged[name], found) if name in merged else found
    return tuple(merged[name] for name in sorted(merged))


def _merge(one: InputType, other: InputType) -> InputType:
    return one.model_copy(
        update={
            "is_calibration": one.is_calibration or other.is_calibration,
            "is_prerequisite": one.is_prerequisite or other.is_prerequisite,
            "optional": one.optional and other.optional,
            "multiple": one.multiple or other.multiple,
        }
    )


def summarize(path: str, graph: PipelineGraph) -> PipelineSummary:
    """Tell what a pipeline reads and writes.

    Parameters
    ----------
    path : `str`
        The pipeline's path.
    graph : `lsst.pipe.base.pipeline_graph.PipelineGraph`
        Its graph, resolved or not.

    Returns
    -------
    summary : `ppd.messages.PipelineSummary`
        Inputs, outputs (metadata and logs too) and init-outputs (configs and
        ``packages`` too).
    """
    outputs: set[str] = set()
    init_outputs = {"packages"}
    for task in graph.tasks.values():
        outputs.update(e.parent_dataset_type_name for e in task.iter_all_outputs())
        init_outputs.update(e.parent_dataset_type_name for e in task.init.iter_all_outputs())
    return PipelineSummary(
        path=path,
        inputs=pipeline_inputs(graph),
        outputs=tuple(sorted(outputs)),
        init_outputs=tuple(sorted(init_outputs)),
    )
