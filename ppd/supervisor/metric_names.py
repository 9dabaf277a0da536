"""What the supervisor's counts are called among the metrics."""

from __future__ import annotations

__all__ = ["COUNTS", "CountFamily"]

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class CountFamily:
    """One metric of counts."""

    name: str
    """Without ``_total``."""
    what: str
    label: str
    """Name of its label; empty: it has none."""
    counts: Mapping[str, str]
    """Names as `ppd.supervisor.counters` has them, with the label's value."""


def _of(names: str, prefix: str = "") -> dict[str, str]:
    return {prefix + name: name for name in names.split()}


COUNTS = (
    CountFamily(
        "ppd_visits",
        "Announcements of visits, by what became of them.",
        "outcome",
        _of(
            "accepted taken_up malformed stale duplicate ignored "
            "refused_spool_full refused_journal refused_paused gone undeliverable",
            "visits_",
        ),
    ),
    CountFamily(
        "ppd_raws",
        "Raws that were noticed, by what became of them.",
        "outcome",
        _of(
            "seen seen_again of_finished_visits refused repeated not_fetched too_late unmatched unrecognised",
            "raws_",
        ),
    ),
    CountFamily(
        "ppd_detector_visits_ended",
        "Detector-visits whose processing is over.",
        "outcome",
        _of("succeeded failed"),
    ),
    CountFamily(
        "ppd_detector_visit_events",
        "What has happened to detector-visits on their way.",
        "event",
        _of(
            "retried retries_asked late put_back shed incomplete inputs_retried preprocess_failed "
            "exposures_dropped spool_full"
        ),
    ),
    CountFamily(
        "ppd_incidents",
        "What should not happen to ppd itself.",
        "kind",
        _of(
            "strays_killed nursery_restarts loop_stalls internal_errors child_messages_refused "
            "requests_refused requests_forbidden reloads_refused dead_letters spool_filling"
        ),
    ),
    CountFamily("ppd_datasets_exported", "Datasets in the central repo.", "", {"datasets_exported": ""}),
    CountFamily(
        "ppd_central_statements",
        "SQL statements on the central repo to find and fetch inputs.",
        "",
        {"central_statements": ""},
    ),
)
"""Every count has its place in one of these."""
