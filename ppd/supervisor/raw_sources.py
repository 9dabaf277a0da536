"""All sources of raws that are configured, as one."""

from __future__ import annotations

__all__ = ["RawSources", "make_sources"]

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from ..config import Settings
from ..sources.directory import DirectorySource
from ..sources.raws import Candidate, RawSource, SourceStatus, Wanted
from ..visit import TAI_MINUS_UTC, BareVisit

_LOG = logging.getLogger(__name__)


def make_sources(
    settings: Settings, detectors: Mapping[str, int], report: Callable[[Candidate], None]
) -> list[RawSource]:
    """Make the sources that the settings name.

    Parameters
    ----------
    settings : `ppd.config.Settings`
        The configuration.
    detectors : `~collections.abc.Mapping` [ `str`, `int` ]
        Detector by full name.
    report : callable
        Called with each candidate, from the sources' threads.

    Returns
    -------
    sources : `list` [ `ppd.sources.raws.RawSource` ]
        The sources, not started.
    """
    sources: list[RawSource] = [
        DirectorySource(
            folder,
            settings.raw_settle,
            report,
            detectors=detectors,
            observer=settings.raw_observer,
            # No visit that is older is taken up again.
            keep=max(settings.raw_keep_seconds, settings.message_expiration),
        )
        for folder in settings.raw_dirs
    ]
    if settings.raw_bucket is not None:
        # Its libraries take a while: only where they are needed.
        from ..sources.presence import PresenceService
        from ..sources.s3 import S3Source

        presence = PresenceService(settings.raw_microservice) if settings.raw_microservice else None
        sources.append(
            S3Source(
                settings.raw_bucket,
                report,
                settings.instrument,
                detectors,
                prefix=settings.raw_prefix,
                endpoint=settings.s3_endpoint,
                presence=presence,
                poll=(settings.raw_poll_min, settings.raw_poll_max),
            )
        )
    return sources


class RawSources:
    """Tells all sources what is wanted; nothing but `start` raises.

    Parameters
    ----------
    sources : sequence of `ppd.sources.raws.RawSource`
        The sources.
    detectors : `~collections.abc.Mapping` [ `str`, `int` ]
        Detector by full name.
    """

    def __init__(self, sources: Sequence[RawSource], detectors: Mapping[str, int]):
        self._sources = sources
        self._names = {detector: name for name, detector in detectors.items()}

    def start(self) -> None:
        """Begin to look.

        Raises
        ------
        ppd.errors.ConfigurationError
            Raised if a source can never work.
        """
        for source in self._sources:
            source.start()

    def stop(self) -> None:
        """End the sources' threads; bounded."""
        for source in self._sources:
            self._guarded(source, source.stop)

    def expect(
        self,
        visit: BareVisit,
        detectors: Iterable[int],
        until: float,
        seen: Mapping[int, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """Look for the raws of a visit.

        Parameters
        ----------
        visit : `ppd.visit.BareVisit`
            The visit.
        detectors : iterable of `int`
            Those of its detectors that wait for raws.
        until : `float`
            After which nobody waits for them, Unix seconds.
        seen : `~collections.abc.Mapping`, optional
            URIs of raws that were there once, by detector.
        """
        for detector in detectors:
            wanted = Wanted(
                instrument=visit.instrument,
                group=visit.groupId,
                detector=detector,
                detector_name=self._names.get(detector, str(detector)),
                snaps=visit.nimages,
                begin=visit.startTime - TAI_MINUS_UTC,
                until=until,
                seen=seen.get(detector, ()),
            )
            for source in self._sources:
                self._guarded(source, source.expect, wanted)

    def dismiss(self, group: str, detector: int) -> None:
        """Look no more for the raws of a detector-visit."""
        for source in self._sources:
            self._guarded(source, source.dismiss, group, detector)

    def status(self) -> list[SourceStatus]:
        """Tell how the sources are."""
        found = []
        for source in self._sources:
            try:
                found.append(source.status())
            except Exception as e:
                _LOG.exception("A source of raws does not tell how it is.")
                found.append(SourceStatus(type(source).__name__, f"{type(e).__name__}: {e}"))
        return found

    def _guarded[**P](
        self, source: RawSource, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        try:
            call(*args, **kwargs)
        except Exception:
            _LOG.exception("A source of raws, %s, has failed; the others go on.", type(source).__name__)
