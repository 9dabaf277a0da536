"""All sources of visits that are configured, as one."""

from __future__ import annotations

__all__ = ["VisitSources", "make_visit_sources"]

import logging
import time
from collections.abc import Callable, Sequence

from ..config import Settings
from ..sources.visits import Heard, Judgement, Undelivered, VisitSource, VisitSourceStatus

_LOG = logging.getLogger(__name__)

# How often it is asked whether announcements may come: that looks at a disk.
_ASK_SECONDS = 0.25
_REST_SECONDS = 5.0


def make_visit_sources(
    settings: Settings, report: Callable[[Heard | Undelivered], None]
) -> list[VisitSource]:
    """Make the sources that the settings name, beside the control socket.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    report : callable
        Called with what the sources hear, from their threads.

    Returns
    -------
    sources : `list` [ `ppd.sources.visits.VisitSource` ]
        The sources, not started.
    """
    if settings.redis_url is None:
        return []
    # Its library takes a while: only where it is needed.
    from ..sources.redis_visits import RedisOptions, RedisVisits, consumer_name

    options = RedisOptions(
        url=settings.redis_url,
        stream=settings.redis_stream,
        group=settings.redis_group,
        consumer=consumer_name(settings.state_dir),
        ca_file=settings.redis_ca_file,
        retry_delay=settings.redis_retry_delay,
        listen_timeout=settings.redis_listen_timeout,
        claim_idle=settings.redis_claim_idle,
        deliveries=settings.redis_deliveries,
        expiration=settings.message_expiration,
    )
    return [RedisVisits(options, report)]


class VisitSources:
    """Lets the sources read while announcements may come; nothing but `start` raises.

    Parameters
    ----------
    sources : sequence of `ppd.sources.visits.VisitSource`
        The sources.
    """

    def __init__(self, sources: Sequence[VisitSource]):
        self._sources = sources
        self._asked_at = 0.0
        self._rest_until, self._rest_reason = 0.0, ""

    def start(self) -> None:
        """Begin to listen."""
        for source in self._sources:
            source.start()

    def stop(self, timeout: float) -> None:
        """Have the sources confirm what was judged, and end their threads; bounded."""
        for source in self._sources:
            self._guarded(source, source.stop, timeout)

    def turn(self, why_not: Callable[[], str | None]) -> None:
        """Hold the sources, or let them read.

        Parameters
        ----------
        why_not : callable
            Says why announcements should stay where they are; `None`: they may come.
        """
        now = time.monotonic()
        if not self._sources or now < self._asked_at + _ASK_SECONDS:
            return
        self._asked_at = now
        reason = self._rest_reason if now < self._rest_until else why_not()
        for source in self._sources:
            self._guarded(source, source.hold, reason)

    def rest(self, reason: str) -> None:
        """Hold the sources for some seconds: what comes could not be accepted."""
        self._rest_until, self._rest_reason = time.monotonic() + _REST_SECONDS, reason

    def settle(self, source: VisitSource, judgements: Sequence[Judgement]) -> None:
        """Tell a source what was judged."""
        self._guarded(source, source.settle, judgements)

    def status(self) -> list[VisitSourceStatus]:
        """Tell how the sources are."""
        return [source.status() for source in self._sources]

    def _guarded[**P](
        self, source: VisitSource, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        try:
            call(*args, **kwargs)
        except Exception:
            _LOG.exception("A source of visits, %s, has failed; the others go on.", source.name)
