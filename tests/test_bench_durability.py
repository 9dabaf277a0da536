"""The durability part of the benchmark measures what it says it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from bench.backlog import measure_backlog
from bench.contention import measure_contention
from bench.draining import export_settings
from bench.hand_over_times import measure_hand_overs
from bench.hand_overs import TYPES, make_central, make_hand_over

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def test_hand_overs(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    figures = measure_hand_overs(*folders, repeats=1)
    assert figures["datasets"] == 20
    assert figures["one_file_system_ms"]["p50"] > 0.0
    assert figures["copied_ms"]["memory_to_disk"]["MB_per_s"] > 0.0


@pytest.mark.slow
def test_a_backlog_drains(tmp_path: Path) -> None:
    central = make_central(tmp_path / "central")
    settings = export_settings(tmp_path / "node", central, export_batch=2)
    with Butler.from_config(str(central)) as butler:
        for detector in range(5):
            make_hand_over(settings.spool_dir, 0, detector, butler.dimensions)
    figures = measure_backlog(tmp_path / "node", central, hand_overs=5, sample=4, first_visit=1, detectors=9)
    assert (figures["hand_overs"], figures["datasets"]) == (4, 20)  # the first wakes it up
    assert figures["ratio"] > 0.0
    with Butler.from_config(str(central)) as butler:
        found = butler.query_datasets(TYPES[0], "*", find_first=False)
        # 5 by the exporter; twice a first that wakes up, and two that are measured.
        assert len(found) == 5 + 2 * 3


@pytest.mark.slow
def test_nodes_and_writers_at_once(tmp_path: Path) -> None:
    """Few, as SQLite takes one writer at a time."""
    central = make_central(tmp_path / "central")
    (row,) = measure_contention(
        tmp_path / "at-once", central, nodes=(1,), writers=2, each=2, detectors=9, first_visit=0
    )
    assert row["hand_overs"] == 4
    assert row["per_detector"]["writers"] == 2
    assert row["ratio_of_rates"] > 0.0
