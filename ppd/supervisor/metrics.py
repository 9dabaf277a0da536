"""The supervisor's metrics, as Prometheus reads them.

What is counted and timed while it happens is in `ppd.supervisor.measures`;
the rest is looked at when it is asked for.  No label holds a group or a
visit: the number of series is bounded.
"""

from __future__ import annotations

__all__ = ["Look", "exposition"]

import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .. import __version__
from .faults import COMPONENTS, ailments
from .metric_names import COUNTS
from .status import health
from .table import LIVE

if TYPE_CHECKING:
    from .daemon import Supervisor

HEALTHS = ("ok", "trouble", "paused", "draining")


class Look(Collector):
    """Looks at a supervisor when Prometheus asks.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.
    """

    def __init__(self, supervisor: Supervisor):
        self._supervisor = supervisor

    def describe(self) -> list[Metric]:
        """Tell nothing: nobody has to look at a supervisor that is being set up."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Make the metrics of this moment."""
        yield from self._counts()
        yield from self._health()
        yield from self._work()
        yield from self._sources()
        yield from self._stores()
        yield from self._loop()

    def _counts(self) -> Iterator[Metric]:
        counted = self._supervisor.counters.as_dict()
        for family in COUNTS:
            metric = CounterMetricFamily(
                family.name, family.what, labels=[family.label] if family.label else []
            )
            for name, value in family.counts.items():
                metric.add_metric([value] if family.label else [], counted.get(name, 0))
            yield metric

    def _health(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        info = GaugeMetricFamily(
            "ppd_info", "What runs; always 1.", labels=["version", "instrument", "deployment"]
        )
        info.add_metric([__version__, supervisor.settings.instrument, supervisor.deployment.id], 1)
        yield info
        found = ailments(supervisor)
        now = health(supervisor, bool(found))
        one = GaugeMetricFamily("ppd_health", "1 for how ppd is, 0 for how it is not.", labels=["health"])
        for name in HEALTHS:
            one.add_metric([name], name == now)
        yield one
        faults = GaugeMetricFamily(
            "ppd_fault", "How many faults a part of ppd has now; status says which.", labels=["component"]
        )
        for component in COMPONENTS:
            faults.add_metric([component], sum(a.component == component for a in found))
        yield faults
        yield _gauge(
            "ppd_start_time_seconds", "When this supervisor was started, Unix seconds.", supervisor.started
        )
        paused = supervisor.pauses
        yield _gauge("ppd_paused", "Whether an operator has paused all of ppd.", paused.all is not None)
        yield _gauge(
            "ppd_paused_detectors", "Detectors that visits are taken without.", len(paused.detectors)
        )
        yield _gauge(
            "ppd_alert_deadline_seconds",
            "Seconds from the shutter's close to the alerts, as configured.",
            supervisor.settings.alert_deadline,
        )

    def _work(self) -> Iterator[Metric]:
        life = self._supervisor.lifecycle
        states = GaugeMetricFamily(
            "ppd_detector_visits", "Detector-visits in hand, by state.", labels=["state"]
        )
        for state, count in life.table.counts().items():
            states.add_metric([state], count)
        yield states
        accepted = [entry.accepted for entry in life.table.visits.values()]
        yield _gauge(
            "ppd_last_visit_time_seconds",
            "When the last visit in hand was accepted, Unix seconds; 0: there is none.",
            max(accepted, default=0.0),
        )
        oldest = min((d.accepted for d in life.table.unfinished()), default=None)
        yield _gauge(
            "ppd_oldest_unfinished_seconds",
            "Seconds since the acceptance of the oldest detector-visit that is not over; 0: there is none.",
            0.0 if oldest is None else max(0.0, time.time() - oldest),
        )
        yield _gauge("ppd_slots_used", "Children.", sum(d.state in LIVE for d in life.table))
        yield _gauge("ppd_slots_limit", "Children that may be at once.", self._supervisor.settings.slots)
        yield _gauge("ppd_processors_used", "Children that use a processor.", life.permits.held)
        yield _gauge("ppd_processors_limit", "Children that may use a processor at once.", life.permits.limit)
        yield _gauge("ppd_processors_queued", "Children that wait for a processor.", life.permits.queued)
        yield _gauge("ppd_raws_waiting", "Raws that wait for their visit.", life.raws.unmatched)

    def _sources(self) -> Iterator[Metric]:
        """Of the stream that visits come by; all is 0 without one."""
        sources = self._supervisor.visit_sources.status()
        yield _gauge(
            "ppd_visit_source_lag",
            "Entries of the stream that nobody of the group was given yet; NaN: not known.",
            _sum(source.lag for source in sources),
        )
        yield _gauge(
            "ppd_visit_source_pending",
            "Entries that somebody of the group was given and has not confirmed; NaN: not known.",
            _sum(source.pending for source in sources),
        )
        yield _gauge(
            "ppd_visit_source_held",
            "Whether the stream is not read, since ppd takes no visits now.",
            any(source.held is not None for source in sources),
        )
        yield _gauge(
            "ppd_visit_source_delay_seconds",
            "From an entry's arrival in the stream to its confirmation, of the last one.",
            max((source.delay for source in sources), default=0.0),
        )
        entries = CounterMetricFamily(
            "ppd_visit_source_entries", "Entries of the stream, by what was done with them.", labels=["event"]
        )
        for event in ("read", "confirmed", "claimed", "set_aside", "postponed", "gone"):
            entries.add_metric([event], sum(getattr(source, event) for source in sources))
        yield entries

    def _stores(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        spool, settings = supervisor.spool_watch, supervisor.settings
        yield _gauge("ppd_spool_hand_overs", "Hand-overs that wait for export.", spool.entries)
        yield _gauge("ppd_spool_bytes", "Bytes of the spool, dead letters too.", spool.bytes)
        yield _gauge("ppd_spool_limit_bytes", "Bytes that the spool may have.", settings.spool_max_bytes)
        yield _gauge("ppd_spool_free_bytes", "Bytes free on the spool's file system.", spool.free)
        yield _gauge("ppd_spool_used_ratio", "Part of what the spool may hold that is used.", spool.share)
        yield _gauge("ppd_dead_letters", "Hand-overs that were set aside.", supervisor.exporter.state.letters)
        cache = supervisor.central.status.cache
        yield _gauge("ppd_cache_datasets", "Datasets in the cache repo.", cache.datasets)
        yield _gauge("ppd_cache_bytes", "Bytes of the cache repo.", cache.bytes_held)
        yield _gauge("ppd_cache_limit_bytes", "Bytes that the cache may have.", settings.cache_bytes)
        yield _gauge("ppd_cache_leases", "Detector-visits and nurseries that hold inputs.", cache.leases)
        yield _counter("ppd_cache_fetched_bytes", "Bytes fetched from central.", cache.bytes_fetched)
        yield _counter("ppd_cache_evicted", "Datasets evicted from the cache.", cache.evicted)
        yield _gauge(
            "ppd_inherited_bytes",
            "Bytes of inputs that children find in the memory they are born with.",
            supervisor.nursery.inherited.bytes,
        )

    def _loop(self) -> Iterator[Metric]:
        loop = self._supervisor.watch.describe()
        yield _counter("ppd_loop_turns", "Turns of the supervisor's loop.", loop["turns"])
        yield _counter("ppd_loop_busy_seconds", "Seconds that the loop was busy.", loop["busy"])
        yield _gauge(
            "ppd_loop_longest_turn_seconds", "Longest turn of the last minute.", loop["longest_minute"]
        )


def exposition(supervisor: Supervisor) -> str:
    """Write all metrics in Prometheus' text format.

    Parameters
    ----------
    supervisor : `ppd.supervisor.daemon.Supervisor`
        The supervisor.

    Returns
    -------
    text : `str`
        Version 0.0.4 of the format.
    """
    registry = CollectorRegistry()
    registry.register(Look(supervisor))
    ProcessCollector(registry=registry)
    return (generate_latest(supervisor.measures.registry) + generate_latest(registry)).decode()


def _sum(numbers: Iterable[int | None]) -> float:
    return sum(math.nan if number is None else number for number in numbers)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=float(value))


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=float(value))
