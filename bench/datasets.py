"""The dataset types of the benchmark's repo: real names and dimensions, small files."""

from __future__ import annotations

__all__ = ["INSTRUMENT", "KINDS", "MODEL", "REFCAT", "SKYMAP", "TEMPLATE", "Kind"]

import dataclasses

INSTRUMENT = "LSSTCam"
SKYMAP = "bench_cells_v1"
REFCAT = "the_monster_20250219"
TEMPLATE = "template_coadd"
MODEL = "pretrainedModelPackage"

_DETECTOR = ("instrument", "detector")
_FILTER = ("instrument", "detector", "physical_filter")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A dataset type that exists before the night."""

    name: str
    dimensions: tuple[str, ...]
    storage_class: str
    kilobytes: int
    """Roughly the size of one file."""
    run: str
    """Run below ``LSSTCam/calib`` for calibs, else the run itself."""
    calibration: bool = False
    epochs: int = 1
    """How many validity ranges follow each other; a visit is in the last."""


def _calib(
    name: str,
    kilobytes: int,
    run: str,
    dimensions: tuple[str, ...] = _DETECTOR,
    storage_class: str = "NumpyArray",
    epochs: int = 1,
) -> Kind:
    return Kind(name, dimensions, storage_class, kilobytes, run, True, epochs)


# Runs are named as in the observatory's repo: each campaign's products in one
# of its own, what was curated in another.
_CURATED = "curated/19700101T000000Z"
_RUN7 = "DM-49175/run7"

KINDS: tuple[Kind, ...] = (
    _calib("camera", 4, "unbounded", ("instrument",), "StructuredDataDict"),
    _calib("crosstalk", 12, _CURATED),
    _calib("manual_defects", 4, _CURATED, storage_class="ArrowAstropy"),
    _calib("transmission_optics", 8, _CURATED, ("instrument",), "ArrowAstropy"),
    _calib("transmission_sensor", 8, _CURATED, storage_class="ArrowAstropy"),
    _calib("transmission_filter_detector", 8, _CURATED, _FILTER, "ArrowAstropy"),
    _calib("bfk", 64, f"{_RUN7}/bfkGen.20250320a/20250324T220123Z"),
    _calib("bias", 100, f"{_RUN7}/biasGen.20250320a/20250325T205118Z", epochs=2),
    _calib("cti", 32, f"{_RUN7}/ctiGen.20250320a/20250325T152139Z"),
    _calib("dark", 100, f"{_RUN7}/darkGen.20250320a/20250326T000943Z", epochs=2),
    _calib(
        "defects",
        12,
        f"{_RUN7}/defectGen.20250401a/20250401T232630Z",
        storage_class="ArrowAstropy",
        epochs=2,
    ),
    _calib("flat", 100, "DM-52163/flats-2s-v30-nograd-ugrizy/20250812T182450Z", _FILTER),
    _calib("gain_correction", 4, "DM-52163/gainCorrection/20250813T010203Z"),
    _calib("linearizer", 48, f"{_RUN7}/linearizerGen.20250320a/20250321T052032Z"),
    _calib("ptc", 64, "DM-50336/run7/ptcGen.20250422a/20250422T162135Z"),
    Kind("skyMap", ("skymap",), "NumpyArray", 64, "skymaps"),
    Kind(
        TEMPLATE,
        ("skymap", "tract", "patch", "band"),
        "NumpyArray",
        100,
        "LSSTCam/templates/DM-51716/SV_225/run",
    ),
    Kind(REFCAT, ("htm7",), "ArrowAstropy", 64, "refcats/DM-49042/the_monster_20250219"),
    Kind(MODEL, (), "NumpyArray", 100, "pretrained_models/rbResnet50-DC2"),
)
"""Every dataset type that pipelines read and do not write, ``raw`` apart."""
