"""Alert packets: Rubin's schema, the right sources, and stamps that are FITS."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import astropy.io.fits
import fastavro
import lsst.alert.packet
import numpy as np
import pytest
from demo_support import Field, Observed, alert_inputs, alert_task, shared_field

from ppd.demo.tasks.stamps import STAMP_SIDE, fits_stamp


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return shared_field(tmp_path_factory.getbasetemp())


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with path.open("rb") as stream:
        reader = fastavro.reader(stream)
        return reader.writer_schema, list(reader)


def _alerts(field: Field, observed: Observed) -> list[dict[str, Any]]:
    (path,) = field.get("alert_summary", observed)["paths"]
    return _read(Path(path))[1]


def test_one_file_per_detector_visit(field: Field) -> None:
    names = {f"DemoCam_{o.conditions.exposure}_{o.detector:03d}.avro" for o in field.observed}
    assert {p.name for p in (field.root / "alerts").iterdir()} == names


def test_version_of_the_schema(field: Field) -> None:
    summary = field.get("alert_summary", field.observed[0])
    major, minor = lsst.alert.packet.get_latest_schema_version()
    assert summary["schema"] == f"{major}.{minor}"
    written, _ = _read(Path(summary["paths"][0]))
    assert written["name"] == f"lsst.v{major}_{minor}.alert"


def test_alerts_are_valid(field: Field) -> None:
    schema = lsst.alert.packet.Schema.from_uri(lsst.alert.packet.get_uri_to_latest_schema())
    for observed in field.observed:
        alerts = _alerts(field, observed)
        assert len(alerts) == field.get("alert_summary", observed)["n_alerts"] > 0
        assert all(schema.validate(alert) for alert in alerts)


def test_alerts_are_of_what_was_stored(field: Field) -> None:
    for observed in field.observed:
        stored = {int(s["diaSourceId"]): s for s in field.get("dia_source_detector", observed)}
        alerts = _alerts(field, observed)
        assert [a["diaSourceId"] for a in alerts] == list(stored)
        for alert in alerts:
            source, row = alert["diaSource"], stored[alert["diaSourceId"]]
            assert source["diaSourceId"] == alert["diaSourceId"]
            assert (source["visit"], source["detector"]) == (observed.conditions.exposure, observed.detector)
            assert source["band"] == "r"
            for name in ("ra", "dec", "psfFlux", "psfFluxErr", "snr", "midpointMjdTai"):
                assert source[name] == pytest.approx(float(row[name]), rel=1e-6)
            assert source["isNegative"] == bool(row["isNegative"])


def test_sources_are_of_an_object_or_a_mover(field: Field) -> None:
    movers = 0
    for observed in field.observed:
        for alert in _alerts(field, observed):
            source = alert["diaSource"]
            # 0 stands for none in the tables; in alerts it is null.
            assert (source["diaObjectId"] is None) != (source["ssObjectId"] is None)
            if source["diaObjectId"] is None:
                assert alert["diaObject"] is None
                movers += 1
            else:
                assert alert["diaObject"]["diaObjectId"] == source["diaObjectId"] > 0
    assert movers >= 6


def test_second_alert_has_the_first_source(field: Field) -> None:
    with_history = 0
    for detector in (4, 8):
        first, second = field.seen_by(detector)
        assert not any(a["prvDiaSources"] for a in _alerts(field, first))
        before = {a["diaSource"]["diaObjectId"]: a["diaSource"] for a in _alerts(field, first)}
        for alert in _alerts(field, second):
            identity = alert["diaSource"]["diaObjectId"]
            if identity is not None and identity in before:
                (earlier,) = alert["prvDiaSources"]
                assert earlier["diaSourceId"] == before[identity]["diaSourceId"]
                assert earlier["psfFlux"] == pytest.approx(before[identity]["psfFlux"], rel=1e-5)
                assert alert["diaObject"]["nDiaSources"] == 2
                with_history += 1
            else:
                assert alert["prvDiaSources"] is None
    assert with_history >= 5


def test_stamps_are_cut_from_their_images(field: Field) -> None:
    observed = field.observed[0]
    images = {
        "cutoutScience": field.get("preliminary_visit_image", observed).image.array,
        "cutoutTemplate": field.get("template_detector", observed).image.array,
        "cutoutDifference": field.get("difference_image", observed).image.array,
    }
    compared = 0
    for alert in _alerts(field, observed):
        x, y = round(alert["diaSource"]["x"]), round(alert["diaSource"]["y"])
        for name, image in images.items():
            with astropy.io.fits.open(io.BytesIO(alert[name])) as hdus:
                hdus.verify("exception")
                stamp = hdus[0].data
                assert hdus[0].header["BUNIT"] == "nJy"
            assert stamp.shape == (31, 31) == (STAMP_SIDE, STAMP_SIDE)
            assert stamp[15, 15] == image[y, x]
            if 15 <= x < 512 - 15 and 15 <= y < 512 - 15:
                assert np.array_equal(stamp, image[y - 15 : y + 16, x - 15 : x + 16])
                compared += 1
        # The first in order are the most significant: the change is in the middle.
    assert compared >= 9


@pytest.mark.parametrize(("x", "y", "inside"), [(3, 50, 19 * 31), (98.4, 99.2, 17 * 16), (-40, 20, 0)])
def test_stamps_at_the_edge_are_nan_outside(x: float, y: float, inside: int) -> None:
    image = np.arange(100.0 * 100.0).reshape(100, 100)
    data = fits_stamp(image, x, y)
    assert len(data) % 2880 == 0
    with astropy.io.fits.open(io.BytesIO(data)) as hdus:
        stamp = hdus[0].data
    assert np.isfinite(stamp).sum() == inside
    if inside:
        assert stamp[15, 15] == image[round(y), round(x)]


def test_no_sources_no_file(field: Field, tmp_path: Path) -> None:
    inputs = alert_inputs(field, "again")
    result = alert_task(tmp_path / "alerts").run(**{**inputs, "sources": inputs["sources"][:0]})
    assert result.summary["n_alerts"] == 0
    assert result.summary["paths"] == []
    assert not (tmp_path / "alerts").exists()


def test_the_file_is_there_whole_or_not_at_all(field: Field, tmp_path: Path) -> None:
    inputs = alert_inputs(field, "again")
    task = alert_task(tmp_path)
    task.run(**inputs)
    first = _read(tmp_path / "again.avro")[1]
    broken = inputs["sources"].copy()
    broken["band"] = [b if i < 5 else 3 for i, b in enumerate(broken["band"])]
    broken.remove_column("diaSourceId")
    with pytest.raises(KeyError):
        task.run(**{**inputs, "sources": broken})
    assert _read(tmp_path / "again.avro")[1] == first
    assert [p.name for p in tmp_path.iterdir()] == ["again.avro"]
