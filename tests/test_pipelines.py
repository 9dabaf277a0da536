"""Which pipelines for which visit, and what a pipeline needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hpgeom
import numpy as np
import pytest
import tiny_tasks
from astropy.coordinates import SkyCoord
from astropy.io import fits
from test_visit import message

from ppd.config import PipelineNode
from ppd.errors import ConfigurationError
from ppd.pipelines import all_pipelines, choose, load_pipeline, pipeline_inputs, summarize
from ppd.visit import BareVisit, parse_visit


def _visit(**changes: Any) -> BareVisit:
    return parse_visit(message(**changes))


def _node(**fields: Any) -> PipelineNode:
    return PipelineNode.model_validate({"pipelines": ["/p/A.yaml"], **fields})


def _matches(node: PipelineNode, ra: float, dec: float = 0.0) -> bool:
    return bool(choose([node], _visit(position=[150.0, 0.0]), (ra, dec)))


def test_first_match_wins() -> None:
    nodes = [
        _node(survey="calib", pipelines=None),
        _node(survey="BLOCK-T12", pipelines=["/p/A.yaml", "/p/B.yaml"]),
        _node(pipelines=["/p/C.yaml"]),
    ]
    assert choose(nodes, _visit()) == ("/p/A.yaml", "/p/B.yaml")
    assert choose(nodes, _visit(survey="calib")) == ()
    assert choose(nodes, _visit(survey="other")) == ("/p/C.yaml",)
    assert choose(nodes[:2], _visit(survey="other")) == ()
    assert all_pipelines(nodes) == ("/p/A.yaml", "/p/B.yaml", "/p/C.yaml")


@pytest.mark.parametrize(
    ("low", "high", "inside", "outside"),
    [
        (10, 20, [10, 15, 20], [9.9, 20.1, 200]),
        (340, 20, [340, 359.9, 0, 20], [20.1, 180, 339.9]),
        (-20, 20, [340, 0, 20], [21, 180, 339]),
        (0, 360, [0, 123, 359.99], []),
        (350, 370, [350, 0, 10], [11, 349]),
    ],
)
def test_right_ascension_wraps(low: float, high: float, inside: list[float], outside: list[float]) -> None:
    node = _node(ra={"min": low, "max": high})
    assert all(_matches(node, ra) for ra in inside)
    assert not any(_matches(node, ra) for ra in outside)


def test_declination() -> None:
    node = _node(dec={"min": -30, "max": -10})
    assert _matches(node, 5, -10)
    assert not _matches(node, 5, -9.9)


def test_detector_or_boresight() -> None:
    box = {"ra": {"min": 149, "max": 151}}
    visit = _visit(position=[150.0, 0.0])
    assert not choose([_node(**box)], visit, (152.0, 0.0))
    assert choose([_node(**box, **{"coord-type": "boresight"})], visit, (152.0, 0.0))


def test_no_position_never_matches_a_spatial_node() -> None:
    box = {"ra": {"min": 0, "max": 360}}
    visit = _visit(coordinateSystem=1)
    for coord_type in ("detector", "boresight"):
        assert choose([_node(**box, **{"coord-type": coord_type})], visit) == ()
    assert choose([_node(**box)], _visit()) == ()
    assert choose([_node()], visit) == ("/p/A.yaml",)


def _write_map(path: Path, values: np.ndarray, **header: str) -> Path:
    column = fits.Column(
        "MASK",
        format="1024B" if values.size % 1024 == 0 else "B",
        array=values.reshape(-1, 1024) if values.size % 1024 == 0 else values,
    )
    hdu = fits.BinTableHDU.from_columns([column])
    hdu.header.update({"PIXTYPE": "HEALPIX", **header})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


@pytest.mark.parametrize("ordering", ["RING", "NESTED"])
@pytest.mark.parametrize(("coordsys", "frame"), [("C", "icrs"), ("G", "galactic")])
def test_map(tmp_path: Path, ordering: str, coordsys: str, frame: str) -> None:
    nside, yes, unknown = 16, SkyCoord(150.0, 2.0, unit="deg"), SkyCoord(10.0, -50.0, unit="deg")
    values = np.zeros(12 * nside**2, dtype=np.uint8)
    for position, value in ((yes, 1), (unknown, 16)):
        native = position.transform_to(frame).spherical
        pixel = hpgeom.angle_to_pixel(nside, native.lon.deg, native.lat.deg, nest=ordering == "NESTED")
        values[pixel] = value
    path = _write_map(tmp_path / "m.fits", values, ORDERING=ordering, COORDSYS=coordsys, INDXSCHM="IMPLICIT")
    node = _node(**{"binary-map": path})
    assert _matches(node, 150.0, 2.0)
    assert not _matches(node, 10.0, -50.0)
    assert not _matches(node, 250.0, 20.0)


@pytest.mark.parametrize(
    ("size", "value", "header", "match"),
    [
        (48, 1, {}, "ORDERING"),
        (48, 1, {"ORDERING": "RING", "INDXSCHM": "EXPLICIT"}, "implicit"),
        (48, 1, {"ORDERING": "RING", "COORDSYS": "Q"}, "COORDSYS"),
        (50, 1, {"ORDERING": "RING"}, "50 pixels are not a whole sky"),
        (48, 3, {"ORDERING": "RING"}, "only the values"),
    ],
)
def test_bad_map(tmp_path: Path, size: int, value: int, header: dict[str, str], match: str) -> None:
    path = _write_map(tmp_path / "m.fits", np.full(size, value, dtype=np.uint8), **header)
    with pytest.raises(ConfigurationError, match=match):
        _matches(_node(**{"binary-map": path}), 0.0)


def test_unreadable_map(tmp_path: Path) -> None:
    (tmp_path / "m.fits").write_text("no")
    for name in ("m.fits", "none.fits"):
        with pytest.raises(ConfigurationError, match="can't be read"):
            _matches(_node(**{"binary-map": tmp_path / name}), 0.0)


def test_parameters_go_where_they_are_declared(tmp_path: Path) -> None:
    predict, measure = tiny_tasks.write_pipelines(tmp_path / "pipelines")
    settings = tiny_tasks.tiny_settings(tmp_path, apdb_config="here.yaml")
    graph = load_pipeline(str(predict), settings).to_graph()
    assert graph.tasks["predict"].config.apdb == "here.yaml"
    assert load_pipeline(str(measure), settings).to_graph().tasks["measure"]


def test_inputs(tmp_path: Path) -> None:
    predict, measure = tiny_tasks.write_pipelines(tmp_path / "pipelines")
    settings = tiny_tasks.tiny_settings(tmp_path)
    inputs = {i.name: i for i in pipeline_inputs(load_pipeline(str(measure), settings).to_graph())}
    assert list(inputs) == ["bias", "predicted", "raw"]
    bias, predicted, raw = inputs.values()
    assert bias.is_calibration
    assert bias.is_prerequisite
    assert not bias.optional
    assert predicted.optional
    assert not predicted.is_prerequisite
    assert raw.dimensions == ("detector", "exposure", "instrument")
    assert raw.storage_class == "StructuredDataDict"
    orbits = {i.name: i for i in pipeline_inputs(load_pipeline(str(predict), settings).to_graph())}["orbits"]
    assert orbits.optional
    assert orbits.dimensions == ()


def test_what_one_task_gives_another_is_no_input(tmp_path: Path) -> None:
    tiny_tasks.write_pipelines(tmp_path / "pipelines")
    folder = tmp_path / "pipelines"
    path = folder / "Both.yaml"
    imports = "".join(f"  - location: {folder / name}\n" for name in ("Predict.yaml", "Measure.yaml"))
    path.write_text(f"description: b\nimports:\n{imports}")
    graph = load_pipeline(str(path), tiny_tasks.tiny_settings(tmp_path)).to_graph()
    assert [i.name for i in pipeline_inputs(graph)] == ["bias", "orbits", "raw", "regionTimeInfo"]


def test_summary(tmp_path: Path) -> None:
    _, measure = tiny_tasks.write_pipelines(tmp_path / "pipelines")
    graph = load_pipeline(str(measure), tiny_tasks.tiny_settings(tmp_path)).to_graph()
    summary = summarize(str(measure), graph)
    assert summary.path == str(measure)
    assert summary.outputs == ("level", "measure_log", "measure_metadata")
    assert summary.init_outputs == ("level_schema", "measure_config", "packages")


def test_not_a_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "X.yaml"
    settings = tiny_tasks.tiny_settings(tmp_path)
    with pytest.raises(ConfigurationError, match=r"X\.yaml can't be read"):
        load_pipeline(str(path), settings)
    path.write_text("3")
    with pytest.raises(ConfigurationError, match=r"X\.yaml is not a pipeline"):
        load_pipeline(str(path), settings)
